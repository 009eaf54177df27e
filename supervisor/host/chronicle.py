"""The journal of decisions, STATE/decisions.jsonl: what was decided, when, and on what grounds, one JSON line each.

Bounded; a line torn by a crash is passed over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from supervisor.host.logbook import log
from supervisor.host.rollover import Rollover

CAP = 8 << 20
"""Bytes of both halves together."""

LONGEST = 32 << 10
"""Bytes of one line; a longer one loses its inputs."""

Entry = dict[str, Any]


class Chronicle:
    """Everything here blocks for a disk's time, and all of it is called from one thread."""

    def __init__(self, path: Path, cap: int = CAP) -> None:
        self._lines = Rollover(path, cap)
        self.path, self.older = path, self._lines.older
        self.trouble: str | None = None
        """Why the last entry could not be written."""

    def write(self, entry: Mapping[str, object]) -> None:
        """An entry that cannot be written is lost; that is said once until it works again."""
        try:
            self._lines.append(_line(entry))
            self.trouble = None
        except OSError as error:
            if self.trouble is None:
                log("decisions_not_written", "WARNING", path=str(self.path), message=str(error.strerror))
            self.trouble = f"{self.path} could not be written: {error.strerror}"
            self.close()

    def read(
        self, *, names: frozenset[str] = frozenset(), since: datetime | None = None, limit: int = 100
    ) -> list[Entry]:
        """The newest that concern one of `names` (none: all), oldest first."""
        found: list[Entry] = []
        for entry in filter(None, map(_entry, self._lines.newest_first())):
            if len(found) == limit:
                break
            if since is not None and entry["at"] < stamp(since):
                continue  # later ones may stand before: clocks are set
            if not names or names & {entry.get("profile"), entry.get("model"), entry.get("by")}:
                found.append(entry)
        return found[::-1]

    def close(self) -> None:
        self._lines.close()


def stamp(when: datetime) -> str:
    """As entries have it, so that text sorts as time does."""
    return when.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _line(entry: Mapping[str, object]) -> bytes:
    whole = {"at": stamp(datetime.now(UTC)), **entry}
    line = json.dumps(whole, default=str).encode() + b"\n"
    if len(line) <= LONGEST:
        return line
    short = {name: str(value)[:1000] for name, value in whole.items() if name != "inputs"}
    return json.dumps(short).encode() + b"\n"


def _entry(line: bytes) -> Entry | None:
    """None for what a crash, or somebody's editor, left of a line."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("at"), str) else None
