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
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TextIO

import msgspec

from supervisor.host import journald
from supervisor.host.rollover import Rollover

CAP = 16 << 20
"""Bytes of the file and the older part beside it."""

BACKLOG = 2048
"""Lines that are remembered: for those who look on, and for a disk that does not keep up."""

UNWORDED = 1024
"""Lines that may wait to be put into words."""

PAUSE = 0.1
"""Seconds that a line waits for others, before all are written at once."""

BURST = 20
"""Lines of one class that are written at once, before it is one a second."""

_HEAD = ("timestamp", "level", "event")


class Told(Protocol):
    """Something that has ended, and tells of it in a line which whoever needs it first puts into words."""

    def line(self) -> object:
        """Asked in a thread of the log's. What JSON can hold, with `timestamp`, `level` and `event` first."""


class Recent:
    """The last lines, in order, for those who write them and those who look on."""

    def __init__(self, most: int = BACKLOG) -> None:
        self._told: deque[Told | str] = deque()
        self._lines: deque[str] = deque(maxlen=most)
        self._count = 0
        self._lock = threading.Lock()

    def add(self, told: Told | str) -> None:
        """From any thread, at hardly any cost. `told`: or the line."""
        self._told.append(told)
        if len(self._told) >= UNWORDED:
            with self._lock:
                self._word()

    def since(self, count: int) -> tuple[list[str], int]:
        """What came after the first `count` lines, as far as it is still here, and how many there were in all."""
        with self._lock:
            self._word()
            new = max(0, min(self._count - count, len(self._lines)))
            return list(islice(self._lines, len(self._lines) - new, None)), self._count

    def _word(self) -> None:
        if told := [self._told.popleft() for _ in range(len(self._told))]:
            self._lines += _worded(told)
            self._count += len(told)


RECENT = Recent()
_encoder = msgspec.json.Encoder(enc_hook=str)


def log(event: str, level: str = "INFO", **fields: object) -> None:
    """Write one line: `timestamp` (RFC 3339, UTC), `level`, `event`, then `fields` in the order given.

    Values that JSON cannot hold are written as text. A reader of stderr that has gone does not take the daemon
    along.
    """
    thin({"timestamp": now(), "level": level, "event": event, **fields})


def thin(line: dict[str, object]) -> None:
    """The same, of a line that has all of it."""
    untold = 0 if _kept.thinner is None else _kept.thinner.admit(line)
    if untold is not None:
        tell(_text(line | {"suppressed": untold} if untold else line))


def tell(told: Told | str) -> None:
    """Write its line, whatever came before. `told`: or the line."""
    RECENT.add(told)
    if _kept.keeper is None or _kept.speaker is None:
        _say(f"{_worded([told])[0]}\n".encode())
    elif not _kept.stirred:
        _kept.stirred = True
        _kept.keeper.stirred.set()
        _kept.speaker.stirred.set()


def _worded(told: list[Told | str]) -> list[str]:
    return [one if isinstance(one, str) else _text(one.line()) for one in told]


def _text(line: object) -> str:
    try:
        return msgspec.json.format(_encoder.encode(line), indent=0).decode()
    except (UnicodeEncodeError, TypeError, OverflowError):  # lone surrogates, numbers beyond 64 bits
        return json.dumps(msgspec.to_builtins(line, enc_hook=str), default=str)


def _say(lines: bytes) -> None:
    text, style = lines.decode(), _style(sys.stderr)
    if style == "words":
        text = "".join(f"{words(json.loads(line))}\n" for line in text.split("\n") if line)
    try:
        sys.stderr.write(journald.deliver(text) if style == "journal" else text)
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
    return 0 if _kept.keeper is None else _kept.keeper.lost()


def suppressed() -> int:
    """Lines that were thinned out: the next of their class told how many."""
    return 0 if _kept.thinner is None else _kept.thinner.suppressed


class _Thinner:
    """Of each class of lines BURST at once, then one a second.

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
    """Writes what is new of RECENT, from a thread of its own that sleeps while nothing is."""

    def __init__(self, name: str, write: Callable[[bytes], None], close: Callable[[], None]) -> None:
        self.dropped = 0
        self._write, self._close = write, close
        _, self._had = RECENT.since(0)
        self.stirred, self._ends = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def lost(self) -> int:
        """Lines dropped, and those that came and went while it hangs."""
        had = self._had
        lines, count = RECENT.since(had)
        return self.dropped + count - had - len(lines)

    def close(self) -> None:
        self._ends.set()
        self.stirred.set()
        self._thread.join(1)

    def _run(self) -> None:
        ended = False
        while not ended:
            self.stirred.wait()
            self._ends.wait(PAUSE)
            self.stirred.clear()
            ended = self._ends.is_set()  # set before the last stir, which may be the one forgotten here
            _kept.stirred = False  # what is told from here on stirs it again; the rest, it takes
            self._write_out()
        self._close()

    def _write_out(self) -> None:
        lines, count = RECENT.since(self._had)
        self.dropped += count - self._had - len(lines)
        self._had = count
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
    stirred: bool = False
    """Both writers know that there is something new."""


_kept = _Kept()


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
