"""Changes of mode as plain histories."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from supervisor.config import Mode
from supervisor.core import calendar, events, orders
from supervisor.core.devices import GIB, Holder
from supervisor.core.lifecycle import State
from supervisor.errors import NotAvailable
from tests.core.world import World, config, profile

LLAMA = profile("llama_0", 0)
CODER = profile("coder_1", 1)
BIG = profile("big_dual", 0, 1, gib=22)


def two_modes(**night: Any) -> World:
    """Day: llama and coder. Night: the big one alone, started when the night begins."""
    fields = {"start": datetime.time(2), "profiles": ("big_dual",), "warm": ("big_dual",), "drain": 60.0}
    modes = {"day": Mode(start=datetime.time(6)), "night": Mode.model_validate(fields | night)}
    world = World(config(LLAMA, CODER, BIG, modes=modes))
    world.send(events.ModeChanged("day", "night", "02:00", next_in=3600))
    return world


def test_the_night_waits_for_who_is_busy_then_starts_its_model_before_anybody_asks():
    world = two_modes()
    world.up("llama_0")
    world.up("coder_1")
    busy = world.ask("llama")
    world.send(events.ModeChanged("night", "day", "06:00", next_in=14400))
    assert world.state("coder_1") is State.COLD  # idle: stopped at once
    assert world.state("llama_0") is State.DRAINING
    world.leave(busy)
    assert world.state("big_dual") is State.STARTING
    world.ready("big_dual")
    assert world.fleet.transition is None
    assert "mode_ready" in world.notes()


def test_a_mode_has_begun_though_what_it_warmed_made_room_for_another_in_the_same_moment():
    """An operator's start waited for the card: the engine was ready, and went again before anybody looked."""
    world = two_modes(profiles=("big_dual", "llama_0"))
    world.send(events.ModeChanged("night", "day", "06:00", next_in=14400))
    assert world.state("big_dual") is State.STARTING
    world.send(events.StartAsked("t", "llama_0"))
    world.ready("big_dual")
    assert world.state("big_dual") is not State.READY
    assert world.fleet.transition is None
    assert world.fleet.mode.name == "night"
    assert world.notes().count("mode_ready") == 2


def test_a_mode_has_begun_though_what_was_warm_already_makes_room_in_the_same_moment():
    """Patience with a busy engine ended as the mode began: it was as warm as the mode wants it."""
    modes = {"day": Mode(start=datetime.time(6)), "night": Mode(start=datetime.time(2), warm=("llama_0",))}
    world = World(config(LLAMA, profile("coder_0", 0), modes=modes))
    world.send(events.ModeChanged("day"))
    world.up("llama_0")
    world.ask("llama")
    world.ask("coder")
    world.wait(55)
    world.now += 10
    world.send(events.ModeChanged("night"))
    assert world.state("llama_0") is State.DRAINING
    assert world.fleet.transition is None
    assert world.fleet.mode.name == "night"


def test_who_is_busy_past_the_drain_is_cut():
    world = two_modes(drain=60.0)
    world.up("llama_0")
    world.ask("llama")
    world.send(events.ModeChanged("night", "day", "06:00"))
    world.wait(59)
    assert world.state("llama_0") is State.DRAINING
    world.wait(2)
    assert world.state("llama_0") is State.COLD


def test_a_model_of_the_other_mode_is_refused_with_the_time_it_comes():
    world = two_modes()
    error = world.refused[world.ask("big")]
    assert isinstance(error, NotAvailable)
    assert error.retry_after == pytest.approx(3600)
    assert "is not served in mode day; it comes back when mode night starts, 02:00" in error.message


def test_a_request_waits_for_a_mode_that_begins_soon():
    world = two_modes()
    world.wait(3500)
    lease = world.ask("big")
    assert lease not in world.refused
    world.wait(95)
    assert world.state("big_dual") is State.COLD  # not before its time
    world.send(events.ModeChanged("night", "day", "06:00"))
    world.ready("big_dual")
    assert world.granted[lease] == "big_dual"


