"""When a swap pays: quantum, patience, the cost of both ways, and the limit on swaps."""

from __future__ import annotations

from supervisor.config import Key, Scheduling
from supervisor.core import events, orders
from supervisor.core.learned import Learned
from supervisor.core.lifecycle import State
from supervisor.core.routing import Ask
from tests.core.world import World, config, profile

A = profile("llama_1", 1, max_concurrent=2, max_queue=200)
B = profile("coder_1", 1, max_concurrent=2, max_queue=200)
BATCH = {"n8n": Key(env="A", priority="batch")}


def busy(**policy: object) -> World:
    """llama_1 has one request that does not end, and measured starts of 10 s."""
    world = World(config(A, B, scheduling=Scheduling.model_validate(policy), keys=BATCH))
    world.up("llama_1")
    for engine in world.fleet.engines.values():
        engine.learned = Learned(start=10.0)
    world.ask("llama")
    return world


def test_an_idle_engine_makes_room_at_once():
    world = World(config(A, B))
    world.up("llama_1")
    world.ask("coder")
    assert world.state("coder_1") is State.STARTING


def test_an_idle_engine_may_be_given_a_minimum_residency_that_patience_ends():
    world = World(config(A, B, scheduling=Scheduling(min_residency=100.0, patience_interactive=40.0)))
    world.up("llama_1")
    world.ask("coder")
    world.wait(39)
    assert world.state("llama_1") is State.READY
    world.wait(2)
    assert world.state("coder_1") is State.STARTING


def test_a_busy_engine_goes_on_for_its_quantum_then_drains_without_being_cut():
    world = busy(quantum=30.0)
    world.ask("coder")
    world.wait(29)
    assert world.state("llama_1") is State.READY
    world.wait(2)
    assert world.state("llama_1") is State.DRAINING
    world.wait(200)
    assert world.state("llama_1") is State.DRAINING  # its request is still written to


def test_who_drains_is_not_resurrected_by_a_new_request_for_it():
    world = busy(quantum=30.0)
    waiting = world.ask("coder")
    world.wait(31)
    late = world.ask("llama")
    assert late not in world.granted
    world.leave("r1")
    world.ready("coder_1")
    assert waiting in world.granted
    assert late not in world.granted


def test_one_waiter_against_many_waits_until_the_swap_pays():
    """Both ways take 20 s, and it would make four others wait, too: 5 x 20 s of its waiting."""
    world = busy(quantum=5.0, patience_interactive=500.0)
    for _ in range(5):
        world.ask("llama")  # one gets the second slot, four wait
    world.ask("coder")
    world.wait(98)
    assert world.state("llama_1") is State.READY
    world.wait(4)
    assert world.state("llama_1") is State.DRAINING


def test_many_waiters_swap_sooner_than_one():
    world = busy(quantum=5.0, patience_interactive=500.0)
    for _ in range(4):
        world.ask("coder")  # four wait 5 s each: as long as the swap takes
    world.wait(6)
    assert world.state("llama_1") is State.DRAINING


def test_lost_patience_swaps_whatever_it_costs():
    world = busy(quantum=5.0, patience_interactive=60.0)
    for engine in world.fleet.engines.values():
        engine.learned = Learned(start=1000.0)
    world.ask("coder", patience=2000)
    world.wait(59)
    assert world.state("llama_1") is State.READY
    world.wait(2)
    assert world.state("llama_1") is State.DRAINING


def test_batch_is_more_patient():
    world = busy(quantum=5.0)
    for engine in world.fleet.engines.values():
        engine.learned = Learned(start=1000.0)
    world.send(events.Arrived("b", Ask("coder", "n8n"), 2000))
    world.wait(299)
    assert world.state("llama_1") is State.READY
    world.wait(2)
    assert world.state("llama_1") is State.DRAINING


def test_at_the_limit_of_swaps_only_lost_patience_swaps():
    world = busy(quantum=5.0, patience_interactive=100.0, swaps_per_hour=1)
    world.fleet.count_swap(world.fleet.engines["llama_1"].devices)
    world.ask("coder")
    world.wait(99)
    assert world.state("llama_1") is State.READY
    world.wait(2)
    assert world.state("llama_1") is State.DRAINING


def test_the_limit_of_swaps_is_told_when_it_is_reached():
    world = busy(quantum=5.0, patience_interactive=10.0, swaps_per_hour=1)
    world.ask("coder")
    world.wait(11)
    assert "swap_limit" in world.notes()


def test_a_pinned_engine_stays():
    world = World(config(profile("llama_1", 1, pin=True), B))
    world.up("llama_1")
    refused = world.ask("coder")
    world.wait(4000)
    assert world.state("llama_1") is State.READY
    assert "llama_1" in str(world.refused[refused])


def test_retry_after_is_what_was_measured():
    world = busy()
    engine = world.fleet.engines["llama_1"]
    engine.service = 8.0
    for _ in range(202):
        over = world.ask("llama")
    # one in the second slot, 200 wait, two are in flight: 202 times 8 s by two at a time
    assert world.refused[over].retry_after == 808.0  # type: ignore[attr-defined]


def test_while_a_place_is_cleared_the_weights_of_who_gets_it_are_read_ahead():
    world = busy(quantum=30.0)
    world.ask("coder")
    world.wait(31)
    assert world.state("llama_1") is State.DRAINING
    assert world.log.count(orders.ReadAhead("coder_1")) == 1


def test_every_eviction_says_who_for_and_since_when():
    world = busy(quantum=30.0)
    world.ask("coder")
    world.wait(31)
    (note,) = [o for o in world.log if isinstance(o, orders.Note) and o.event == "evict"]
    assert note.message == "llama_1 makes room for coder_1, waited for since 30 s"


def test_a_batch_request_waits_five_times_as_long_for_a_swap_that_costs_as_much():
    """20 s for both ways, at a fifth of a second for each that it waits."""
    world = busy(quantum=5.0, patience_batch=500.0, ageing=1000.0)
    world.ask("coder", source="n8n", patience=1000)
    world.wait(98)
    assert world.state("llama_1") is State.READY
    world.wait(4)
    assert world.state("llama_1") is State.DRAINING
