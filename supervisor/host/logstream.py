"""All logs as one: the daemon's and the engines', in the order of time.

The daemon dates its lines. vLLM dates most of its own, in local time and without the year; a line without a date is
as old as the one before it, so that tracebacks stay whole.
"""

from __future__ import annotations

import asyncio
import heapq
import re
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from pathlib import Path

from supervisor.host import enginelog
from supervisor.host.chronicle import stamp

DAEMON = "llmd"
"""What the daemon's own lines are from. A profile of this name is told apart by its lines alone."""

REACH = 1 << 20
"""Bytes from the end of each log that are looked through."""

_OURS = re.compile(r'\{"timestamp": "([^"]{20,30})"')
_THEIRS = re.compile(r"\b(\d\d)-(\d\d) (\d\d):(\d\d):(\d\d)\b")
_HEAD = 80
"""Letters in which a date is looked for: further on it is a part of what is said."""


@dataclass(frozen=True, slots=True)
class Entry:
    """`at`: RFC 3339 in UTC, so that text sorts as time does. `origin`: DAEMON or a profile."""

    at: str
    origin: str
    line: str


class Logs:
    """`paths`: origin -> its file. Takes where each ends when it is made: `past` tells of before, `coming` of after."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._ends = {name: (path, enginelog.size(path)) for name, path in paths.items()}

    def past(self, lines: int, since: str | None = None) -> list[Entry]:
        """The newest so many of all together, oldest first. Blocks: use a thread."""
        parts = [self._dated(name, path, end) for name, (path, end) in self._ends.items()]
        merged = heapq.merge(*parts, key=attrgetter("at"))
        found = [entry for entry in merged if since is None or entry.at >= since]
        return found[-lines:] if lines else []

    async def coming(self) -> AsyncGenerator[Entry, None]:
        """What is written from then on, for ever."""
        found: asyncio.Queue[Entry] = asyncio.Queue(1000)
        tasks = [
            asyncio.create_task(_follow(name, path, end, found)) for name, (path, end) in self._ends.items()
        ]
        try:
            while True:
                yield await found.get()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def _dated(self, name: str, path: Path, end: int) -> Iterator[Entry]:
        """In the order of the file, even where a clock was set back."""
        lines = enginelog.tail(path, REACH, REACH, end)
        own = [date(line) for line in lines]
        at = next((found for found in own if found), "")
        for line, found in zip(lines, own, strict=True):
            at = max(at, found or at)
            yield Entry(at, name, line)


async def _follow(name: str, path: Path, end: int, found: asyncio.Queue[Entry]) -> None:
    at = ""
    async for line in enginelog.follow(path, end):
        at = date(line) or at or stamp(datetime.now(UTC))
        await found.put(Entry(at, name, line))


def date(line: str) -> str | None:
    """When a line says that it was written; None where it does not."""
    if ours := _OURS.match(line):
        return ours[1]
    theirs = _THEIRS.search(line, 0, _HEAD)
    return None if theirs is None else _with_year(*map(int, theirs.groups()))


def _with_year(month: int, day: int, hour: int, minute: int, second: int) -> str | None:
    """The last such moment before tomorrow: a log of December is read in January."""
    now = datetime.now().astimezone()
    for year in (now.year, now.year - 1):
        try:
            at = datetime(year, month, day, hour, minute, second).astimezone()
        except ValueError:  # no such day, at least in this year
            continue
        if at <= now + timedelta(days=1):
            return stamp(at)
    return None
