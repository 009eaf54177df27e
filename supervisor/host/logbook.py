"""The daemon's own log on stderr: JSON lines, with systemd's priorities in front where its journal listens, and words
for people where a terminal does.

A daemon calls `keep`: from then on what repeats itself is thinned out, and the lines are kept in a file too, so that
`llmd logs` can tell of what came before a crash, whoever started the daemon. A thread of its own writes it: a disk
that hangs costs lines, which are counted, and holds up nobody.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from supervisor.host.rollover import Rollover

CAP = 16 << 20
"""Bytes of the file and the older part beside it."""

BACKLOG = 4096
"""Lines that may wait for the disk."""

BURST = 20
"""Lines of one class that are written at once, before it is one a second."""

PRIORITIES = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3}
"""Level -> syslog's, which systemd takes from a `<N>` before a line."""

_HEAD = ("timestamp", "level", "event")


class Recent:
    """The last lines, for those who look on. `count` is of all that ever were."""

    def __init__(self, most: int = 1000) -> None:
        self._lines: deque[str] = deque(maxlen=most)
        self.count = 0

    def add(self, line: str) -> None:
        self._lines.append(line)
        self.count += 1

    def since(self, count: int) -> list[str]:
        """What came after the first `count` lines, as far as it is still here."""
        new = min(self.count - count, len(self._lines))
        return list(self._lines)[-new:] if new > 0 else []


RECENT = Recent()


def log(event: str, level: str = "INFO", **fields: object) -> None:
    """Write one line: `timestamp` (RFC 3339, UTC), `level`, `event`, then `fields` in the order given.

    Values that JSON cannot hold are written as text. A reader of stderr that has gone does not take the daemon
    along.
    """
    line: dict[str, object] = {"timestamp": _now(), "level": level, "event": event, **fields}
    if _kept.thinner is not None:
        untold = _kept.thinner.admit(line)
        if untold is None:
            return
        line |= {"suppressed": untold} if untold else {}
    text = json.dumps(line, default=str)
    RECENT.add(text)
    if _kept.keeper is not None:
        _kept.keeper.write(text)
    try:
        sys.stderr.write(_shown(line, text) + "\n")
        sys.stderr.flush()
    except (BrokenPipeError, ValueError):
        return


def words(line: Mapping[str, Any]) -> str:
    """A line as a person reads it: local time, what is not ordinary, the message, then what else there is."""
    at = datetime.fromisoformat(str(line["timestamp"])).astimezone().strftime("%H:%M:%S")
    level = "" if line["level"] == "INFO" else f"{line['level']} "
    message = f": {line['message']}" if line.get("message") else ""
    rest = {name: value for name, value in line.items() if name not in (*_HEAD, "message")}
    facts = "".join(f" {name}={value}" for name, value in rest.items() if value not in (None, "", [], {}))
    return f"{at} {level}{line['event']}{message}{facts}"


def keep(path: Path) -> None:
    """From now on keep the lines at `path`, and thin out those that repeat themselves."""
    _kept.keeper, _kept.thinner = _Keeper(path), _Thinner()


def close() -> None:
    """Once all that can be written is; waits a second for a disk that hangs, not longer."""
    if _kept.keeper is not None:
        _kept.keeper.close()
    _kept.keeper = _kept.thinner = None


def dropped() -> int:
    """Lines that the file should have and has not."""
    return 0 if _kept.keeper is None else _kept.keeper.dropped


def suppressed() -> int:
    """Lines that were thinned out: the next of their class told how many."""
    return 0 if _kept.thinner is None else _kept.thinner.suppressed


class _Thinner:
    """Of each class of lines BURST at once, then one a second. Requests that ended well are all told.

    A class is an event of one level, error, source and profile: all of them names of ours, so they are few. What
    comes from nobody in particular has no burst.
    """

    def __init__(self) -> None:
        self.suppressed = 0
        self._lock = threading.Lock()
        self._classes: dict[tuple[object, ...], tuple[float, float, int]] = {}
        """Class -> (lines it may have, at this monotonic time, lines untold since)."""

    def admit(self, line: Mapping[str, object]) -> int | None:
        """How many of its class went untold before this line; None where this one does, too."""
        if line["event"] == "request" and line["level"] == "INFO" and "error" not in line:
            return 0
        kind = tuple(line.get(name) for name in ("event", "level", "code", "source", "profile"))
        burst = 1 if line["event"] == "request" and line.get("source") is None else BURST
        with self._lock:
            return self._take(kind, burst, time.monotonic())

    def _take(self, kind: tuple[object, ...], burst: int, now: float) -> int | None:
        left, at, untold = self._classes.get(kind, (float(burst), now, 0))
        left = min(float(burst), left + now - at)
        if left < 1:
            self.suppressed += 1
            self._classes[kind] = left, now, untold + 1
            return None
        self._classes[kind] = left - 1, now, 0
        return untold


class _Keeper:
    """Lines in from any thread, a file out from one."""

    def __init__(self, path: Path) -> None:
        self.dropped = 0
        self._lines = Rollover(path, CAP)
        self._waiting: queue.Queue[str | None] = queue.Queue(BACKLOG)
        self._thread = threading.Thread(target=self._run, name="llmd-log", daemon=True)
        self._thread.start()

    def write(self, text: str) -> None:
        try:
            self._waiting.put_nowait(text)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        try:
            self._waiting.put(None, timeout=1)
        except queue.Full:
            return
        self._thread.join(1)

    def _run(self) -> None:
        while (text := self._waiting.get()) is not None:
            try:
                self._lines.append(text.encode() + b"\n")
            except OSError:  # said nowhere: saying it would be one more line for this disk
                self.dropped += 1
                self._lines.close()
        self._lines.close()


@dataclass(slots=True)
class _Kept:
    """Of this process, as its stderr is."""

    keeper: _Keeper | None = None
    thinner: _Thinner | None = None


_kept = _Kept()


def _shown(line: Mapping[str, Any], text: str) -> str:
    if sys.stderr.isatty():
        return words(line)
    return f"<{PRIORITIES.get(line['level'], 6)}>{text}" if _is_journal() else text


def _is_journal() -> bool:
    """Whether stderr is systemd's journal, which says so by the socket's device and inode."""
    told = os.environ.get("JOURNAL_STREAM")
    if not told:
        return False
    try:
        found = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return told == f"{found.st_dev}:{found.st_ino}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
