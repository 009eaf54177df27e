"""Logs as they grow, for people who look on: the newest always, what came too fast is left out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from supervisor.host import enginelog
from supervisor.host.logbook import RECENT

LINES = 400
"""The most that is sent at once."""

_READ = 256 << 10
_LONGEST = 4000

Look = Callable[[], list[str]]
"""The lines that came since the last look; the first one gives the end of the log. Blocks for a disk's time."""


class OfEngine:
    def __init__(self, path: Path) -> None:
        self._path, self._at, self._rest = path, -1, b""

    def __call__(self) -> list[str]:
        try:
            size = self._path.stat().st_size
        except FileNotFoundError:
            return []
        if self._at < 0 or size < self._at:  # the first look, or it was cut to start anew
            self._at, self._rest = max(0, size - _READ) if self._at < 0 else 0, b""
        skipped = size - self._at > _READ
        with self._path.open("rb") as log:
            log.seek(size - _READ if skipped else self._at)
            text = log.read(_READ)
            self._at = log.tell()
        *whole, self._rest = enginelog.BREAK.split((b"" if skipped else self._rest) + text)
        self._rest = self._rest[:_LONGEST]
        lines = [enginelog.readable(line[:_LONGEST]) for line in whole if line]
        return ["...", *lines[-LINES:]] if skipped or len(lines) > LINES else lines


class OfDaemon:
    def __init__(self) -> None:
        self._count = 0

    def __call__(self) -> list[str]:
        lines, self._count = RECENT.since(self._count)
        return [line[:_LONGEST] for line in lines[-LINES:]]


async def look(at: Look) -> list[str]:
    return await asyncio.to_thread(at)
