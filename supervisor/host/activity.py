"""Who asked for what, STATE/activity.db: one SQLite row a request, with its tokens, its times and its end.

Never a prompt, never an answer. Bounded by age and by size, the oldest going first; nothing depends on it.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol

from supervisor.config.models import Activity as Limits
from supervisor.host.chronicle import stamp
from supervisor.host.database import Database
from supervisor.host.scribe import Scribe

BATCH = 1024
"""Rows that are written at once."""

PATIENCE = 1.0
"""Seconds until fewer are written, too."""

BACKLOG = 16_384
"""Rows that may wait for a disk; beyond it the newest are given up and counted."""

PRUNE_EVERY = 60.0
SHARE = 0.1
"""Of the rows, taken off at once where the file is too large."""


class Request(Protocol):
    """One that ended, `at` what time (RFC 3339, UTC). Times are milliseconds; `code` is the error's; `hit`: warm,
    waking or cold."""

    at: str
    request_id: str
    source: str | None
    model: str | None
    profile: str | None
    path: str
    status: int
    code: str | None
    hit: str | None
    prompt: int | None
    completion: int | None
    latency_ms: int
    ttft_ms: int | None
    queue_ms: int | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which requests to tell of; None: all. `model`: a model or a profile. `since`: as `stamp` writes it."""

    model: str | None = None
    source: str | None = None
    since: str | None = None
    failed: bool = False

    def where(self) -> tuple[str, list[str]]:
        """An SQL condition and its parameters."""
        conditions = {
            "(model = ? OR profile = ?)": [self.model] * 2 if self.model is not None else None,
            "source = ?": [self.source] if self.source is not None else None,
            "at >= ?": [self.since] if self.since is not None else None,
            "status >= 400": [] if self.failed else None,
        }
        chosen = {text: values for text, values in conditions.items() if values is not None}
        return " AND ".join(chosen) or "1", [v for values in chosen.values() for v in values if v is not None]


_NAMES = tuple(Request.__annotations__)
_row = attrgetter(*_NAMES)
_TABLE = f"""
CREATE TABLE IF NOT EXISTS requests (id INTEGER PRIMARY KEY, {", ".join(_NAMES)});
CREATE INDEX IF NOT EXISTS requests_at ON requests (at);
"""
_PRAGMAS = "PRAGMA journal_size_limit=4194304;"
_INSERT = f"INSERT INTO requests ({', '.join(_NAMES)}) VALUES ({', '.join('?' * len(_NAMES))})"
_UNWRITTEN = (sqlite3.Error, OSError, OverflowError, UnicodeEncodeError)
"""The last two: a value that SQLite has no column for."""

_TOTALS = """
SELECT date(at, 'localtime') AS day, source, model, count(*) AS requests, sum(status >= 400) AS failed,
    sum(coalesce(prompt, 0)) AS prompt, sum(coalesce(completion, 0)) AS completion,
    round(sum(CASE WHEN queue_ms IS NULL THEN 0 ELSE latency_ms - queue_ms END) / 1000.0, 1) AS engine_s,
    round(sum(coalesce(queue_ms, 0)) / 1000.0, 1) AS queue_s
FROM requests WHERE {where} GROUP BY day, source, model ORDER BY day, source, model
"""


class Activity:
    """Everything here blocks for a disk's time; `write` and `close` are called from one thread."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self.lost = 0
        """Rows that could not be written."""
        self._database = Database(path, _TABLE, schema=1, holds="activity", pragmas=_PRAGMAS)
        self.limits = limits
        self._pruned = -PRUNE_EVERY

    @property
    def trouble(self) -> str | None:
        return self._database.trouble

    def write(self, rows: list[Request]) -> None:
        """All of them or none."""
        try:
            connection = self._database.connection()
            connection.execute("BEGIN")
            connection.executemany(_INSERT, map(_row, rows))
            connection.execute("COMMIT")
            self._prune(connection)
            self._database.worked()
        except _UNWRITTEN as error:
            self.lost += len(rows)
            self._database.failed("written", error)

    def requests(self, wanted: Wanted, limit: int) -> list[dict[str, Any]]:
        """The newest so many, oldest first."""
        where, values = wanted.where()
        names = ", ".join(_NAMES)
        found = self._query(
            f"SELECT {names} FROM requests WHERE {where} ORDER BY id DESC LIMIT ?", *values, limit
        )
        return found[::-1]

    def totals(self, wanted: Wanted) -> list[dict[str, Any]]:
        """By day (this host's), key and model; seconds on an engine and in the queue."""
        where, values = wanted.where()
        return self._query(_TOTALS.format(where=where), *values)

    def close(self) -> None:
        self._database.close()

    def _query(self, text: str, *values: object) -> list[dict[str, Any]]:
        """On a connection of its own, beside whoever writes. A file that cannot be read holds nothing."""
        if not self._database.path.exists():
            return []
        connection = sqlite3.connect(self._database.path, isolation_level=None)
        try:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(text, values)]
        except sqlite3.DatabaseError:  # `write` finds it too, and says it
            return []
        finally:
            connection.close()

    def _prune(self, connection: sqlite3.Connection) -> None:
        now = time.monotonic()
        if now - self._pruned < PRUNE_EVERY:
            return
        self._pruned = now
        oldest = stamp(datetime.fromtimestamp(max(0.0, time.time() - self.limits.keep), UTC))
        connection.execute("DELETE FROM requests WHERE at < ?", (oldest,))
        while _size(connection) > self.limits.max_size and self._shorten(connection):
            pass

    def _shorten(self, connection: sqlite3.Connection) -> int:
        """Take off the oldest share. Returns how many rows that were."""
        rows = connection.execute("SELECT count(*) FROM requests").fetchone()[0]
        oldest = "SELECT id FROM requests ORDER BY id LIMIT ?"
        return connection.execute(
            f"DELETE FROM requests WHERE id IN ({oldest})", (max(1, int(rows * SHARE)),)
        ).rowcount


class Register:
    """Takes requests on the event loop and has them written in batches: never waits, gives up what is too much. From
    then on they do not change."""

    def __init__(self, activity: Activity, scribe: Scribe) -> None:
        self.activity = activity
        self._scribe = scribe
        self._rows: list[Request] = []
        self._given_up = self._handed = self._written = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def lost(self) -> int:
        """Rows that nobody will find, because the disk did not keep up or took none."""
        return self._given_up + self.activity.lost

    def note(self, request: Request) -> None:
        if len(self._rows) + self._handed - self._written >= BACKLOG:
            self._given_up += 1
            return
        self._rows.append(request)
        if len(self._rows) >= BATCH:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PATIENCE, self.flush)

    def flush(self) -> None:
        """Hand on what there is."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        rows, self._rows = self._rows, []
        if rows and self._scribe.write(lambda: self._write(rows)):
            self._handed += len(rows)
        else:
            self._given_up += len(rows)

    async def ask(self, question: Callable[[Activity], list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """What the file says once all that was noted is in it; decisions are written meanwhile."""
        self.flush()
        await self._scribe.ask(lambda: None)
        return await asyncio.to_thread(question, self.activity)

    def _write(self, rows: list[Request]) -> None:
        """In the scribe's thread, which alone counts up."""
        self.activity.write(rows)
        self._written += len(rows)


def _size(connection: sqlite3.Connection) -> int:
    """Bytes of pages in use; those of deleted rows are used again before the file grows."""
    pages, free, each = (
        connection.execute(f"PRAGMA {what}").fetchone()[0]
        for what in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * each)
