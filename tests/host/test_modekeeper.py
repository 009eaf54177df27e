"""Who says which mode it is: the calendar, or a person, whose word outlives the daemon."""

from __future__ import annotations

import asyncio
import datetime
from pathlib import Path

import pytest

from supervisor.config import Config, Mode, Profile, Server
from supervisor.core import events
from supervisor.core.events import Event
from supervisor.host import timetable
from supervisor.host.modekeeper import Forced, ModeKeeper, Present, present

UTC = datetime.UTC
NOON = datetime.datetime(2026, 11, 23, 12, tzinfo=UTC)
MODES = {
    "day": Mode(start=datetime.time(6), timezone="UTC"),
    "night": Mode(start=datetime.time(2), timezone="UTC", profiles=("big_0",)),
}


def configured(state: Path = Path("/nowhere"), **profiles: Profile) -> Config:
    return Config(path=Path("llmd.toml"), modes=MODES, profiles=profiles, server=Server(state_dir=state))


def profile(*warm: str) -> Profile:
    return Profile(name="big_0", model="big", weights="w", gpus=(0,), warm=warm)


def test_without_a_word_the_calendar_holds():
    found = present(configured(), None, NOON)
    assert (found.mode, found.following, found.forced) == ("day", "night", False)
    assert found.when == datetime.datetime(2026, 11, 24, 2, tzinfo=UTC)


def test_a_forced_mode_holds_for_its_time_and_tells_what_follows():
    later = NOON + datetime.timedelta(hours=2)
    assert present(configured(), Forced("night", later), NOON) == Present("night", "day", later, True)
    assert present(configured(), Forced("night", later), later).mode == "day"
    assert present(configured(), Forced("night"), NOON) == Present("night", None, None, True)


async def test_a_word_is_told_at_once_and_outlives_the_keeper(tmp_path: Path):
    told: list[Event] = []
    keeper = ModeKeeper(lambda: configured(tmp_path), told.append)
    await keeper.force("night", None)
    assert told == [events.ModeChanged("night", None, None, None, forced=True)]

    later: list[Event] = []
    successor = ModeKeeper(lambda: configured(tmp_path), later.append)
    await successor.open()
    assert later == [events.ModeChanged("night", None, None, None, forced=True)]
    await successor.release()
    assert isinstance(later[-1], events.ModeChanged)
    assert later[-1].forced is False
    assert not (tmp_path / "mode.json").exists()


async def test_words_that_come_together_end_alike_in_memory_and_on_disk(tmp_path: Path):
    keeper = ModeKeeper(lambda: configured(tmp_path), lambda _: None)
    await asyncio.gather(*(keeper.force(mode, None) for mode in ("night", "day") * 20))
    later = ModeKeeper(lambda: configured(tmp_path), lambda _: None)
    assert later._read() == keeper.forced == Forced("day")


async def test_a_mode_that_went_while_its_word_was_written_is_not_held(tmp_path: Path):
    config = [configured(tmp_path)]
    keeper = ModeKeeper(lambda: config[0], lambda _: None)
    forcing = asyncio.create_task(keeper.force("night", None))
    await asyncio.sleep(0)  # it writes
    config[0] = config[0].model_copy(update={"modes": {"day": config[0].modes["day"]}})
    await forcing
    assert keeper.forced is None


async def test_a_damaged_word_is_said_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "mode.json").write_text('{"mode": "ni')
    await ModeKeeper(lambda: configured(tmp_path), lambda _: None).open()
    assert "mode_unreadable" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "hits"),
    [
        ("0 8 * * 1-5", ["Mon", "Tue", "Wed", "Thu", "Fri"]),
        ("0 8 * * 0", ["Sun"]),
        ("0 8 * * 7", ["Sun"]),
        ("0 8 * * sat,sun", ["Sun", "Sat"]),
        ("0 8 * * 5-1", ["Sun", "Mon", "Fri", "Sat"]),
        ("0 8 * * */2", ["Sun", "Tue", "Thu", "Sat"]),
        ("0 8 * * *", ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"]),
    ],
)
def test_weekdays_are_crons(line: str, hits: list[str]):
    sunday = datetime.datetime(2026, 11, 22, tzinfo=datetime.datetime.now().astimezone().tzinfo)
    days = [sunday + datetime.timedelta(days=n) for n in range(7)]
    found = [
        day.strftime("%a")
        for day in days
        if timetable.due({"big_0": profile(line)}, day, day + datetime.timedelta(hours=23))
    ]
    assert found == hits


def test_a_warming_is_due_once():
    profiles = {"big_0": profile("30 7 * * *"), "small_0": profile()}
    at = timetable.next_warming(profiles, NOON)
    assert at is not None
    assert timetable.due(profiles, at - datetime.timedelta(seconds=1), at) == ["big_0"]
    assert timetable.due(profiles, at, at + datetime.timedelta(hours=1)) == []
    assert timetable.next_warming({"small_0": profile()}, NOON) is None
