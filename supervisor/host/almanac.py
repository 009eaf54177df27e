"""What was learned of profiles and GPUs, kept over the daemon's life in SQLite, STATE/learned.db.

A row for each (profile, arguments, version of vLLM), and one for each (GPU, driver, NVML's total) with CUDA's total
of it. Nothing depends on them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import msgspec

from supervisor.core.devices import Card
from supervisor.core.learned import Learned
from supervisor.host.database import Database
from supervisor.host.logbook import log

FILE = "learned.db"

_TABLES = """
CREATE TABLE IF NOT EXISTS learned (
    profile TEXT, arguments TEXT, version TEXT, at TEXT, figures TEXT,
    PRIMARY KEY (profile, arguments, version)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS totals (
    device TEXT, driver TEXT, nvml INTEGER, cuda INTEGER,
    PRIMARY KEY (device, driver, nvml)
) WITHOUT ROWID
"""
_NEWEST = "SELECT figures FROM learned WHERE profile = ? AND arguments = ? ORDER BY at DESC LIMIT 20"
_KEEP = "REPLACE INTO learned VALUES (?, ?, ?, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), ?)"
_TOTALS = "SELECT device, driver, nvml, cuda FROM totals"
_KEEP_TOTAL = "REPLACE INTO totals VALUES (?, ?, ?, ?)"


class Almanac:
    """Everything here blocks for a disk's time, and all of it is called from one thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database = Database(path, _TABLES, schema=1, holds="figures")

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

    def totals(self) -> dict[Card, int]:
        """GPU -> what CUDA counts there, bytes."""
        try:
            rows = self._database.connection().execute(_TOTALS).fetchall()
        except (sqlite3.Error, OSError) as error:
            self._database.failed("read", error)
            return {}
        return {Card(*card): total for *card, total in rows}

    def keep(self, profile: str, arguments: str, learned: Learned) -> None:
        figures = msgspec.json.encode(learned).decode()
        self._write(_KEEP, profile, arguments, learned.version or "", figures)

    def keep_total(self, card: Card, total: int) -> None:
        self._write(_KEEP_TOTAL, *card, total)

    def _write(self, statement: str, *values: str | int) -> None:
        try:
            self._database.connection().execute(statement, values)
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


def learned_totals(state: Path) -> dict[Card, int]:
    """What the daemon of this state directory knows of CUDA's totals, as far as we may look."""
    try:
        with closing(sqlite3.connect(f"file:{quote(str(state / FILE))}?mode=ro", uri=True)) as database:
            return {Card(*card): total for *card, total in database.execute(_TOTALS)}
    except sqlite3.Error:
        return {}


def _decoded(profile: str, figures: str) -> Learned | None:
    try:
        return msgspec.json.decode(figures, type=Learned)
    except msgspec.DecodeError as error:
        log("figures_unreadable", "WARNING", profile=profile, message=str(error))
        return None
