"""A small SQLite file that nothing depends on. One that is damaged, or that a later llmd wrote, is set aside and
said, and a new one begun; where the disk is full serving goes on without.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from supervisor.host.logbook import log

CACHE = 256
"""KiB of pages that each open file has in memory, besides the kernel; SQLite's own 2,000 are never given back."""

_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


class _Unusable(sqlite3.DatabaseError):
    """The file is sound perhaps, but not for this llmd."""


class Database:
    """Everything here blocks for a disk's time. `holds` names its contents in log events: `figures_set_aside`.

    `schema` is SQLite's user_version: a later one is not read, its rows may mean something else. `pragmas` are said
    before the tables are made.
    """

    def __init__(self, path: Path, tables: str, *, schema: int, holds: str, pragmas: str = "") -> None:
        self.path = path
        self.trouble: str | None = None
        """Why the last attempt to keep something failed."""
        self._tables, self._schema, self._holds, self._pragmas = tables, schema, holds, pragmas
        self._open: sqlite3.Connection | None = None

    def connection(self) -> sqlite3.Connection:
        """In autocommit. Raises sqlite3.Error, OSError."""
        if self._open is None:
            try:
                self._open = self._opened()
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise
                self._set_aside(str(error))
                self._open = self._opened()
        return self._open

    def failed(self, what: str, error: Exception) -> None:
        """Said once until `worked`. A damaged file is out of the way for the next attempt."""
        if self.trouble is None:
            log(f"{self._holds}_not_kept", "WARNING", path=str(self.path), message=f"not {what}: {error}")
        self.trouble = f"{self.path} could not be {what}: {error}"
        self.close()
        if _is_damage(error):
            self._set_aside(str(error))

    def worked(self) -> None:
        self.trouble = None

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    def _opened(self) -> sqlite3.Connection:
        """Raises _Unusable, or sqlite3.Error."""
        self.path.touch(mode=0o600)
        connection = sqlite3.connect(self.path, isolation_level=None)
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute(f"PRAGMA cache_size=-{CACHE}")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > self._schema:
            raise _Unusable(f"it is of version {version}, this llmd reads {self._schema}")
        if (checked := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise _Unusable(f"it is damaged: {checked}")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")  # after a power cut the last rows may be missing
        connection.executescript(self._pragmas + self._tables)
        connection.execute(f"PRAGMA user_version={self._schema}")

    def _set_aside(self, why: str) -> None:
        aside = self.path.with_name(self.path.name + ".aside")
        try:
            for tail in ("-wal", "-shm"):  # without them the file beside is only older
                self.path.with_name(self.path.name + tail).unlink(missing_ok=True)
            self.path.replace(aside)
        except OSError as error:
            log(f"{self._holds}_not_set_aside", "WARNING", path=str(self.path), message=f"{error}: {why}")
            return
        log(f"{self._holds}_set_aside", "WARNING", path=str(aside), message=f"begun anew: {why}")


def _is_damage(error: Exception) -> bool:
    return isinstance(error, _Unusable) or getattr(error, "sqlite_errorcode", None) in _DAMAGED
