# ruff: noqa: ASYNC240 - a test may wait for its disk
from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from supervisor.config.models import EngineDefaults
from supervisor.host import enginelog
from supervisor.host.enginelog import follow, keep, old, open_append, rotate, tail

MIB = 1 << 20
CAP = EngineDefaults().log_size

FLOOD = """
import os, sys, time

def allocated(path):
    try:
        return os.stat(path).st_blocks * 512
    except FileNotFoundError:
        return 0

log, end = sys.argv[1], int(sys.argv[2])
lines = (b"x" * 16383 + b"\\n") * 4
sent, most, began = 0, 0, time.monotonic()
while sent < end:
    sent += os.write(1, lines)
    most = max(most, allocated(log) + allocated(log + ".1"))
    time.sleep(max(0, sent / 100e6 - (time.monotonic() - began)))
print(most, sent / (time.monotonic() - began), file=sys.stderr)
"""
"""100 MB/s to stdout until END bytes are out. The writer itself looks at the disk, so it sees every excess."""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "engine.log"


async def take(lines: AsyncIterator[str], count: int) -> list[str]:
    return [await asyncio.wait_for(anext(lines), 5) for _ in range(count)]


def test_the_file_is_for_the_group_to_read_and_only_appended_to(log: Path) -> None:
    log.write_text("before\n")
    log.unlink()
    first, second = open_append(log), open_append(log)
    os.write(first, b"one\n")
    os.write(second, b"two\n")
    os.close(first)
    os.close(second)
    assert log.read_text() == "one\ntwo\n"
    assert log.stat().st_mode & 0o777 == 0o640 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_rotation_keeps_all_of_a_log_at_rest(log: Path) -> None:
    fd = open_append(log)
    os.write(fd, b"x" * 240)
    assert not rotate(log, cap=1000)
    os.write(fd, b"y" * 20)
    old(log).write_text("older")
    assert rotate(log, cap=1000)
    os.write(fd, b"next\n")
    os.close(fd)
    assert old(log).read_bytes() == b"x" * 240 + b"y" * 20
    assert log.read_bytes() == b"next\n"
    assert old(log).stat().st_mode & 0o777 == 0o640 & ~_umask()


@pytest.mark.parametrize(("size", "kept"), [(250, 250), (312, 312), (400, 225), (10_000, 62)])
def test_the_later_a_rotation_the_less_is_kept(log: Path, size: int, kept: int) -> None:
    """So that a log which is too long already does not take as much again."""
    log.write_bytes(b"a" * (size - 4) + b"end\n")
    assert rotate(log, cap=1000)
    assert old(log).read_bytes() == b"a" * (kept - 4) + b"end\n"
    assert log.stat().st_size == 0


def test_a_full_disk_costs_the_old_part_not_the_cut(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    log.write_bytes(b"a" * 1000)
    monkeypatch.setattr(os, "sendfile", full)
    assert rotate(log, cap=1000)
    assert log.stat().st_size == 0


def test_no_log_is_no_trouble(log: Path) -> None:
    assert not rotate(log, CAP)
    assert tail(log) == []


@pytest.fixture
def load(request: pytest.FixtureRequest) -> Iterator[None]:
    """As many programs as asked for that leave the processors to nobody."""
    with contextlib.ExitStack() as stack:
        for _ in range(request.param):
            busy = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(busy.kill)
        yield


@pytest.mark.usefixtures("load")
@pytest.mark.parametrize("load", [0, 4], ids=["idle", "loaded"], indirect=True)
async def test_a_flood_stays_within_its_bound(log: Path) -> None:
    """100 MB/s, or what a loaded machine has of that, until the cap is filled several times over: bytes on disk."""
    fd = open_append(log)
    writer = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", FLOOD, str(log), str(5 * CAP)), stdout=fd, stderr=subprocess.PIPE
    )
    os.close(fd)
    keeper = asyncio.create_task(keep(log, CAP))
    try:
        _, said = await asyncio.wait_for(writer.communicate(), 60)
    finally:
        keeper.cancel()
        with contextlib.suppress(ProcessLookupError):
            writer.kill()
    most, rate = map(float, said.split())
    assert CAP / 4 < most < 1.1 * CAP
    assert rate > 10e6
    assert tail(log, 3) == ["x" * 16383] * 3


