"""The journal of decisions, STATE/decisions.jsonl: what was decided, when, and on what grounds, one JSON line each.

Bounded: when a half of the cap is full it becomes `decisions.jsonl.1`, in the place of the half before it. A line
torn by a crash is passed over, and the next one begins on a line of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from supervisor.host.logbook import log

CAP = 8 << 20
"""Bytes of both halves together."""

LONGEST = 32 << 10
"""Bytes of one line; a longer one loses its inputs."""

Entry = dict[str, Any]


class Chronicle:
    """Everything here blocks for a disk's time, and all of it is called from one thread."""

    def __init__(self, path: Path, cap: int = CAP) -> None:
        self.path = path
        self.older = path.with_name(path.name + ".1")
        self.trouble: str | None = None
        """Why the last entry could not be written."""
        self._half = cap // 2
        self._file: int | None = None
        self._size = 0

    def write(self, entry: Mapping[str, object]) -> None:
        """An entry that cannot be written is lost; that is said once until it works again."""
        try:
            self._append(_line(entry))
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
        for entry in self._newest_first():
            if len(found) == limit:
                break
            if since is not None and entry["at"] < stamp(
                since
            ):  # later ones may stand before: clocks are set
                continue
            if not names or names & {entry.get("profile"), entry.get("model"), entry.get("by")}:
                found.append(entry)
        return found[::-1]

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _append(self, line: bytes) -> None:
        file = self._opened()
        if self._size and self._size + len(line) > self._half:
            self.close()
            self.path.replace(self.older)
            file = self._opened()
        written = os.write(file, line)
        self._size += written
        if written < len(line):  # the disk is full now: whoever opens the file next mends its end
            self.close()

    def _opened(self) -> int:
        if self._file is None:
            self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
            self._size = os.fstat(self._file).st_size
            if self._size and os.pread(self._file, 1, self._size - 1) != b"\n":
                self._size += os.write(self._file, b"\n")
        return self._file

    def _newest_first(self) -> Iterator[Entry]:
        for path in (self.path, self.older):
            try:
                lines = path.read_bytes().splitlines()
            except OSError:
                continue
            for line in reversed(lines):
                if entry := _entry(line):
                    yield entry


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
