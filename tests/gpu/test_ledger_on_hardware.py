"""The ledger against a real card: stand-in engines that hold real CUDA memory, read by the real NVML."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from supervisor.core.devices import GIB, Reading
from tests.daemon import QUICK, Llmd, until

pytestmark = pytest.mark.gpu

STANDIN = Path(__file__).parent.parent / "standin"

HOLD = """
import sys
sys.path.insert(0, sys.argv[1])
import cuda
card = cuda.CudaCard(0)
card.hold(int(sys.argv[2]))
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def neighbour(size: int) -> Iterator[int]:
    """A process of somebody else that holds `size` bytes of the first card; its pid."""
    command = [sys.executable, "-c", HOLD, str(STANDIN), str(size)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process.pid
        assert process.stdin
        process.stdin.close()


@pytest.fixture
def llmd(card: Reading) -> Iterator[Llmd]:
    """Two models that do not fit together: 40 and 70 % of the first card."""
    shares = {"small_0": 0.4, "large_0": 0.7}
    profiles = {
        name: {
            "model": name.removesuffix("_0"),
            "weights": "tiny",
            "max_model_len": 512,
            "gpus": [0],
            "vram": int(card.total * share),
        }
        for name, share in shares.items()
    }
    made = Llmd(profiles, env={"STANDIN_CUDA": "1"}, **QUICK)
    try:
        yield made.start()
    finally:
        made.close()


def test_a_reading_adds_up(card: Reading) -> None:
    assert card.trouble is None
    assert 0 < card.used + card.free <= card.total
    assert card.device.startswith("GPU-")


def test_what_an_engine_holds_is_what_was_reserved_and_comes_back(llmd: Llmd, card: Reading) -> None:
    assert llmd.run("start", "small_0").returncode == 0, llmd.text()
    until(lambda: bool(llmd.engine("small_0")["measured"]), 15, llmd.text)
    engine = llmd.engine("small_0")
    held, reserved = engine["measured"][card.device], engine["reserved"][card.device]
    assert abs(held - reserved) < GIB, (held, reserved)  # and what the CUDA context takes
    assert llmd.run("stop", "small_0").returncode == 0
    assert llmd.engine("small_0")["state"] == "cold"  # settled: NVML showed it back


def test_an_idle_engine_makes_room_and_the_newcomer_starts_after_it_settled(llmd: Llmd) -> None:
    assert llmd.run("start", "small_0").returncode == 0, llmd.text()
    assert llmd.run("start", "large_0").returncode == 0, llmd.text()
    assert (llmd.engine("small_0")["state"], llmd.engine("large_0")["state"]) == ("cold", "ready")


def test_a_neighbour_is_noticed_and_named(llmd: Llmd, card: Reading) -> None:
    with neighbour(int(card.total * 0.45)) as pid:
        refused = llmd.run("start", "large_0")
        assert refused.returncode == 1
        assert f"PID {pid}" in " ".join(refused.stderr.split())
        assert llmd.engine("large_0")["starts"] == 0
    until(lambda: llmd.run("start", "large_0").returncode == 0, 90, llmd.text)  # counted for a minute