def test_tail_reads_as_a_person_does(log: Path) -> None:
    log.write_bytes(
        b"first\n\x1b[1;36m(APIServer pid=7)\x1b[0;0m INFO ready\r\n"
        b"\rshards:   0%|   | 0/2\rshards:  50%|#  | 1/2\r\n\n\xff\xfejunk\nlast"
    )
    assert tail(log) == [
        "first",
        "(APIServer pid=7) INFO ready",
        "shards:   0%|   | 0/2",
        "shards:  50%|#  | 1/2",
        "��junk",
        "last",
    ]
    assert tail(log, 1) == ["last"]
    assert tail(log, 0) == []
    assert tail(log, 2, max_bytes=8) == ["unk", "last"]


def test_tail_reaches_over_a_rotation(log: Path) -> None:
    log.write_text("a\nb\nc\n")
    rotate(log, cap=1)
    old(log).write_text("a\nb\nc\n")
    log.write_text("d\n")
    assert tail(log, 3) == ["b", "c", "d"]


async def test_follow_gives_lines_as_they_come(log: Path) -> None:
    lines = follow(log, pause=0.01)
    waiting = asyncio.create_task(anext(lines))  # before there is a file
    await asyncio.sleep(0)
    log.write_text("one\ntwo\nhal")
    assert await asyncio.wait_for(waiting, 5) == "one"
    assert await take(lines, 2) == ["two", "hal"]
    with log.open("a") as file:
        file.write("f\nthree\n")
    assert await take(lines, 2) == ["f", "three"]
    await lines.aclose()


async def test_follow_begins_where_it_is_told(log: Path) -> None:
    log.write_text("one\ntwo\n")
    lines = follow(log, 4, pause=0.01)
    assert await take(lines, 1) == ["two"]
    await lines.aclose()


async def test_follow_goes_on_after_a_rotation(log: Path) -> None:
    log.write_text("a long first line\n")
    lines = follow(log, pause=0.01)
    assert await take(lines, 1) == ["a long first line"]
    rotate(log, cap=1)
    log.write_text("next\n")
    assert await take(lines, 1) == ["next"]
    await lines.aclose()


async def test_follow_ends_the_line_that_a_rotation_cut_off(log: Path) -> None:
    log.write_bytes(b"x" * enginelog.CHUNK)  # a full chunk: more is to be had at once
    lines = follow(log, pause=0.01)
    waiting = asyncio.create_task(anext(lines))
    reads = 0

    def rotated(path: Path, offset: int) -> tuple[int, bytes]:
        nonlocal reads
        reads += 1
        if reads == 2:
            rotate(log, cap=1)
            log.write_text("next\n")
        return read_on(path, offset)

    read_on = enginelog.read_on
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(enginelog, "read_on", rotated)
        assert await asyncio.wait_for(waiting, 5) == "x" * enginelog.LINE_LIMIT
        assert await take(lines, 1) == ["next"]
    await lines.aclose()


async def test_follow_gives_no_line_twice_however_often_the_log_rotates(log: Path) -> None:
    fd, enough = open_append(log), threading.Event()

    def count() -> int:
        """Lines of 16 bytes, so that chunks and cuts fall between them."""
        for number in itertools.takewhile(lambda _: not enough.is_set(), itertools.count()):
            os.write(fd, b"%015d\n" % number)
        return number

    seen: list[int] = []
    keeper = asyncio.create_task(keep(log, MIB))
    writer = asyncio.create_task(asyncio.to_thread(count))
    async with contextlib.aclosing(follow(log, pause=0.01)) as lines:
        async for line in lines:
            seen.append(int(line))
            if seen[-1] > 4 * MIB / 16:
                break
    enough.set()
    written = await writer
    keeper.cancel()
    os.close(fd)
    assert log.stat().st_size < written * 16 / 2  # it was rotated
    assert seen == sorted(set(seen))


async def test_an_endless_line_is_cut_in_bounded_memory(log: Path) -> None:
    log.write_bytes(b"x" * (10 * MIB) + b"\nshort\n")
    lines = follow(log, pause=0.01)
    began = time.monotonic()
    long, short = await take(lines, 2)
    assert long == "x" * enginelog.LINE_LIMIT
    assert short == "short"
    assert time.monotonic() - began < 2
    await lines.aclose()
    splitter = enginelog._Splitter()
    for _ in range(64):
        assert list(splitter.feed(b"y" * 65536)) == []
        assert len(splitter._rest) <= enginelog.LINE_LIMIT
