"""Sleep on a whole daemon, with stand-in engines on a stand-in card: unproven on hardware, like the stand-in's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from supervisor.core.devices import GIB
from tests.daemon import KEY, QUICK, Llmd, until
from tests.standin.nvml import FakeGpus, build

RESIDUE = int(1.5 * GIB)
LIGHT = {"STANDIN_WEIGHTS": "0.01"}
"""GiB that any host has room for: level 1."""
HEAVY = {"STANDIN_WEIGHTS": "9999"}
"""No host has room for them: level 2."""
CARD: dict[str, Any] = {
    "weights": "tiny",
    "max_model_len": 512,
    "gpus": [0],
    "vram": "18 GiB",
    "sleep": True,
}

Install = Callable[..., Llmd]


@pytest.fixture
def install(tmp_path: Path) -> Iterator[Install]:
    """Two models that fit the one card only one at a time; `alpha` and `beta` are fields of their profiles."""
    gpus = FakeGpus(tmp_path / "nvml", count=1, total=24 * GIB)
    made: list[Llmd] = []

    def started(
        alpha: dict[str, Any] | None = None, beta: dict[str, Any] | None = None, **limits: Any
    ) -> Llmd:
        profiles = {
            "alpha_0": CARD | {"model": "alpha", "env": LIGHT} | (alpha or {}),
            "beta_0": CARD | {"model": "beta", "env": LIGHT} | (beta or {}),
        }
        tables = QUICK | {"engine": QUICK["engine"] | limits}
        made.append(Llmd(profiles, env=gpus.env(build(tmp_path)), **tables))
        return made[-1].start()

    yield started
    for llmd in made:
        llmd.close()


def say(llmd: Llmd, model: str, tokens: int = 4) -> str:
    messages: Any = [{"role": "user", "content": "Hello"}]
    with openai.OpenAI(base_url=f"{llmd.url}/v1", api_key=KEY, max_retries=0, timeout=20) as api:
        reply = api.chat.completions.create(model=model, messages=messages, max_tokens=tokens)
    return reply.choices[0].message.content or ""


def used(llmd: Llmd) -> int:
    """What NVML shows of the card."""
    return int(next(d["used"] for d in llmd.status()["devices"] if d["index"] == 0))


def asleep(llmd: Llmd, profile: str) -> bool:
    """It sleeps, and its memory was seen to have come back."""
    engine = llmd.engine(profile)
    return engine["state"] == "sleeping" and bool(engine["residue"])


def came_up(llmd: Llmd, profile: str) -> tuple[int, str]:
    engine = llmd.engine(profile)
    return engine["starts"], engine["state"]


def asked(llmd: Llmd, profile: str) -> dict[str, Any]:
    """What the stand-in counted."""
    incarnation = llmd.engine(profile)["incarnation"]
    socket = llmd.home / "state" / "engines" / incarnation / "sock"
    done = subprocess.run(
        ["curl", "--silent", "--unix-socket", str(socket), "http://engine/standin"],
        capture_output=True,
        check=True,
        timeout=10,
    )
    counted: dict[str, Any] = json.loads(done.stdout)
    return counted


def test_a_request_for_another_model_puts_one_to_sleep_and_one_for_it_wakes_it(install: Install) -> None:
    llmd = install()
    healthy = say(llmd, "alpha")
    first = llmd.engine("alpha_0")
    until(lambda: used(llmd) >= 17 * GIB, 10, llmd.text)
    assert say(llmd, "beta")
    until(lambda: asleep(llmd, "alpha_0"), 10, llmd.text)
    sleeping = llmd.engine("alpha_0")
    assert (sleeping["asleep"], sleeping["pid"]) == (1, first["pid"])
    assert list(sleeping["residue"].values()) == [RESIDUE]
    until(lambda: 17 * GIB + RESIDUE <= used(llmd) <= 19 * GIB + RESIDUE, 10, llmd.text)
    assert say(llmd, "alpha") == healthy
    woken = llmd.engine("alpha_0")
    assert (woken["pid"], woken["starts"], woken["state"]) == (first["pid"], 1, "ready")
    until(lambda: asleep(llmd, "beta_0"), 10, llmd.text)
    counted = asked(llmd, "alpha_0")
    assert (counted["sleeps"], counted["wakes"], counted["reloads"]) == (1, 1, 0)


def test_level_2_reads_the_weights_again_before_it_answers(install: Install) -> None:
    llmd = install(alpha={"env": HEAVY})
    healthy = say(llmd, "alpha")
    assert say(llmd, "beta")
    assert llmd.engine("alpha_0")["asleep"] == 2
    assert say(llmd, "alpha") == healthy
    assert asked(llmd, "alpha_0")["reloads"] == 1
    assert llmd.engine("alpha_0")["starts"] == 1


def test_a_sleep_that_frees_nothing_becomes_a_stop(install: Install) -> None:
    llmd = install(alpha={"env": LIGHT | {"STANDIN_SLEEP": "keeps"}}, settle_timeout=1, sleep_timeout=1)
    say(llmd, "alpha")
    assert say(llmd, "beta")
    assert llmd.engine("alpha_0")["state"] == "cold"
    llmd.says("alpha_0 did not fall asleep: its memory did not come back")
    say(llmd, "alpha")
    say(llmd, "beta")
    assert llmd.log.read_text().count("alpha_0 did not fall asleep") == 1, "it was tried again"


@pytest.mark.parametrize("how", ["fails", "hangs"])
def test_a_sleep_that_is_refused_or_never_answered_becomes_a_stop(install: Install, how: str) -> None:
    llmd = install(alpha={"env": LIGHT | {"STANDIN_SLEEP": how}}, sleep_timeout=1)
    say(llmd, "alpha")
    assert say(llmd, "beta")
    assert llmd.engine("alpha_0")["state"] == "cold"
    said = {"fails": "Memory usage increased", "hangs": "no answer to /sleep?level=1 in time"}[how]
    llmd.says(said)


@pytest.mark.parametrize("how", ["fails", "hangs"])
def test_an_engine_that_does_not_wake_is_replaced_and_its_waiter_served(install: Install, how: str) -> None:
    llmd = install(alpha={"env": LIGHT | {"STANDIN_WAKE": how}}, wake_timeout=2)
    say(llmd, "alpha")
    first = llmd.engine("alpha_0")
    say(llmd, "beta")
    assert asleep(llmd, "alpha_0")
    assert say(llmd, "alpha")
    after = llmd.engine("alpha_0")
    assert (after["starts"], after["state"]) == (2, "ready")
    assert after["pid"] != first["pid"]
    llmd.says("did not wake")


def test_a_wake_is_recorded_before_it_is_told(install: Install) -> None:
    """A daemon that dies meanwhile leaves an engine that may take its memory any moment, and the next one knows."""
    llmd = install(alpha={"env": LIGHT | {"STANDIN_WAKE": "hangs"}, "sleep_after": "0.2s"}, wake_timeout=60)
    say(llmd, "alpha")
    until(lambda: asleep(llmd, "alpha_0"), 20, llmd.text)
    found = llmd.engine("alpha_0")
    record = llmd.home / "state" / "engines" / found["incarnation"] / "record.json"
    assert not json.loads(record.read_text())["waking"]
    with ThreadPoolExecutor() as pool:
        asking = pool.submit(say, llmd, "alpha")
        until(lambda: json.loads(record.read_text())["waking"], 20, llmd.text)
        assert llmd.engine("alpha_0")["state"] == "waking"
        llmd.kill()
        with pytest.raises(openai.APIConnectionError):
            asking.result()


def test_an_idle_engine_sleeps_first_and_is_stopped_later(install: Install) -> None:
    llmd = install(alpha={"sleep_after": "1s", "idle_ttl": "15s"})
    say(llmd, "alpha")
    until(lambda: asleep(llmd, "alpha_0"), 10, llmd.text)
    assert used(llmd) == RESIDUE
    assert 0 < llmd.engine("alpha_0")["ttl_left_s"] <= 15
    assert "keeps 1.50 GiB" in " ".join(llmd.run("status").stdout.split())
    until(lambda: llmd.engine("alpha_0")["state"] == "cold", 30, llmd.text)
    assert used(llmd) == 0


@pytest.mark.parametrize("weights", [LIGHT, HEAVY], ids=["level 1", "level 2"])
def test_a_restarted_daemon_finds_a_sleeping_engine_and_wakes_it_when_asked(
    install: Install, weights: dict[str, str]
) -> None:
    llmd = install(alpha={"env": weights, "sleep_after": "0.2s"})
    healthy = say(llmd, "alpha")
    until(lambda: asleep(llmd, "alpha_0"), 5, llmd.text)
    before = llmd.engine("alpha_0")
    record = json.loads((llmd.home / "state" / "engines" / before["incarnation"] / "record.json").read_text())
    assert (record["asleep"], record["kv_tokens"]) == (before["asleep"], 52352)
    llmd.kill()
    llmd.start()
    until(lambda: asleep(llmd, "alpha_0"), 5, llmd.text)
    found = llmd.engine("alpha_0")
    assert (found["pid"], found["asleep"], found["residue"]) == (
        before["pid"],
        before["asleep"],
        before["residue"],
    )
    assert say(llmd, "alpha") == healthy
    assert (llmd.engine("alpha_0")["pid"], llmd.engine("alpha_0")["starts"]) == (before["pid"], 0)


def test_a_wake_that_a_dying_daemon_left_halfway_is_finished(install: Install) -> None:
    """Awake by its own word, but without weights: only the record tells."""
    llmd = install(alpha={"env": HEAVY, "sleep_after": "0.2s"})
    healthy = say(llmd, "alpha")
    until(lambda: asleep(llmd, "alpha_0"), 5, llmd.text)
    before = llmd.engine("alpha_0")
    llmd.kill()
    socket = str(llmd.home / "state" / "engines" / before["incarnation"] / "sock")
    assert json.loads(Path(socket).with_name("record.json").read_text())["waking"] is False
    wake = ["curl", "--silent", "--fail", "-XPOST", "--unix-socket", socket, "http://engine/wake_up"]
    subprocess.run(wake, check=True, timeout=10, capture_output=True)
    llmd.start()
    assert say(llmd, "alpha") == healthy
    assert llmd.engine("alpha_0")["pid"] == before["pid"]


def test_an_engine_that_ran_out_of_memory_serving_comes_back_for_half_as_many(install: Install) -> None:
    llmd = install(
        alpha={
            "max_concurrent": 4,
            "env": LIGHT | {"STANDIN_OOM_AT_TOKEN": "8", "STANDIN_TOKENS_PER_SECOND": "50"},
        }
    )
    say(llmd, "alpha")
    assert llmd.engine("alpha_0")["slots"] == 4
    with pytest.raises(openai.InternalServerError) as failed:
        say(llmd, "alpha", tokens=20)
    assert failed.value.status_code in (500, 502)
    until(lambda: came_up(llmd, "alpha_0") == (2, "ready"), 20, llmd.text)
    eased = llmd.engine("alpha_0")
    assert (eased["slots"], eased["rung"], eased["starts"]) == (2, 2, 2), llmd.text()
    words = psutil.Process(eased["pid"]).cmdline()
    assert words[words.index("--max-num-seqs") + 1] == "2"
    llmd.says("it is started again for 2 requests at a time")
    llmd.kill()
    llmd.start()
    until(lambda: llmd.engine("alpha_0")["state"] == "ready", 5, llmd.text)
    assert llmd.engine("alpha_0")["rung"] == 2
    assert llmd.run("stop", "alpha_0").returncode == 0
    llmd.kill()
    llmd.start()
    until(lambda: llmd.engine("alpha_0")["rung"] == 2, 5, llmd.text)
    assert llmd.run("start", "alpha_0").returncode == 0
    words = psutil.Process(llmd.engine("alpha_0")["pid"]).cmdline()
    assert words[words.index("--max-num-seqs") + 1] == "2", "kept by the almanac where no engine is left"


def test_an_engine_that_hangs_while_healthy_is_replaced_and_the_next_one_answers(install: Install) -> None:
    """Nothing of an answer had gone out when it was killed, so the request goes on, once, to its successor."""
    llmd = install(stall_timeout=2)
    say(llmd, "alpha")
    first = llmd.engine("alpha_0")
    core = next(p for p in psutil.Process(first["pid"]).children() if "VLLM::Engine" in p.name())
    os.kill(core.pid, signal.SIGSTOP)
    assert say(llmd, "alpha"), llmd.text()
    after = llmd.engine("alpha_0")
    assert after["pid"] != first["pid"]
    llmd.says("no token in 2 s with 1 requests in flight")
