"""The daemon's own log: one JSON object a line on stderr, where systemd's journal picks it up."""

from __future__ import annotations

import json
import sys
from collections import deque
from datetime import UTC, datetime


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
    line = {"timestamp": _now(), "level": level, "event": event, **fields}
    text = json.dumps(line, default=str)
    RECENT.add(text)
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except (BrokenPipeError, ValueError):
        return


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
