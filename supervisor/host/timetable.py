"""The calendar: which mode a moment belongs to, and when the next one begins. The only importer of APScheduler.

Every mode begins once a day, so the mode of a moment is the one that began last. On the day clocks go forward
a start inside the missing hour comes as much later; on the day they go back one inside the doubled hour counts
from its first coming.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache

from apscheduler.triggers.cron import CronTrigger

from supervisor.config import Mode, Profile

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


# Warming


def next_warming(profiles: Mapping[str, Profile], now: datetime) -> datetime | None:
    """When, after `now`, the next profile is to be warm."""
    times = [_next(_cron(line), now) for line in _lines(profiles.values())]
    return min(times, default=None)


def due(profiles: Mapping[str, Profile], since: datetime, now: datetime) -> list[str]:
    """The profiles whose time to be warm came after `since`, up to `now`."""
    moment = since + timedelta(microseconds=1)
    return [
        name
        for name, profile in profiles.items()
        if any(_next(_cron(line), moment) <= now for line in profile.warm)
    ]


def _lines(profiles: Iterable[Profile]) -> set[str]:
    return {line for profile in profiles for line in profile.warm}


@cache
def _cron(line: str) -> CronTrigger:
    """A trigger in the host's time zone. Weekdays are named: APScheduler counts from Monday, cron from Sunday."""
    minute, hour, day, month, weekday = line.split()
    return CronTrigger(minute=minute, hour=hour, day=day, month=month, day_of_week=_weekdays(weekday))


def _weekdays(field: str) -> str:
    if field == "*":
        return field
    found: list[str] = []
    for part in field.lower().split(","):
        span, _, step = part.partition("/")
        first, _, last = span.partition("-")
        if first == "*":
            first, last = "0", "6"
        begin = _weekday(first)
        end = _weekday(last) if last else (6 if step else begin)
        end += 7 if end < begin else 0
        found += [_DAYS[number % 7] for number in range(begin, end + 1, int(step or 1))]
    return ",".join(dict.fromkeys(found))


_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


def _weekday(text: str) -> int:
    return int(text) if text.isdecimal() else _DAYS.index(text)
