"""The daemon's own log on stderr: JSON lines, with fields to search by where systemd's journal listens, and words for
people where a terminal does.

A daemon calls `keep`: from then on what repeats itself is thinned out, and the lines are kept in a file too, so that
`llmd logs` can tell of what came before a crash, whoever started the daemon. Threads of their own write both, many
lines at once: a disk, or a reader of stderr, that hangs costs lines, which are counted, and holds up nobody.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO

import msgspec

from supervisor.host import journald
from supervisor.host.rollover import Rollover

CAP = 16 << 20
"""Bytes of the file and the older part beside it."""

BACKLOG = 4096
"""Lines that may wait for the disk."""

PAUSE = 0.05
"""Seconds that a line waits for others, before all are written at once."""

BURST = 20
"""Lines of one class that are written at once, before it is one a second."""

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
_encoder = msgspec.json.Encoder(enc_hook=str)


def log(event: str, level: str = "INFO", **fields: object) -> None:
    """Write one line: `timestamp` (RFC 3339, UTC), `level`, `event`, then `fields` in the order given.

    Values that JSON cannot hold are written as text. A reader of stderr that has gone does not take the daemon
    along.
    """
    tell({"timestamp": now(), "level": level, "event": event, **fields})


def tell(line: dict[str, object]) -> None:
    """The same, of a line that has all of it."""
    if _kept.thinner is not None:
        untold = _kept.thinner.admit(line)
        if untold is None:
            return
        line |= {"suppressed": untold} if untold else {}
    text = _text(line)
    RECENT.add(text)
    shown = _shown(line, text)
    if _kept.keeper is None or _kept.speaker is None:
        _say(f"{shown}\n".encode())
    else:
        _kept.keeper.put(text)
        _kept.speaker.put(shown)


def _text(line: Mapping[str, object]) -> str:
    try:
        return msgspec.json.format(_encoder.encode(line), indent=0).decode()
    except (UnicodeEncodeError, TypeError, OverflowError):  # lone surrogates, numbers beyond 64 bits
        return json.dumps(line, default=str)


def _say(lines: bytes) -> None:
    text = lines.decode()
    try:
        sys.stderr.write(journald.deliver(text) if _style(sys.stderr) == "journal" else text)
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
    lines = Rollover(path, CAP)
    _kept.keeper = _Writer("llmd-log", lines.append, lines.close)
    _kept.speaker = _Writer("llmd-stderr", _say, lambda: None)
    _kept.thinner = _Thinner()


def close() -> None:
    """Once all that can be written is; waits a second for what hangs, not longer."""
    for writer in (_kept.speaker, _kept.keeper):
        if writer is not None:
            writer.close()
    _kept.keeper = _kept.speaker = _kept.thinner = None


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


class _Writer:
    """Lines in from any thread, out from one. It sleeps while there are none."""

    def __init__(self, name: str, write: Callable[[bytes], None], close: Callable[[], None]) -> None:
        self.dropped = 0
        self._write, self._close = write, close
        self._waiting: deque[str] = deque()
        self._stirred, self._ends = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, text: str) -> None:
        if len(self._waiting) >= BACKLOG:
            self.dropped += 1
            return
        self._waiting.append(text)
        if not self._stirred.is_set():
            self._stirred.set()

    def close(self) -> None:
        self._ends.set()
        self._stirred.set()
        self._thread.join(1)

    def _run(self) -> None:
        ended = False
        while not ended:
            self._stirred.wait()
            ended = self._ends.wait(PAUSE)
            self._stirred.clear()
            self._write_out([self._waiting.popleft() for _ in range(len(self._waiting))])
        self._close()

    def _write_out(self, lines: list[str]) -> None:
        try:
            if lines:
                self._write(("\n".join(lines) + "\n").encode(errors="replace"))
        except OSError:  # said nowhere: saying it would be one more line for this disk
            self.dropped += len(lines)
            self._close()


@dataclass(slots=True)
class _Kept:
    """Of this process, as its stderr is."""

    keeper: _Writer | None = None
    speaker: _Writer | None = None
    thinner: _Thinner | None = None


_kept = _Kept()


def _shown(line: Mapping[str, Any], text: str) -> str:
    return words(line) if _style(sys.stderr) == "words" else text


@lru_cache(maxsize=1)
def _style(stderr: TextIO) -> str:
    """Looked at once: what stderr is does not change."""
    return "words" if stderr.isatty() else "journal" if journald.listens() else "json"


def now() -> str:
    """RFC 3339, UTC, in milliseconds."""
    seconds, rest = divmod(time.time_ns() // 1_000_000, 1000)
    return f"{_second(seconds)}.{rest:03d}Z"


@lru_cache(maxsize=1)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
