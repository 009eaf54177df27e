"""What was learned of the profiles, kept over the daemon's life in one SQLite table, STATE/learned.db.

A row for each (profile, arguments, version of vLLM). Nothing depends on it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path

import msgspec

from supervisor.core.learned import Learned
from supervisor.host.database import Database
from supervisor.host.logbook import log

_TABLE = """
CREATE TABLE IF NOT EXISTS learned (
    profile TEXT, arguments TEXT, version TEXT, at TEXT, figures TEXT,
    PRIMARY KEY (profile, arguments, version)
) WITHOUT ROWID
"""
_NEWEST = "SELECT figures FROM learned WHERE profile = ? AND arguments = ? ORDER BY at DESC LIMIT 20"
_KEEP = "REPLACE INTO learned VALUES (?, ?, ?, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), ?)"


class Almanac:
    """Everything here blocks for a disk's time, and all of it is called from one thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database = Database(path, _TABLE, schema=1, holds="figures")

    @property
    def trouble(self) -> str | None:
        return self._database.trouble

    def recall(self, arguments: Mapping[str, str]) -> dict[str, tuple[Learned, ...]]:
        """Profile -> what was learned of it with its arguments under each version, the newest first."""
        try:
            return self._recall(arguments)
        except (sqlite3.Error, OSError) as error:
            self._database.failed("read", error)
            return {}

    def keep(self, profile: str, arguments: str, learned: Learned) -> None:
        figures = msgspec.json.encode(learned).decode()
        try:
            self._database.connection().execute(_KEEP, (profile, arguments, learned.version or "", figures))
            self._database.worked()
        except (sqlite3.Error, OSError) as error:
            self._database.failed("written", error)

    def close(self) -> None:
        self._database.close()

    def _recall(self, arguments: Mapping[str, str]) -> dict[str, tuple[Learned, ...]]:
        found: dict[str, tuple[Learned, ...]] = {}
        for profile, digest in arguments.items():
            rows = self._database.connection().execute(_NEWEST, (profile, digest)).fetchall()
            if known := tuple(filter(None, (_decoded(profile, row[0]) for row in rows))):
                found[profile] = known
        return found


def _decoded(profile: str, figures: str) -> Learned | None:
    try:
        return msgspec.json.decode(figures, type=Learned)
    except msgspec.DecodeError as error:
        log("figures_unreadable", "WARNING", profile=profile, message=str(error))
        return None
