"""The daemon's own log: one JSON object a line on stderr, where systemd's journal picks it up."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime


def log(event: str, level: str = "INFO", **fields: object) -> None:
    """Write one line: `timestamp` (RFC 3339, UTC), `level`, `event`, then `fields` in the order given.

    Values that JSON cannot hold are written as text. A reader of stderr that has gone does not take the daemon
    along.
    """
    line = {"timestamp": _now(), "level": level, "event": event, **fields}
    try:
        sys.stderr.write(json.dumps(line, default=str) + "\n")
        sys.stderr.flush()
    except (BrokenPipeError, ValueError):
        return


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
