"""Errors that a GPU's driver reports, through the whole daemon on stand-in cards."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from supervisor.core.devices import GIB
from tests.daemon import KEY, QUICK, Llmd, until
from tests.standin.nvml import FakeGpus, build

CARD: dict[str, Any] = {"weights": "tiny", "max_model_len": 512, "vram": "18 GiB", "model": "alpha"}


@pytest.fixture
def gpus(tmp_path: Path) -> FakeGpus:
    return FakeGpus(tmp_path / "nvml", count=2, total=24 * GIB)


@pytest.fixture
def llmd(tmp_path: Path, gpus: FakeGpus) -> Iterator[Llmd]:
    profiles = {"alpha_0": CARD | {"gpus": [0]}, "alpha_1": CARD | {"gpus": [1]}}
    made = Llmd(profiles, env=gpus.env(build(tmp_path)), **QUICK)
    yield made.start()
    made.close()


def say(llmd: Llmd, model: str) -> str:
    messages: Any = [{"role": "user", "content": "Hello"}]
    with openai.OpenAI(base_url=f"{llmd.url}/v1", api_key=KEY, max_retries=0, timeout=20) as api:
        reply = api.chat.completions.create(model=model, messages=messages, max_tokens=4)
    return reply.choices[0].message.content or ""


def card(llmd: Llmd, index: int) -> dict[str, Any]:
    return next(d for d in llmd.status()["devices"] if d["index"] == index)


def reports(llmd: Llmd, xid: int) -> list[dict[str, Any]]:
    return [line for line in llmd.logged() if line["event"] == "gpu_xid" and line["xid"] == xid]


def metrics(llmd: Llmd) -> str:
    asked = urllib.request.Request(f"{llmd.url}/metrics", headers={"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(asked, timeout=10) as reply:
        return str(reply.read().decode())


def test_a_gpu_that_fell_off_the_bus_is_put_out_of_use_until_it_was_reset(llmd: Llmd, gpus: FakeGpus) -> None:
    assert llmd.run("start", "alpha_0").returncode == 0
    for _ in range(3):
        gpus.xid(0, 79)
    until(lambda: llmd.engine("alpha_0")["state"] in ("backoff", "cold"), 15, llmd.text)
    until(lambda: [x["count"] for x in card(llmd, 0)["xids"]] == [3], 5, llmd.text)
    assert card(llmd, 0)["quarantined"].endswith("reported XID 79: the GPU has fallen off the bus")
    assert llmd.engine("alpha_0")["failure"].startswith("gpu sick: GPU 0")
    assert say(llmd, "alpha"), "the other card serves"
    assert llmd.engine("alpha_1")["state"] == "ready"
    with pytest.raises(openai.InternalServerError, match="is quarantined"):
        say(llmd, "alpha_0")
    until(lambda: reports(llmd, 79) != [], 5, llmd.text)
    for command in (("status",), ("why", "alpha_0")):
        shown = " ".join(llmd.run(*command).stdout.split())
        assert "XID 79: the GPU has fallen off the bus, 3 times" in shown, shown
    told = metrics(llmd)
    labels = f'device="{gpus.uuid(0)}",gpu="0"'
    assert f'llmd_device_xids_total{{{labels},xid="79"}} 3.0' in told
    assert f"llmd_device_quarantined{{{labels}}} 1.0" in told

    gpus.card(0, memory="lost")
    until(lambda: card(llmd, 0)["trouble"] is not None, 10, llmd.text)
    gpus.card(0, memory="ok")
    until(lambda: card(llmd, 0)["quarantined"] is None, 10, llmd.text)
    assert say(llmd, "alpha_0")
    assert len(reports(llmd, 79)) == 1, "what it says again is counted, not told"


def test_a_programs_own_fault_is_told_and_stops_nothing(llmd: Llmd, gpus: FakeGpus) -> None:
    assert say(llmd, "alpha_1")
    before = llmd.engine("alpha_1")["pid"]
    gpus.xid(1, 31)
    until(lambda: card(llmd, 1)["xids"] != [], 5, llmd.text)
    assert [(x["xid"], x["policy"]) for x in card(llmd, 1)["xids"]] == [(31, "application")]
    assert (card(llmd, 1)["quarantined"], llmd.engine("alpha_1")["pid"]) == (None, before)
    assert say(llmd, "alpha_1")
    until(lambda: reports(llmd, 31) != [], 5, llmd.text)
    assert reports(llmd, 31)[0]["engines"] == ["alpha_1"]
