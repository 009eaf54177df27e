"""What was learned of the profiles, kept over the daemon's life in one SQLite table, STATE/learned.db.

A row for each (profile, arguments, version of vLLM). Nothing depends on it: a file that is damaged, or that a later
llmd wrote, is set aside and said, and where the disk is full serving goes on with what is in memory.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path

import msgspec

from supervisor.core.learned import Learned
from supervisor.host.logbook import log

SCHEMA = 1
"""SQLite's user_version. A later one is not read: its rows may mean something else."""

_TABLE = """
CREATE TABLE IF NOT EXISTS learned (
    profile TEXT, arguments TEXT, version TEXT, at TEXT, figures TEXT,
    PRIMARY KEY (profile, arguments, version)
) WITHOUT ROWID
"""
_NEWEST = "SELECT figures FROM learned WHERE profile = ? AND arguments = ? ORDER BY at DESC LIMIT 1"
_KEEP = "REPLACE INTO learned VALUES (?, ?, ?, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), ?)"
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


class _Unusable(sqlite3.DatabaseError):
    """The file is sound perhaps, but not for this llmd."""


class Almanac:
    """Everything here blocks for a disk's time, and all of it is called from one thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trouble: str | None = None
        """Why the last attempt to keep something failed."""
        self._open: sqlite3.Connection | None = None

    def recall(self, arguments: Mapping[str, str]) -> dict[str, Learned]:
        """Profile -> the newest that was learned of it with its arguments, whatever the version."""
        try:
            return self._recall(arguments)
        except (sqlite3.Error, OSError) as error:
            self._failed("read", error)
            return {}

    def keep(self, profile: str, arguments: str, learned: Learned) -> None:
        figures = msgspec.json.encode(learned).decode()
        try:
            self._connection().execute(_KEEP, (profile, arguments, learned.version or "", figures))
            self.trouble = None
        except (sqlite3.Error, OSError) as error:
            self._failed("written", error)

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    def _recall(self, arguments: Mapping[str, str]) -> dict[str, Learned]:
        found: dict[str, Learned] = {}
        for profile, digest in arguments.items():
            row = self._connection().execute(_NEWEST, (profile, digest)).fetchone()
            if row and (learned := _decoded(profile, row[0])):
                found[profile] = learned
        return found

    def _connection(self) -> sqlite3.Connection:
        if self._open is None:
            try:
                self._open = _opened(self.path)
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise
                self._set_aside(str(error))
                self._open = _opened(self.path)
        return self._open

    def _failed(self, what: str, error: Exception) -> None:
        """Said once until it works again. A damaged file is out of the way for the next attempt."""
        if self.trouble is None:
            log("figures_not_kept", "WARNING", path=str(self.path), message=f"not {what}: {error}")
        self.trouble = f"{self.path} could not be {what}: {error}"
        self.close()
        if _is_damage(error):
            self._set_aside(str(error))

    def _set_aside(self, why: str) -> None:
        aside = self.path.with_name(self.path.name + ".aside")
        try:
            for tail in ("-wal", "-shm"):  # without them the file beside is only older
                self.path.with_name(self.path.name + tail).unlink(missing_ok=True)
            self.path.replace(aside)
        except OSError as error:
            log("figures_not_set_aside", "WARNING", path=str(self.path), message=f"{error}: {why}")
            return
        log("figures_set_aside", "WARNING", path=str(aside), message=f"begun anew: {why}")


def _opened(path: Path) -> sqlite3.Connection:
    """Raises _Unusable, or sqlite3.Error."""
    path.touch(mode=0o600)
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        _prepare(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA:
        raise _Unusable(f"it is of version {version}, this llmd reads {SCHEMA}")
    if (checked := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
        raise _Unusable(f"it is damaged: {checked}")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")  # after a power cut the last rows may be missing
    connection.execute(_TABLE)
    connection.execute(f"PRAGMA user_version={SCHEMA}")


def _is_damage(error: Exception) -> bool:
    return isinstance(error, _Unusable) or getattr(error, "sqlite_errorcode", None) in _DAMAGED


def _decoded(profile: str, figures: str) -> Learned | None:
    try:
        return msgspec.json.decode(figures, type=Learned)
    except msgspec.DecodeError as error:
        log("figures_unreadable", "WARNING", profile=profile, message=str(error))
        return None
