"""What the C library keeps: the pages of bodies that come and go, and no more than that."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from supervisor import daemon
from supervisor.host import heap

COMES_AND_GOES = """
import resource, sys
from supervisor.host import heap
if sys.argv[1] == "kept" and not heap.keep():
    sys.exit("another C library")

def faults(size, times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        first, second = b"x" * size, b"y" * size
        del first, second
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(2 << 20, 1)
print(faults(2 << 20, 20))
"""

GIVES_BACK = """
from pathlib import Path
from supervisor.host import heap

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

heap.keep()
before = resident()
many = [b"x" * (heap.LARGEST + 1) for _ in range(8)]
held = resident() - before
del many
print(held, resident() - before)
"""

LEAVES_BEHIND = """
from pathlib import Path
from supervisor.host import heap

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

heap.keep()
many = [b"x" * (1 << 16) for _ in range(1000)]
held = resident()
many = many[-1:]
kept = held - resident()
heap.trim()
print(kept, held - resident())
"""


def told(program: str, *words: str) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, check=False, timeout=60
    )
    if "another C library" in done.stderr:
        pytest.skip("another C library")
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


def test_the_pages_of_bodies_are_used_again() -> None:
    assert told(COMES_AND_GOES, "kept")[0] < 100  # two blocks have 1,024 pages


def test_what_is_larger_goes_back_at_once() -> None:
    held, kept = told(GIVES_BACK)
    assert held > 8 * heap.LARGEST
    assert kept < heap.KEPT


def test_what_large_bodies_leave_behind_is_given_back() -> None:
    kept, trimmed = told(LEAVES_BEHIND)
    assert kept < 8 << 20
    assert trimmed > 48 << 20


async def test_the_daemon_does_so_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    times = asyncio.Semaphore(0)
    monkeypatch.setattr(heap, "trim", times.release)
    monkeypatch.setattr(daemon, "TIDY_PAUSE", 0.0)
    tidying = asyncio.create_task(daemon.tidy())
    async with asyncio.timeout(10):
        for _ in range(3):
            await times.acquire()
    tidying.cancel()
    await asyncio.wait([tidying])
