"""The calendar: which mode a moment belongs to, and when the next one begins. The only importer of APScheduler.

Every mode begins once a day, so the mode of a moment is the one that began last. On the day clocks go forward
a start inside the missing hour comes as much later; on the day they go back one inside the doubled hour counts
from its first coming.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from apscheduler.triggers.cron import CronTrigger

from supervisor.config import Mode

_BACK = timedelta(days=2)
"""More than a day and the longest change of clocks: every mode has begun within it."""

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
    """The last start at or before `now` and the first after it."""
    start = mode.start
    trigger = CronTrigger(hour=start.hour, minute=start.minute, second=start.second, timezone=mode.timezone)
    last = following = _next(trigger, now - _BACK)
    while following <= now:
        last, following = following, _next(trigger, following + _DOUBLED)
    return last, following


def _next(trigger: CronTrigger, now: datetime) -> datetime:
    fire: datetime = trigger.get_next_fire_time(None, now)  # a daily trigger never runs out
    return fire.astimezone(UTC)  # times in a doubled or missing hour compare rightly in UTC alone
