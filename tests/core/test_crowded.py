"""Starts that fail because others were there first: no fault of the engine, so it is not put off for it."""

from __future__ import annotations

import pytest

from supervisor.config import Restarts
from supervisor.core import events, orders
from supervisor.core.devices import GIB, Holder
from supervisor.core.failures import FailureClass
from supervisor.core.lifecycle import State
from tests.core.world import World, config, profile

CROWDED = "ValueError: Free memory on device cuda:0 (20.9/24 GiB) on startup is less than desired GPU memory utilization"
ADDRESS = "OSError: [Errno 98] Address already in use"
COMFY = Holder(77, 4 * GIB, "comfy", "ann")


def starting(**tables: object) -> tuple[World, str]:
    world = World(config(profile("llama_0", 0), **tables))
    return world, world.ask("llama")


def spawns(world: World) -> int:
    return sum(isinstance(order, orders.Spawn) for order in world.log)


def test_who_waits_goes_on_waiting_while_the_place_is_taken() -> None:
    world, lease = starting()
    world.crash("llama_0", CROWDED)
    world.wait(9)
    assert (world.state("llama_0"), lease in world.fleet.queues) == (State.BACKOFF, True)
    world.wait(2)
    world.ready("llama_0")
    assert lease in world.granted


def test_who_waits_is_told_of_the_neighbour_once_that_shows() -> None:
    world, lease = starting()
    world.crash("llama_0", CROWDED)
    world.foreign[0] = (COMFY,)
    world.read()
    world.wait(11)
    assert "PID 77 comfy (ann) 4.00 GiB" in str(world.refused[lease])
    assert spawns(world) == 1


def test_it_counts_for_nothing_however_often_it_happens() -> None:
    world, lease = starting(restarts=Restarts(give_up_after=2))
    for attempt in range(4):
        assert spawns(world) == attempt + 1
        world.crash("llama_0", CROWDED)
        world.wait(11)
    world.ready("llama_0")
    assert lease in world.granted
    assert world.fleet.engines["llama_0"].failures == []


def test_where_nobody_waits_any_more_it_is_not_tried_again() -> None:
    world, lease = starting()
    world.leave(lease)
    world.crash("llama_0", CROWDED)
    world.wait(100)
    assert (spawns(world), world.state("llama_0")) == (1, State.COLD)


def test_an_operator_who_waits_is_told_who_is_in_the_way_when_that_shows() -> None:
    world = World(config(profile("llama_0", 0)))
    world.send(events.StartAsked("t", "llama_0"))
    world.crash("llama_0", CROWDED)
    assert "t" not in world.answers
    world.foreign[0] = (COMFY,)
    world.read()
    world.wait(11)
    assert "PID 77 comfy (ann) 4.00 GiB" in world.answers["t"].message
    assert world.state("llama_0") is State.COLD


def test_a_taken_address_is_left_for_the_next_at_once_and_costs_no_back_off() -> None:
    world, lease = starting()
    first = world.incarnation("llama_0")
    world.crash("llama_0", ADDRESS)
    assert world.state("llama_0") is State.STARTING
    assert world.incarnation("llama_0") != first
    failure = world.fleet.engines["llama_0"].last_failure
    assert failure
    assert failure.kind is FailureClass.ADDRESS_TAKEN
    assert world.fleet.engines["llama_0"].failures == []
    world.ready("llama_0")
    assert lease in world.granted


def test_a_taken_address_is_left_for_the_next_for_an_operator_too() -> None:
    world = World(config(profile("llama_0", 0)))
    world.send(events.StartAsked("t", "llama_0"))
    world.crash("llama_0", ADDRESS)
    world.ready("llama_0")
    assert world.answers["t"].error is None


@pytest.mark.parametrize(
    "words", ["torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", CROWDED]
)
def test_memory_that_was_short_at_a_start_is_told_with_who_holds_it(words: str) -> None:
    world = World(config(profile("llama_0", 0, gib=10), profile("emb_0", 0, gib=2)))
    world.foreign[0] = (COMFY,)
    world.read()
    world.up("emb_0")
    world.ask("llama")
    world.crash("llama_0", words)
    engine = world.fleet.engines["llama_0"]
    for told in (str(engine.last_failure), engine.last_reason or ""):
        assert "GPU 0 (RTX 3090) is held by: emb_0 2.00 GiB" in told
        assert "PID 77 comfy (ann) 4.00 GiB" in told
