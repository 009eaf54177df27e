"""CUDA's total, learned by a whole daemon from the log of a stand-in on stand-in GPUs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import QUICK, Llmd, until
from tests.standin.nvml import GIB, FakeGpus, build

RESERVED = int(0.42 * GIB)
"""What the driver keeps of a card, which CUDA does not count."""


@pytest.fixture
def llmd(tmp_path: Path) -> Iterator[Llmd]:
    gpus = FakeGpus(tmp_path / "nvml", count=1, total=24 * GIB)
    gpus.card(0, reserved=RESERVED)
    card = {"model": "llama", "weights": "tiny", "max_model_len": 512, "gpus": [0], "vram": "12 GiB"}
    made = Llmd({"llama_0": card}, env=gpus.env(build(tmp_path)), **QUICK)
    try:
        yield made.start()
    finally:
        made.close()


def passed(llmd: Llmd) -> float:
    """The fraction that the engine was started with."""
    words = llmd.tree("llama_0")[0].cmdline()
    return float(words[words.index("--gpu-memory-utilization") + 1])


def total(llmd: Llmd) -> int | None:
    found: int | None = llmd.status()["devices"][0]["cuda_total"]
    return found


def test_it_is_learned_at_the_first_start_and_known_after_a_restart(llmd: Llmd) -> None:
    assert total(llmd) is None
    assert llmd.run("start", "llama_0").returncode == 0, llmd.text()
    assert passed(llmd) == 0.5
    until(lambda: total(llmd) is not None, 10, llmd.text)
    told = total(llmd)
    assert told is not None
    assert told == pytest.approx(24 * GIB - RESERVED, abs=0.011 * GIB)
    assert "24.00 GiB (23.58 GiB for CUDA)" in llmd.run("why", "llama").stdout
    assert llmd.run("stop", "llama_0").returncode == 0
    assert llmd.stop() == 0
    llmd.start()
    assert total(llmd) == told
    assert llmd.run("start", "llama_0").returncode == 0
    assert passed(llmd) == 0.5087  # 12 of at most 23.585, cut to four decimals
    planned = json.loads(llmd.run("plan", "--json").stdout)
    assert [device["cuda_total"] for device in planned["devices"]] == [told, None]
