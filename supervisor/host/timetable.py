"""The calendar: which mode a moment belongs to, and when the next one begins. The only importer of APScheduler.

Every mode begins once a day, so the mode of a moment is the one that began last. On the day clocks go forward
a start inside the missing hour comes as much later; on the day they go back one inside the doubled hour counts
from its first coming.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from apscheduler.triggers.cron import CronTrigger

from supervisor.config import Mode

_BACK = timedelta(days=2)
"""More than a day and the longest change of clocks: every mode has begun within it."""

_TICK = timedelta(microseconds=1)

_DOUBLED = timedelta(hours=2)
"""Past the hour that comes twice, so that a start inside it counts once."""


def current(modes: Mapping[str, Mode], now: datetime) -> tuple[str | None, str | None, datetime | None]:
    """(mode now, mode next, when that begins). `now` is aware. All None without modes; one mode has no next. Times are UTC."""
    if not modes:
        return None, None, None
    spans = {name: _span(mode, now) for name, mode in modes.items()}
    present = max(spans, key=lambda name: spans[name][0])
    others = spans.keys() - {present}
    if not others:
        return present, None, None
    following = min(others, key=lambda name: spans[name][1])
    return present, following, spans[following][1]


def _span(mode: Mode, now: datetime) -> tuple[datetime, datetime]:
    """The last start at or before `now` and the first after it, in UTC."""
    zone = ZoneInfo(mode.timezone) if mode.timezone else None
    start = mode.start
    # The trigger is asked in wall-clock time, which knows no change of clocks: stepped through a doubled hour
    # in its own zone it can give one start again and again.
    trigger = CronTrigger(hour=start.hour, minute=start.minute, second=start.second, timezone=UTC)
    wall: datetime = now.astimezone(zone).replace(tzinfo=UTC) - _BACK
    starts: list[datetime] = []
    while not starts or starts[-1] <= now:
        wall = trigger.get_next_fire_time(None, wall + _TICK)
        starts.append(_real(wall, zone))
    return starts[-2], starts[-1]


def _real(wall: datetime, zone: ZoneInfo | None) -> datetime:
    """UTC, for two moments of one zone are compared by their wall-clock times. Without a zone it is the host's."""
    return wall.replace(tzinfo=zone).astimezone(UTC)
