"""Changes of mode as plain histories."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest

from supervisor.cli.modes import told
from supervisor.config import Mode, Profile
from supervisor.core import calendar, events, orders
from supervisor.core.devices import GIB, Holder, Survey
from supervisor.core.lifecycle import State
from supervisor.core.status import describe
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


def test_an_adapter_of_the_other_mode_comes_back_with_its_model():
    modes = {
        "day": Mode(start=datetime.time(6), profiles=("llama_0",)),
        "night": Mode(start=datetime.time(2), profiles=("big_dual",)),
    }
    world = World(config(profile("llama_0", 0, lora={"french": "./french"}), BIG, modes=modes))
    world.send(events.ModeChanged("night", "day", "06:00", next_in=3600))
    error = world.refused[world.ask("french")]
    assert isinstance(error, NotAvailable)
    assert (error.retry_after, "comes back when mode day starts, 06:00" in error.message) == (3600, True)


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


def test_a_crash_at_the_start_is_tried_again_before_the_night_is_given_up():
    world = two_modes()
    world.up("llama_0")
    world.send(events.ModeChanged("night", "day", "06:00", next_in=14400))
    world.crash("big_dual", "something went wrong")
    assert world.state("big_dual") is State.BACKOFF
    assert (world.fleet.mode.name, world.fleet.rolled_back) == ("night", None)
    world.wait(15)
    assert world.state("big_dual") is State.STARTING
    world.ready("big_dual")
    assert (world.fleet.transition, world.fleet.mode.name) == (None, "night")
    assert "mode_rolled_back" not in world.notes()


def test_a_big_model_that_keeps_crashing_brings_the_day_back_once_it_is_given_up():
    world = two_modes()
    world.send(events.ModeChanged("night", "day", "06:00", next_in=14400))
    crashes = 0
    while world.fleet.mode.name == "night" and crashes < 20:
        if world.state("big_dual") is State.STARTING:
            world.crash("big_dual", "something went wrong")
            crashes += 1
        world.wait(5)
    assert (crashes, world.state("big_dual")) == (5, State.IMPOSSIBLE)
    assert "failed 5 times in 30 min, given up" in (world.fleet.rolled_back or "")


def test_a_big_model_whose_next_try_comes_too_late_brings_the_day_back():
    world = two_modes(within=200.0)
    world.send(events.ModeChanged("night", "day", "06:00", next_in=14400))
    world.crash("big_dual", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.")
    world.wait(195)
    assert (world.fleet.mode.name, world.state("big_dual")) == ("night", State.BACKOFF)
    world.wait(10)
    assert world.fleet.mode.name == "day"
    assert "was not ready in time" in (world.fleet.rolled_back or "")
    world.wait(300)
    assert world.state("big_dual") is State.COLD, "nobody wants it by day"


@pytest.mark.parametrize("crashed", ["serving by day", "loading at night"])
def test_what_waits_to_be_restarted_stays_down_in_a_mode_that_does_not_have_it(crashed: str):
    world = two_modes()
    if crashed == "serving by day":
        world.up("llama_0")
        world.crash("llama_0")
        name, mode = "llama_0", "night"
    else:
        world.send(events.ModeChanged("night", "day", "06:00"))
        world.crash("big_dual", "something went wrong")
        name, mode = "big_dual", "day"
    assert (world.state(name), world.fleet.engines[name].wanted) == (State.BACKOFF, True)
    world.send(events.ModeChanged(mode))
    world.wait(60)
    assert world.state(name) is State.COLD


def test_what_cron_warms_is_tried_again_after_a_crash():
    world = World(config(LLAMA))
    world.send(events.WarmAsked("llama_0"))
    world.crash("llama_0", "something went wrong")
    world.wait(15)
    assert world.state("llama_0") is State.STARTING
    world.ready("llama_0")


def test_a_person_who_started_it_hears_of_the_crash_though_the_calendar_goes_on():
    world = two_modes()
    world.send(events.ModeChanged("night", "day", "06:00", next_in=14400))
    world.send(events.StartAsked("t", "big_dual"))
    world.crash("big_dual", "something went wrong")
    assert "big_dual failed to start" in str(world.answers["t"].error)
    world.wait(15)
    assert world.state("big_dual") is State.STARTING


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


def warmed_day(**llama: Any) -> World:
    """The day warms two, on a card each, of which one is up."""
    profiles = (profile("llama_0", 0, **llama), CODER, profile("extra_0", 0), BIG)
    modes = {
        "night": Mode(start=datetime.time(2), profiles=("big_dual",)),
        "day": Mode(start=datetime.time(6), warm=("llama_0", "coder_1")),
    }
    world = World(config(*profiles, modes=modes))
    world.send(events.ModeChanged("night", "day", "06:00"))
    world.send(events.ModeChanged("day", "night", "02:00"))
    world.ready("llama_0")
    return world


def test_a_mode_stands_though_one_that_came_up_for_it_idles_away_before_the_last_has_loaded():
    world = warmed_day(idle_ttl=60.0)
    world.wait(70)
    assert (world.state("llama_0"), world.state("coder_1")) == (State.COLD, State.STARTING)
    assert world.fleet.mode.name == "day"
    world.ready("coder_1")
    assert (world.fleet.transition, world.notes().count("mode_ready")) == (
        None,
        2,
    )  # of the night, of the day


def test_a_mode_stands_though_one_that_came_up_for_it_is_evicted_before_the_last_has_loaded():
    world = warmed_day()
    world.ask("extra")
    assert (world.state("llama_0"), world.state("extra_0")) == (State.COLD, State.STARTING)
    assert (world.fleet.mode.name, world.fleet.rolled_back) == ("day", None)


def test_a_mode_that_comes_back_warms_its_own_again():
    modes = {
        "day": Mode(start=datetime.time(6), warm=("llama_0",)),
        "night": Mode(start=datetime.time(2), profiles=("big_dual",), warm=("big_dual",)),
    }
    world = World(config(LLAMA, CODER, BIG, modes=modes))
    world.send(events.ModeChanged("day", "night", "02:00"))
    world.ready("llama_0")
    world.send(events.ModeChanged("night", "day", "06:00"))
    world.crash("big_dual", "ValueError: No available memory for the cache blocks")
    assert world.fleet.mode.name == "day"
    assert (world.state("llama_0"), world.state("coder_1")) == (State.STARTING, State.COLD)


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


def test_a_moment_in_which_nvml_is_slow_does_not_cancel_the_night():
    world = two_modes()
    world.now += 20  # and no reading meanwhile
    world.send(events.ModeChanged("night", "day", "06:00"))
    world.send(events.Ticked())
    assert world.fleet.mode.name == "night"
    world.read()
    assert world.state("big_dual") is State.STARTING


@pytest.mark.parametrize("trouble", ["stale", "sick", "quarantined", "unread"])
def test_a_device_that_may_come_back_is_waited_for_until_the_mode_must_have_begun(trouble: str):
    world = two_modes(within=600.0)
    if trouble == "sick":
        world.trouble[0] = "GPU is lost"
    elif trouble == "quarantined":
        world.fleet.ledger.quarantine("GPU-0", "llama_0", "memory of llama_0 did not come back")
    elif trouble == "unread":
        world.survey = lambda: Survey((), world.now, "driver not loaded")  # type: ignore[method-assign]
    world.now += 20
    if trouble != "stale":
        world.read()
    world.send(events.ModeChanged("night", "day", "06:00"))
    for _ in range(5):
        world.send(events.Ticked())
    assert (world.fleet.mode.name, world.fleet.rolled_back) == ("night", None)
    world.now += 600
    world.send(events.Ticked())
    assert world.fleet.mode.name == "day"
    assert "was not ready in time" in (world.fleet.rolled_back or "")


@pytest.mark.parametrize("big", [profile("big_dual", 0, 1, gib=24), profile("big_dual", 0, 7)])
def test_what_can_never_fit_is_not_waited_for(big: Profile):
    modes = {
        "day": Mode(start=datetime.time(6)),
        "night": Mode(start=datetime.time(2), profiles=("big_dual",), warm=("big_dual",)),
    }
    world = World(config(LLAMA, big, modes=modes))
    world.send(events.ModeChanged("day", "night", "02:00"))
    world.send(events.ModeChanged("night", "day", "06:00"))
    world.read()
    assert world.fleet.mode.name == "day"
    assert "big_dual does not come up" in (world.fleet.rolled_back or "")


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


BESIDE = profile("beside_1", 1)


def test_a_profile_that_is_to_be_warm_waits_until_its_place_is_idle():
    world = World(config(CODER, BESIDE))
    world.up("beside_1")
    busy = world.ask("beside")
    world.send(events.WarmAsked("coder_1"))
    world.wait(60)
    assert world.state("coder_1") is State.COLD
    world.leave(busy)
    assert world.state("coder_1") is State.STARTING


def test_a_profile_that_is_to_be_warm_waits_half_an_hour_at_most():
    world = World(config(CODER, BESIDE))
    world.up("beside_1")
    busy = world.ask("beside")
    world.send(events.WarmAsked("coder_1"))
    world.wait(calendar.WARM_WITHIN + 10)
    assert "start_refused" in world.notes()
    world.leave(busy)
    world.wait(10)
    assert (world.state("coder_1"), world.state("beside_1")) == (State.COLD, State.READY)


def test_a_profile_that_is_to_be_warm_while_it_stops_starts_again():
    world = World(config(CODER))
    world.up("coder_1")
    world.sticky = True
    world.send(events.StopAsked("t", "coder_1"))
    world.send(events.WarmAsked("coder_1"))
    world.held.clear()
    world.read()
    assert world.state("coder_1") is State.STARTING


def test_a_plan_that_does_not_fit_says_what_would_come_of_it():
    world = two_modes()
    world.foreign[0] = (Holder(4242, 4 * GIB, "blender", "alice"),)
    world.read()
    *_, start, outcome = told(calendar.plan(world.fleet, "night")).splitlines()
    assert start.startswith("start big_dual: does not fit: big_dual needs 22.00 GiB on GPU 0")
    assert outcome == (
        "big_dual would not come up: mode night would be given up, after 30m at the latest, and mode day come back"
    )


def test_what_kept_an_engine_from_starting_has_its_age_until_something_newer_is_decided():
    world = two_modes()
    world.foreign[0] = (Holder(4242, 6 * GIB, "blender", "alice"),)
    world.read()
    world.send(events.StartAsked("t", "llama_0"))
    world.wait(20)
    assert told_of(world, "llama_0")[1] == 20
    assert "needs 20.00 GiB" in told_of(world, "llama_0")[0]
    world.foreign[0] = ()
    world.wait(70)
    world.up("llama_0")
    assert told_of(world, "llama_0") == (None, None)


def test_what_kept_an_engine_from_starting_is_over_with_its_mode():
    world = two_modes()
    world.foreign[0] = (Holder(4242, 6 * GIB, "blender", "alice"),)
    world.read()
    world.send(events.StartAsked("t", "llama_0"))
    world.send(events.ModeChanged("night", "day", "06:00"))
    assert told_of(world, "llama_0") == (None, None)


def told_of(world: World, name: str) -> tuple[str | None, float | None]:
    engines = describe(world.fleet, {}, (), Path, world.now)["engines"]
    found = next(engine for engine in engines if engine["profile"] == name)
    return found["reason"], found["reason_age_s"]
