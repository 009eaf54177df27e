"""Pins by a person's word: kept until the engine is stopped or the word is taken back."""

from __future__ import annotations

from supervisor.core import decide, events, orders
from supervisor.core.lifecycle import State
from tests.core.world import CARD, World, config, profile

A, B = profile("llama_1", 1, idle_ttl=60.0), profile("coder_1", 1)


def pinned(**fields: object) -> World:
    world = World(config(A, B))
    world.send(events.StartAsked("t1", "llama_1", pin=True))
    world.ready("llama_1")
    return world


def test_a_pinned_engine_outlives_its_idle_time_and_everyone_who_wants_its_place():
    world = pinned()
    refused = world.ask("coder")
    world.wait(4000)
    assert world.state("llama_1") is State.READY
    assert "llama_1" in str(world.refused[refused])
    assert world.notes().count("engine_pinned") == 1


def test_one_that_has_its_place_and_no_process_yet_is_pinned_once_it_has():
    world = World(config(A))
    decide.handle(world.fleet, events.StartAsked("t1", "llama_1"), world.now)
    assert world.state("llama_1") is State.RESERVED
    asked = decide.handle(world.fleet, events.StartAsked("t2", "llama_1", pin=True), world.now)
    assert not any(isinstance(order, orders.Pin) for order in asked)
    world.now += 1
    world.read()
    assert [order.pinned for order in world.log if isinstance(order, orders.Spawn)] == [True]


def test_the_word_taken_back_it_is_as_any_other():
    world = pinned()
    world.send(events.StartAsked("t2", "llama_1", pin=False))
    assert world.answers["t2"].error is None
    world.wait(70)
    assert world.state("llama_1") is State.COLD


def test_a_start_that_says_nothing_of_pins_changes_none():
    world = pinned()
    world.send(events.StartAsked("t2", "llama_1"))
    world.wait(600)
    assert world.state("llama_1") is State.READY


def test_a_stop_ends_the_pin():
    world = pinned()
    world.send(events.StopAsked("t2", "llama_1"))
    world.wait(20)
    world.up("llama_1")
    world.wait(70)
    assert world.state("llama_1") is State.COLD


def test_the_next_incarnation_after_a_crash_is_pinned_too():
    world = pinned()
    world.crash("llama_1")
    world.wait(60)
    world.ready("llama_1")
    first, second = (order for order in world.log if isinstance(order, orders.Spawn))
    assert (first.pinned, second.pinned) == (True, True)
    assert first.incarnation != second.incarnation


def test_a_pin_of_the_profile_is_not_taken_back_by_hand():
    world = World(config(profile("llama_1", 1, pin=True)))
    world.send(events.StartAsked("t1", "llama_1", pin=False))
    assert "pin = true" in str(world.answers["t1"].error)


def test_an_adopted_engine_keeps_its_pin():
    world = World(config(A))
    world.held["old"] = {"GPU-1": CARD * 5 // 6}
    world.alive.add("old")
    world.send(events.Found("llama_1", "old", ("GPU-1",), alive=True, pinned=True))
    world.ready("llama_1")
    world.wait(600)
    assert world.state("llama_1") is State.READY
