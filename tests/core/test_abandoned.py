"""Starts that nobody waits for any more, and who still wants them."""

from __future__ import annotations

import datetime

import pytest

from supervisor.config import Mode
from supervisor.core import events, orders
from supervisor.core.learned import Learned
from supervisor.core.lifecycle import State
from supervisor.core.routing import Ask
from tests.core.world import World, config, profile

LLAMA = profile("llama_0", 0, finish_start=False)


def test_a_start_that_everybody_left_goes_on_by_default():
    world = World(config(profile("llama_0", 0)))
    world.leave(world.ask("llama"))
    assert world.state("llama_0") is State.STARTING


def test_a_start_that_everybody_left_is_given_up_where_its_profile_says_so():
    world = World(config(LLAMA))
    first, second = world.ask("llama"), world.ask("llama")
    world.leave(first)
    assert world.state("llama_0") is State.STARTING  # another waits
    world.leave(second)
    assert world.state("llama_0") is State.COLD
    (note,) = [o for o in world.log if isinstance(o, orders.Note) and o.event == "engine_stopping"]
    assert (note.facts["reason"], "nobody waits for it any more" in note.message) == ("abandoned", True)


def test_nothing_is_spawned_for_who_left_before_the_second_look():
    world = World(config(LLAMA))
    lease = "early"
    world.obey = lambda order: None  # type: ignore[method-assign, assignment]  # no reading follows
    world.now += 1
    world.send(events.Arrived(lease, Ask("llama"), 290))
    assert world.state("llama_0") is State.RESERVED
    world.leave(lease)
    assert world.state("llama_0") is State.COLD
    assert "start_withdrawn" in world.notes()


def test_who_lost_patience_has_left_too():
    world = World(config(LLAMA))
    world.ask("llama", patience=20)
    world.wait(21)
    assert world.state("llama_0") is State.COLD


def test_it_comes_up_for_who_comes_next():
    world = World(config(LLAMA))
    world.leave(world.ask("llama"))
    lease = world.ask("llama")
    world.ready("llama_0")
    assert lease in world.granted


@pytest.mark.parametrize("wish", ["operator", "calendar", "pin", "later"])
def test_what_somebody_else_wants_goes_on(wish: str):
    modes = {"day": Mode(start=datetime.time(6), warm=("llama_0",))}
    world = World(config(profile("llama_0", 0, finish_start=False, pin=wish == "pin"), modes=modes))
    lease = world.ask("llama")
    if wish == "operator":
        world.send(events.StartAsked("t", "llama_0"))
        world.send(events.TicketDropped("t"))  # Ctrl-C leaves it going
    elif wish == "calendar":
        world.send(events.ModeChanged("day"))
    elif wish == "later":
        world.fleet.engines["llama_0"].learned = Learned(start=400.0)
        world.ask("llama", patience=10)  # it is told to come again
    world.leave(lease)
    assert world.state("llama_0") is State.STARTING
