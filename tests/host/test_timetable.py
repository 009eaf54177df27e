from __future__ import annotations

from datetime import UTC, datetime, time

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
