from __future__ import annotations

import time as clock
from collections.abc import Iterator
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest

from supervisor.config import Mode
from supervisor.host.timetable import current

BERLIN = "Europe/Berlin"
DAY = Mode(start=time(6), timezone=BERLIN)
NIGHT = Mode(start=time(2), timezone=BERLIN, profiles=("large",))
MODES = {"day": DAY, "night": NIGHT}


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("now", "present", "following", "when"),
    [
        ("2026-01-10T00:59:59", "day", "night", "2026-01-10T01:00"),
        ("2026-01-10T01:00:00", "night", "day", "2026-01-10T05:00"),
        ("2026-01-10T04:59:59", "night", "day", "2026-01-10T05:00"),
        ("2026-01-10T05:00:00", "day", "night", "2026-01-11T01:00"),
        ("2026-07-10T00:00:00", "night", "day", "2026-07-10T04:00"),
    ],
)
def test_the_mode_is_the_one_that_began_last(now: str, present: str, following: str, when: str) -> None:
    assert current(MODES, utc(now)) == (present, following, utc(when))


@pytest.mark.parametrize(
    ("now", "present", "following", "when"),
    [
        ("2026-03-29T00:59", "day", "night", "2026-03-29T01:30"),
        ("2026-03-29T01:10", "day", "night", "2026-03-29T01:30"),
        ("2026-03-29T01:30", "night", "day", "2026-03-29T04:00"),
        ("2026-03-29T04:00", "day", "night", "2026-03-30T00:30"),
    ],
)
def test_a_start_in_the_missing_hour_comes_later(now: str, present: str, following: str, when: str) -> None:
    modes = {"day": DAY, "night": Mode(start=time(2, 30), timezone=BERLIN)}
    assert current(modes, utc(now)) == (present, following, utc(when))


@pytest.mark.parametrize("now", ["2026-10-25T00:30", "2026-10-25T01:00", "2026-10-25T01:30"])
def test_a_start_in_the_doubled_hour_counts_once(now: str) -> None:
    modes = {"day": DAY, "night": Mode(start=time(2, 30), timezone=BERLIN)}
    assert current(modes, utc("2026-10-25T00:29")) == ("day", "night", utc("2026-10-25T00:30"))
    assert current(modes, utc(now)) == ("night", "day", utc("2026-10-25T05:00"))


CHANGES = {
    "Berlin forward at 2": ("Europe/Berlin", "2026-03-29"),
    "Berlin back at 3": ("Europe/Berlin", "2026-10-25"),
    "Havana forward at 0": ("America/Havana", "2026-03-08"),
    "Havana back at 1": ("America/Havana", "2026-11-01"),
    "Lord Howe back at 2 by half an hour": ("Australia/Lord_Howe", "2026-04-05"),
    "Lord Howe forward at 2 by half an hour": ("Australia/Lord_Howe", "2026-10-04"),
}


@pytest.mark.parametrize("start", ["00:00", "00:30", "02:15"])
@pytest.mark.parametrize(("zone", "day"), CHANGES.values(), ids=CHANGES)
def test_a_walk_over_a_change_of_clocks(zone: str, day: str, start: str) -> None:
    """From noon to noon, minute by minute: a mode begins when it was said to and no other time, and once."""
    night = Mode(start=time.fromisoformat(start), timezone=zone)
    modes = {"night": night, "day": Mode(start=time(12), timezone=zone)}
    noon = datetime.fromisoformat(day).replace(hour=12, tzinfo=ZoneInfo(zone))
    now, end = (noon - timedelta(days=1)).astimezone(UTC), noon.astimezone(UTC)
    present, following, when = current(modes, now)
    began = []
    while now < end:
        now += timedelta(minutes=1)
        due = now == when
        if due:
            began.append((following, now.astimezone(ZoneInfo(zone))))
        before, expected = present, following if due else present
        present, following, when = current(modes, now)
        assert present == expected, f"{before} turned {present} at {now}"
    (first, at), *rest = began
    assert first == "night"
    assert (at.date(), at.fold) == (noon.date(), 0)
    assert at.time() >= night.start
    assert rest == [("day", noon)]


@pytest.fixture
def host_zone(zone: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", zone)
        clock.tzset()
        yield
    clock.tzset()


@pytest.mark.usefixtures("host_zone")
@pytest.mark.parametrize(
    ("zone", "start", "when"),
    [
        ("Europe/Berlin", "02:30", "2026-03-29T01:30"),
        ("Europe/Berlin", "02:30", "2026-10-25T00:30"),
        ("America/Havana", "00:00", "2026-03-08T05:00"),
        ("America/Havana", "00:00", "2026-11-01T04:00"),
        ("America/Havana", "00:30", "2026-11-01T04:30"),
    ],
)
def test_the_hosts_zone_changes_its_clocks_too(start: str, when: str) -> None:
    modes = {"day": Mode(start=time(12)), "night": Mode(start=time.fromisoformat(start))}
    assert current(modes, utc(when) - timedelta(seconds=1)) == ("day", "night", utc(when))
    assert current(modes, utc(when))[:2] == ("night", "day")


def test_of_two_that_the_missing_hour_throws_together_the_later_counts() -> None:
    early, late = Mode(start=time(2, 30), timezone=BERLIN), Mode(start=time(3, 30), timezone=BERLIN)
    for modes in ({"early": early, "late": late, "day": DAY}, {"late": late, "early": early, "day": DAY}):
        assert current(modes, utc("2026-03-29T01:29")) == ("day", "late", utc("2026-03-29T01:30"))
        assert current(modes, utc("2026-03-29T01:30")) == ("late", "day", utc("2026-03-29T04:00"))


def test_zones_may_differ() -> None:
    modes = {"day": Mode(start=time(6), timezone="UTC"), "night": Mode(start=time(6), timezone="Asia/Tokyo")}
    assert current(modes, utc("2026-01-10T12:00")) == ("day", "night", utc("2026-01-10T21:00"))


def test_one_mode_is_always_on() -> None:
    assert current({"day": DAY}, utc("2026-01-10T03:00")) == ("day", None, None)


def test_no_modes() -> None:
    assert current({}, utc("2026-01-10T03:00")) == (None, None, None)


def test_the_hosts_zone_where_none_is_written() -> None:
    present, following, when = current(
        {"a": Mode(start=time(0)), "b": Mode(start=time(12))}, utc("2026-01-10T03:00")
    )
    assert {present, following} == {"a", "b"}
    assert when is not None
    assert when.utcoffset() is not None
