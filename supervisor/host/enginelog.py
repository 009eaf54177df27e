"""An engine's log: a file that the engine appends to for life, trimmed from outside.

The engine holds the descriptor and outlives the daemon, so the file cannot be replaced: it is copied to
`NAME.1` and emptied in place, and O_APPEND makes the engine's next line the first. What the engine writes
between the end of the copy and the cut is lost, which under a flood is some of the flood.

Both files together stay within `cap` bytes, and mostly within half of it: the log is rotated at a quarter,
and `NAME.1` keeps little more than that. The rest is for looks and copies that come late: a flood of 100 MB/s
takes no more than a tenth on top of 64 MiB although it went unwatched for a third of a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

LINE_LIMIT = 64 << 10
"""Bytes of one line that are read; the rest of a longer one is dropped."""

CHUNK = 64 << 10
_FLOOD = 200e6
"""Bytes a second that an engine may write without filling more than its part before the next look."""

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
BREAK = re.compile(rb"[\r\n]+")


def open_append(path: Path) -> int:
    """The descriptor to give an engine as stdout and stderr. Mode 0640: prompts never, but paths may be in it."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)


def old(path: Path) -> Path:
    """Where the previous part of a log is kept."""
    return path.with_name(path.name + ".1")


def rotate(path: Path, cap: int) -> bool:
    """Move the log's contents to `NAME.1` where they are due. True where it did. Blocks: use a thread."""
    try:
        with path.open("r+b", buffering=0) as log:
            size = os.fstat(log.fileno()).st_size
            if size < _due(cap):
                return False
            # On a full disk the old part is given up: emptying the log is what frees space.
            with contextlib.suppress(OSError):
                _copy(log.fileno(), old(path), size, cap)
            log.truncate(0)
    except FileNotFoundError:
        return False
    return True


async def keep(path: Path, cap: int) -> None:
    """Rotate the log as often as it takes to hold it and `NAME.1` to `cap` bytes; runs until it is cancelled."""
    while True:
        if size(path) >= _due(cap):
            await asyncio.to_thread(rotate, path, cap)
        await asyncio.sleep(_pause(size(path), cap))


def tail(path: Path, lines: int = 20, max_bytes: int = 64 << 10, end: int | None = None) -> list[str]:
    """The last lines, up to byte `end`, as a person reads them: no colours, progress bars one line a step, junk
    replaced."""
    found = _lines(last_bytes(path, max_bytes, end))
    if len(found) < lines:  # just rotated
        found = _lines(last_bytes(old(path), max_bytes)) + found
    return found[-lines:] if lines > 0 else []


async def follow(path: Path, offset: int = 0, pause: float = 0.2) -> AsyncIterator[str]:
    """Lines from byte `offset` on, for ever. A rotated log goes on from its new start.

    Looks every `pause` seconds; a line that stays unfinished that long (a progress bar's) is given as it is,
    and so is one that a rotation cut off. No line comes twice. What was written between a look and the
    rotation is left out, and so is what a flood wrote faster than it was read.
    """
    pending = _Splitter()
    while True:
        start, chunk = await asyncio.to_thread(read_on, path, offset)
        rotated, offset = start < offset, start + len(chunk)
        if rotated or not chunk:
            for line in pending.flush():
                yield line
        for line in pending.feed(chunk):
            yield line
        if len(chunk) < CHUNK:
            await asyncio.sleep(pause)


class _Splitter:
    """Bytes in, whole lines out; holds at most LINE_LIMIT bytes."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> Iterator[str]:
        *whole, rest = BREAK.split(self._rest + chunk)
        self._rest = rest[:LINE_LIMIT]
        return (text for line in whole if (text := readable(line)))

    def flush(self) -> Iterator[str]:
        rest, self._rest = self._rest, b""
        return (text for text in [readable(rest)] if text)


def _due(cap: int) -> int:
    """Bytes at which a log is rotated."""
    return cap // 4


def _pause(size: int, cap: int) -> float:
    """Seconds after which a log of `size` bytes is looked at again: often enough that a flood finds it in time."""
    return min(0.25, max(0.02, (cap * 5 // 16 - size) / _FLOOD))


def _copy(source: int, target: Path, size: int, cap: int) -> None:
    """The end of the log and what is appended meanwhile, as far as there is room: the less the later it is."""
    target.unlink(missing_ok=True)
    room = min(cap * 5 // 16, max(cap // 16, cap * 10 // 16 - size))
    offset = max(0, size - room)
    limit = offset + room
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
    try:
        while offset < limit and (sent := os.sendfile(fd, source, offset, min(1 << 20, limit - offset))):
            offset += sent
    finally:
        os.close(fd)


def size(path: Path) -> int:
    """Bytes; 0 of a log that is not there yet."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def last_bytes(path: Path, count: int, end: int | None = None) -> bytes:
    try:
        with path.open("rb") as log:
            start = max(0, (os.fstat(log.fileno()).st_size if end is None else end) - count)
            log.seek(start)
            return log.read(count if end is None else end - start)
    except FileNotFoundError:
        return b""


def read_on(path: Path, offset: int) -> tuple[int, bytes]:
    """Where reading went on, and the next chunk: from the start where the log has shrunk."""
    try:
        with path.open("rb", buffering=0) as log:
            start = 0 if os.fstat(log.fileno()).st_size < offset else offset
            log.seek(start)
            return start, log.read(CHUNK)
    except FileNotFoundError:
        return 0, b""


def _lines(data: bytes) -> list[str]:
    return [text for line in BREAK.split(data) if (text := readable(line))]


def readable(line: bytes) -> str:
    """A line as people read it: no colours, junk replaced, no longer than a sane one."""
    return _ANSI.sub("", line[:LINE_LIMIT].decode(errors="replace")).rstrip()
