# ruff: noqa: ASYNC220, ASYNC240 - a test may wait for its disk
from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from supervisor.host import enginelog
from supervisor.host.enginelog import follow, keep, old, open_append, rotate, tail

MIB = 1 << 20


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "engine.log"


def disk(log: Path) -> int:
    return enginelog._size(log) + enginelog._size(old(log))


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
    os.write(fd, b"x" * 700)
    assert not rotate(log, cap=1000)
    os.write(fd, b"y" * 100)
    old(log).write_text("older")
    assert rotate(log, cap=1000)
    os.write(fd, b"next\n")
    os.close(fd)
    assert old(log).read_bytes() == b"x" * 700 + b"y" * 100
    assert log.read_bytes() == b"next\n"
    assert old(log).stat().st_mode & 0o777 == 0o640 & ~_umask()


def test_a_log_that_grew_unwatched_is_cut_to_its_end(log: Path) -> None:
    log.write_bytes(b"a" * 10_000 + b"end\n")
    assert rotate(log, cap=1000)
    assert old(log).read_bytes() == b"a" * 246 + b"end\n"
    assert log.stat().st_size == 0


def test_a_full_disk_costs_the_old_part_not_the_cut(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    log.write_bytes(b"a" * 1000)
    monkeypatch.setattr(os, "sendfile", full)
    assert rotate(log, cap=1000)
    assert log.stat().st_size == 0


def test_no_log_is_no_trouble(log: Path) -> None:
    assert not rotate(log)
    assert tail(log) == []


async def test_a_flood_stays_within_its_bound(log: Path) -> None:
    """100 MB/s, for as long as it takes to fill the cap several times over."""
    cap = 64 * MIB
    code = f"""
import os, time
line, end, sent, began = b"x" * 16383 + b"\\n", {5 * cap}, 0, time.monotonic()
while sent < end:
    sent += os.write(1, line * 4)
    time.sleep(max(0, sent / 100e6 - (time.monotonic() - began)))
"""
    fd = open_append(log)
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=fd)
    os.close(fd)
    keeper = asyncio.create_task(keep(log, cap))
    most = 0
    try:
        while writer.poll() is None:
            most = max(most, disk(log))
            await asyncio.sleep(0.002)
    finally:
        writer.kill()
        writer.wait()
        keeper.cancel()
    assert writer.returncode == 0
    assert cap < most < 2.1 * cap
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
