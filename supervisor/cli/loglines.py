"""All logs as one, for a terminal or for scripts: filtered, the newest so many, and what comes."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from supervisor.cli.client import Client
from supervisor.host.logbook import words
from supervisor.host.logstream import DAEMON

MOST = 100_000
"""Lines that are asked for where some will be filtered out."""

Entry = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Filter:
    """`lines`: the newest so many of those that match. `since`: seconds back."""

    profile: str | None
    lines: int
    since: float | None
    pattern: re.Pattern[str] | None
    follow: bool

    def takes(self, entry: Entry) -> bool:
        return self.pattern is None or self.pattern.search(entry["line"]) is not None


async def show(client: Client, wanted: Filter, say: Callable[[str], None], *, as_json: bool) -> None:
    form = _as_json if as_json else _as_words
    past: deque[str] = deque(maxlen=wanted.lines)
    limit = max(1, wanted.lines) if wanted.pattern is None else MOST
    async for entry in client.all_logs(
        profile=wanted.profile, since=wanted.since, limit=limit, follow=wanted.follow
    ):
        if entry is None:  # all that was there
            for line in past:
                say(line)
        elif wanted.takes(entry):
            line = form(entry)
            past.append(line)
            if entry["new"]:
                say(line)


def _as_json(entry: Entry) -> str:
    """A line of the daemon's log is JSON already; it stays a text, so that all entries are alike."""
    return json.dumps({name: entry[name] for name in ("at", "origin", "line")}, ensure_ascii=False)


def _as_words(entry: Entry) -> str:
    said = _own(entry["line"]) if entry["origin"] == DAEMON else None
    return f"{_clock(entry['at'])} {entry['origin']} | {entry['line'] if said is None else said}"


def _own(line: str) -> str | None:
    """The daemon's line without its time; None for what is not one, such as the end of a torn one."""
    try:
        return words(json.loads(line)).partition(" ")[2]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _clock(at: str) -> str:
    return datetime.fromisoformat(at).astimezone().strftime("%m-%d %H:%M:%S") if at else "-" * 14
