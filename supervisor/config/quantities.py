"""Durations, sizes and times of day as people write them, turned into seconds, bytes and `datetime.time`; and back."""

from __future__ import annotations

import datetime
import re
from typing import Annotated

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*(ms|s|m|h|d)\s*")
_LONGEST = 1e10
_BYTES = {"B": 1, **{f"{p}iB": 1 << 10 * n for n, p in enumerate("KMGT", 1)}}
_BYTES |= {f"{p}B": 1000**n for n, p in enumerate("KMGT", 1)}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*([KMGT]?i?B)", re.IGNORECASE)
_UNITS = {unit.lower(): factor for unit, factor in _BYTES.items()}


def wrong(what: str, instead: str) -> PydanticCustomError:
    """A validation error that says what to write instead. Braces are pydantic's, so both go in as context."""
    return PydanticCustomError("llmd", "{what}", {"what": what, "instead": instead})


def duration(value: object) -> float:
    """`"1h30m"`, `"45s"`, `90` -> seconds."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < _LONGEST:
        return float(value)
    if isinstance(value, str) and re.fullmatch(f"(?:{_DURATION.pattern})+", value.strip()):
        return sum(float(n) * _SECONDS[unit] for n, unit in _DURATION.findall(value))
    raise wrong(f"{value!r} is not a duration", 'write "30m", "1h30m", "45s" or a number of seconds')


def duration_or_never(value: object) -> float | None:
    """As `duration`; `"off"` and 0 mean never, None."""
    return None if value == "off" or value is None else duration(value) or None


def size(value: object) -> int:
    """`"21 GiB"`, `"24 GB"`, `1048576` -> bytes. iB counts in 1024, B in 1000."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        return int(float(match[1]) * _UNITS[match[2].lower()])
    raise wrong(f"{value!r} is not a size", 'write "21 GiB", "512 MiB", "24 GB" or a number of bytes')


def as_duration(seconds: float) -> str:
    """`5400` -> `"1h30m"`; what `duration` reads as the same."""
    parts, left = "", seconds
    for unit in ("d", "h", "m"):
        count, left = divmod(left, _SECONDS[unit])
        parts += f"{count:.0f}{unit}" if count else ""
    return f"{parts}{left:g}s" if left or not parts else parts


def as_size(size: int) -> str:
    """`19864223744` -> `"18.5 GiB"`; what `size` reads as the same."""
    for unit in ("TiB", "GiB", "TB", "GB", "MiB", "MB", "KiB"):
        if size >= _BYTES[unit] and size * 4 % _BYTES[unit] == 0:
            return f"{size / _BYTES[unit]:.10g} {unit}"
    return f"{size} B"


def time_of_day(value: object) -> datetime.time:
    """`"06:00"` (or TOML's own 06:00:00) -> a naive time."""
    if isinstance(value, datetime.time):
        return value
    if isinstance(value, str) and re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", value):
        return datetime.time.fromisoformat(value)
    raise wrong(f"{value!r} is not a time of day", 'write "HH:MM", such as "06:00"')


Seconds = Annotated[float, BeforeValidator(duration)]
SecondsOrNever = Annotated[float | None, BeforeValidator(duration_or_never)]
Bytes = Annotated[int, BeforeValidator(size)]
TimeOfDay = Annotated[datetime.time, BeforeValidator(time_of_day)]
