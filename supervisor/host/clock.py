"""This host's clock: what it showed at a moment, and whether anybody keeps it right (the kernel knows: adjtimex)."""

from __future__ import annotations

import ctypes
import time

_UNSYNCHRONISED = 0x40
"""STA_UNSYNC of linux/timex.h: set until a time service says that the clock is right, and when it falls silent."""

_SIZE = 512
"""Bytes, more than any struct timex."""


def on_the_wall(monotonic: float) -> float:
    """Seconds since 1970 of a monotonic moment, by what the clock shows now."""
    return time.time() - (time.monotonic() - monotonic)


def is_synchronised() -> bool | None:
    """None where the kernel does not tell. Changes nothing: no mode is set."""
    buffer = ctypes.create_string_buffer(_SIZE)
    try:
        if ctypes.CDLL(None).adjtimex(buffer) < 0:
            return None
    except (OSError, AttributeError):
        return None
    return not _status(buffer.raw) & _UNSYNCHRONISED


def _status(timex: bytes) -> int:
    """Behind `modes` (an int, padded to a long) and three longs: offset, freq, maxerror, then esterror."""
    at = 5 * ctypes.sizeof(ctypes.c_long)
    return int.from_bytes(timex[at : at + 4], "little")
