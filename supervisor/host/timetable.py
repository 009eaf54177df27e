"""The calendar: which mode a moment belongs to, and when the next one begins. The only importer of APScheduler.

Every mode begins once a day, so the mode of a moment is the one that began last. On the day clocks go forward
a start inside the missing hour comes as much later; on the day they go back one inside the doubled hour counts
from its first coming.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

from apscheduler.triggers.cron import CronTrigger

from supervisor.config import Mode, Profile

_BACK = timedelta(days=2)
"""More than a day and the longest change of clocks: every mode has begun within it."""

_TICK = timedelta(microseconds=1)


def current(modes: Mapping[str, Mode], now: datetime) -> tuple[str | None, str | None, datetime | None]:
    """(mode now, mode next, when that begins). `now` is aware. All None without modes; one mode has no next. Times are UTC."""
    if not modes:
        return None, None, None
    # The missing hour can make two begin at once: the one that is written later then counts, here and below.
    latest_first = sorted(modes, key=lambda name: modes[name].start, reverse=True)
    spans = {name: _span(modes[name], now) for name in latest_first}
    present = max(spans, key=lambda name: spans[name][0])
    others = [name for name in spans if name != present]
    if not others:
        return present, None, None
    following = min(others, key=lambda name: spans[name][1])
    return present, following, spans[following][1]


def _span(mode: Mode, now: datetime) -> tuple[datetime, datetime]:
    """The last start at or before `now` and the first after it."""
    zone = ZoneInfo(mode.timezone) if mode.timezone else None
    start = mode.start
    # Asked in the zone itself, the trigger gives a start in the doubled hour twice and may skip one at midnight:
    # it is asked for times on the wall, which know no change of clocks.
    trigger = CronTrigger(hour=start.hour, minute=start.minute, second=start.second, timezone=UTC)
    wall: datetime = now.astimezone(zone).replace(tzinfo=UTC) - _BACK
    last = following = _moment(wall, zone)
    while following <= now:
        wall = trigger.get_next_fire_time(None, wall + _TICK)  # a daily trigger never runs out
        last, following = following, _moment(wall, zone)
    return last, following


def _moment(wall: datetime, zone: ZoneInfo | None) -> datetime:
    """When a clock on the wall first shows this, or would if it were not set forward. No zone is the host's."""
    # By the timestamp: in the host's missing hour `astimezone` takes the offset that comes after it.
    return datetime.fromtimestamp(wall.replace(tzinfo=zone).timestamp(), UTC)


# Warming


def next_warming(profiles: Mapping[str, Profile], now: datetime) -> datetime | None:
    """When, after `now`, the next profile is to be warm."""
    return min((_after(line, now) for line in _lines(profiles.values())), default=None)


def due(profiles: Mapping[str, Profile], since: datetime, now: datetime) -> list[str]:
    """The profiles whose time to be warm came after `since`, up to `now`."""
    return [name for name, p in profiles.items() if any(_after(line, since) <= now for line in p.warm)]


def _lines(profiles: Iterable[Profile]) -> set[str]:
    return {line for profile in profiles for line in profile.warm}


def _after(line: str, now: datetime) -> datetime:
    """The first moment after `now` that a line of cron names, on this host's clock."""
    wall: datetime = now.astimezone().replace(tzinfo=UTC)
    moment = now
    while moment <= now:
        wall = _cron(line).get_next_fire_time(None, wall + _TICK)
        moment = _moment(wall, None)
    return moment


@cache
def _cron(line: str) -> CronTrigger:
    """A trigger on the wall. Weekdays are named: APScheduler counts from Monday, cron from Sunday."""
    minute, hour, day, month, weekday = line.split()
    fields = {"minute": minute, "hour": hour, "day": day, "month": month}
    return CronTrigger(**fields, day_of_week=_weekdays(weekday), timezone=UTC)


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
