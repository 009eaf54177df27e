"""Numbers in a request's query."""

from __future__ import annotations

from aiohttp import web

from supervisor.errors import BadRequest

LONGEST = 366 * 86400.0
"""Seconds of a duration that anybody may give."""

_UNITS = {"seconds": 1.0, "hours": 3600.0}


def limit(request: web.Request, most: int) -> int:
    """How many to answer with. Raises BadRequest."""
    given = request.query.get("limit", "100")
    if not given.isdecimal() or len(given) > 9 or not 0 < int(given) <= most:
        raise BadRequest(f"limit={given!r} is not 1 to {most}", param="limit")
    return int(given)


def duration(request: web.Request, name: str, unit: str = "seconds") -> float | None:
    """Seconds, given in `unit`; None where it is absent. Raises BadRequest."""
    given = request.query.get(name)
    if given is None:
        return None
    try:
        seconds = float(given) * _UNITS[unit]
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < LONGEST:
        raise BadRequest(f"{name}={given!r} is no number of {unit}", param=name)
    return seconds