def test_waiters_of_the_mode_that_ends_hear_so():
    world = two_modes()
    lease = world.ask("llama")
    world.send(events.ModeChanged("night", "day", "06:00", next_in=14400))
    error = world.refused[lease]
    assert isinstance(error, NotAvailable)
    assert error.retry_after == pytest.approx(14400)


def test_a_big_model_that_fails_brings_the_day_back():
    world = two_modes()
    world.up("llama_0")
    world.send(events.ModeChanged("night", "day", "06:00", next_in=14400))
    world.crash("big_dual", "ValueError: No available memory for the cache blocks")
    assert world.fleet.mode.name == "day"
    assert "big_dual does not come up" in (world.fleet.rolled_back or "")
    assert "mode_rolled_back" in world.notes()
    lease = world.ask("llama")
    world.ready("llama_0")
    assert lease in world.granted
    error = world.refused[world.ask("big")]
    assert isinstance(error, NotAvailable)
    assert "could not begin" in str(error)


def test_a_neighbour_on_the_card_is_waited_for_but_not_for_ever():
    world = two_modes(within=600.0)
    world.foreign[0] = (Holder(4242, 6 * GIB, "blender", "alice"),)
    world.read()
    world.send(events.ModeChanged("night", "day", "06:00"))
    world.wait(590)
    assert (world.fleet.mode.name, world.state("big_dual")) == ("night", State.COLD)
    world.wait(20)
    assert world.fleet.mode.name == "day"
    assert "was not ready in time" in (world.fleet.rolled_back or "")


def test_a_neighbour_that_leaves_in_time_lets_the_night_begin():
    world = two_modes(within=600.0)
    world.foreign[0] = (Holder(4242, 6 * GIB, "blender", "alice"),)
    world.read()
    world.send(events.ModeChanged("night", "day", "06:00"))
    world.foreign[0] = ()
    world.wait(90)  # it counts at its highest of the last minute
    world.ready("big_dual")
    assert world.fleet.transition is None
    assert world.fleet.mode.name == "night"


def test_the_next_change_of_the_calendar_tries_anew():
    world = two_modes()
    world.send(events.ModeChanged("night", "day", "06:00"))
    world.crash("big_dual", "ValueError: No available memory for the cache blocks")
    world.send(events.ModeChanged("day", "night", "02:00"))
    assert world.fleet.rolled_back is None


def test_a_mode_without_warm_profiles_only_changes_who_may_ask():
    world = two_modes(warm=())
    world.up("llama_0")
    world.send(events.ModeChanged("night", "day", "06:00"))
    assert world.state("llama_0") is State.COLD
    assert world.fleet.transition is None
    world.ask("big")
    assert world.state("big_dual") is State.STARTING


def test_a_profile_that_both_modes_have_is_left_alone():
    world = two_modes(profiles=("big_dual", "coder_1"), warm=())
    world.send(events.ModeChanged("night", "day", "06:00"))
    world.up("coder_1")
    world.send(events.ModeChanged("night", "day", "06:00"))  # told again: nothing changes
    assert world.state("coder_1") is State.READY


def test_the_plan_tells_without_touching():
    world = two_modes()
    world.up("llama_0")
    world.up("coder_1")
    world.ask("llama")
    found = calendar.plan(world.fleet, "night")
    assert found["drains"] == [{"profile": "llama_0", "in_flight": 1}]
    assert found["stops"] == ["coder_1"]
    assert found["starts"] == [{"profile": "big_dual", "verdict": "fits", "fits": True, "seconds": 60.0}]
    assert world.state("coder_1") is State.READY


def test_weights_are_read_ahead_of_the_mode_that_warms_them():
    world = two_modes()
    read = orders.ReadAhead("big_dual")
    world.wait(3600 - calendar.AHEAD - 1)
    assert read not in world.log
    world.wait(2)
    assert world.log.count(read) == 1
    world.wait(60)
    assert world.log.count(read) == 1


def test_a_profile_is_warmed_when_the_calendar_says_so():
    world = two_modes()
    world.send(events.WarmAsked("coder_1"))
    assert world.state("coder_1") is State.STARTING
    world.send(events.WarmAsked("big_dual"))  # not of this mode
    assert world.state("big_dual") is State.COLD
