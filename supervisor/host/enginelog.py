"""An engine's log: a file that the engine appends to for life, trimmed from outside.

The engine holds the descriptor and outlives the daemon, so the file cannot be replaced: it is copied to
`NAME.1` and emptied in place, and O_APPEND makes the engine's next line the first. What the engine writes
between the end of the copy and the cut is lost, which under a flood is some of the flood.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

CAP = 64 << 20
"""Bytes that the log may hold before it is rotated; `NAME.1` holds no more either."""

LINE_LIMIT = 64 << 10
"""Bytes of one line that are read; the rest of a longer one is dropped."""

_CHUNK = 64 << 10
_BURST = 256 << 20
_FLOOD = 1 << 30
"""Bytes a second that a quiet and a busy engine are thought able to write: the cap is looked at before that
fills it. Faster ones overshoot until the next look."""

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_BREAK = re.compile(rb"[\r\n]+")


def open_append(path: Path) -> int:
    """The descriptor to give an engine as stdout and stderr. Mode 0640: prompts never, but paths may be in it."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)


def old(path: Path) -> Path:
    """Where the previous part of a log is kept."""
    return path.with_name(path.name + ".1")


def rotate(path: Path, cap: int = CAP) -> bool:
    """Move the log's contents to `NAME.1` where it nears `cap` bytes. True where it did. Blocks: use a thread."""
    try:
        with path.open("r+b", buffering=0) as log:
            size = os.fstat(log.fileno()).st_size
            if size < cap * 3 // 4:
                return False
            # On a full disk the old part is given up: emptying the log is what frees space.
            with contextlib.suppress(OSError):
                _copy(log.fileno(), old(path), size, cap)
            log.truncate(0)
    except FileNotFoundError:
        return False
    return True


async def keep(path: Path, cap: int = CAP) -> None:
    """Rotate the log as often as it takes; runs until it is cancelled."""
    last = 0
    while True:
        size = _size(path)
        if size >= cap * 3 // 4:
            await asyncio.to_thread(rotate, path, cap)
        rate = _BURST if size == last else _FLOOD
        last = size
        await asyncio.sleep(min(0.25, max(0.01, (cap - _size(path)) / rate)))


def tail(path: Path, lines: int = 20, max_bytes: int = 64 << 10) -> list[str]:
    """The last lines as a person reads them: no colours, progress bars one line a step, junk replaced."""
    found = _lines(_last_bytes(path, max_bytes))
    if len(found) < lines:  # just rotated
        found = _lines(_last_bytes(old(path), max_bytes)) + found
    return found[-lines:] if lines > 0 else []


async def follow(path: Path, offset: int = 0, pause: float = 0.2) -> AsyncIterator[str]:
    """Lines from byte `offset` on, for ever. A rotated log goes on from its new start.

    Looks every `pause` seconds; a line that stays unfinished that long (a progress bar's) is given as it is.
    """
    pending = _Splitter()
    while True:
        offset, chunk = await asyncio.to_thread(_read_on, path, offset)
        for line in pending.feed(chunk) if chunk else pending.flush():
            yield line
        if len(chunk) < _CHUNK:
            await asyncio.sleep(pause)


class _Splitter:
    """Bytes in, whole lines out; holds at most LINE_LIMIT bytes."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> Iterator[str]:
        *whole, rest = _BREAK.split(self._rest + chunk)
        self._rest = rest[:LINE_LIMIT]
        return (text for line in whole if (text := _text(line)))

    def flush(self) -> Iterator[str]:
        rest, self._rest = self._rest, b""
        return (text for text in [_text(rest)] if text)


def _copy(source: int, target: Path, size: int, cap: int) -> None:
    """The last `cap` bytes at most, and what is appended meanwhile; less of a flood, which outruns copying."""
    target.unlink(missing_ok=True)
    kept = cap if size <= cap else cap // 4
    offset, limit = max(0, size - kept), size + cap // 10
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
    try:
        while offset < limit and (sent := os.sendfile(fd, source, offset, min(1 << 20, limit - offset))):
            offset += sent
    finally:
        os.close(fd)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _last_bytes(path: Path, count: int) -> bytes:
    try:
        with path.open("rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - count))
            return log.read(count)
    except FileNotFoundError:
        return b""


def _read_on(path: Path, offset: int) -> tuple[int, bytes]:
    """The next chunk and the offset after it; from the start where the log has shrunk."""
    try:
        with path.open("rb", buffering=0) as log:
            if os.fstat(log.fileno()).st_size < offset:
                offset = 0
            log.seek(offset)
            chunk = log.read(_CHUNK)
    except FileNotFoundError:
        return 0, b""
    return offset + len(chunk), chunk


def _lines(data: bytes) -> list[str]:
    return [text for line in _BREAK.split(data) if (text := _text(line))]


def _text(line: bytes) -> str:
    return _ANSI.sub("", line[:LINE_LIMIT].decode(errors="replace")).rstrip()
