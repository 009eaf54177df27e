"""Modes on a whole daemon: shown, planned, forced by a person, given back to the calendar."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator

import pytest

from tests.daemon import Llmd, profile, until


def of(hours: int) -> str:
    """A time of day some hours from now, so that no test runs across a change."""
    return (datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=hours)).strftime("%H:%M")


@pytest.fixture
def llmd() -> Iterator[Llmd]:
    modes = {
        "day": {"start": of(-6), "timezone": "UTC"},
        "night": {"start": of(6), "timezone": "UTC", "profiles": ["big_0"], "warm": ["big_0"]},
    }
    made = Llmd({"small_0": profile("small"), "big_0": profile("big")}, modes=modes)
    try:
        yield made.start()
    finally:
        made.close()


def test_a_person_looks_plans_forces_and_gives_back(llmd: Llmd):
    assert llmd.run("mode").stdout.startswith("mode day, by the calendar; night begins ")
    assert llmd.run("start", "small_0").returncode == 0

    plan = llmd.run("mode", "night", "--plan").stdout.splitlines()
    assert plan[:2] == ["mode night would serve big_0", "stop  small_0: idle"]
    assert plan[2].startswith("start big_0: fits")
    assert llmd.engine("small_0")["state"] == "ready"

    said = llmd.run("mode", "night", "--for", "2h").stdout
    assert said.startswith("mode night until ")
    assert "forced" in said
    until(lambda: llmd.engine("big_0")["state"] == "ready", 20, llmd.text)
    assert llmd.engine("small_0")["state"] == "cold"
    assert json.loads(llmd.run("mode", "--json").stdout)["mode"]["forced"] is True

    assert llmd.run("mode", "auto", "--plan").stdout.startswith("mode day would serve small_0\n")

    llmd.stop()
    llmd.start()
    assert llmd.status()["daemon"]["mode"]["name"] == "night"  # the word outlives the daemon

    assert llmd.run("mode", "auto").stdout.startswith("mode day")
    until(lambda: llmd.engine("big_0")["state"] == "cold", 20, llmd.text)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["mode", "dusk"], 1, "no mode 'dusk'; there are: day, night"),
        (["mode", "dusk", "--plan"], 1, "no mode 'dusk'"),
        (["mode", "--for", "2h"], 2, "name the mode"),
        (["mode", "--for", "0"], 2, "name the mode"),
        (["mode", "night", "--for", "0"], 2, "no time is too short; write 2h"),
        (["mode", "night", "--for", "soon"], 2, "'soon' is not a duration"),
        (["mode", "auto", "--for", "2h"], 2, "--for goes with"),
    ],
)
def test_what_cannot_be_said_about_modes(llmd: Llmd, words: list[str], code: int, says: str):
    done = llmd.run(*words)
    assert done.returncode == code
    assert says in done.stderr
