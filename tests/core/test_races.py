"""Races that other schedulers lost, as histories."""

from __future__ import annotations

import pytest

from supervisor.config import Restarts
from supervisor.core import events, orders
from supervisor.core.devices import GIB
from supervisor.core.lifecycle import State
from tests.core.world import World, config, profile

LLAMA = profile("llama_0", 0, idle_ttl=100.0)
CODER = profile("coder_0", 0)
SIBLING = profile("llama_1", 1)


def spawned(world: World) -> list[str]:
    return [order.profile for order in world.log if isinstance(order, orders.Spawn)]


def test_a_victim_is_not_resurrected_while_it_drains():
    """Its new requests wait for its next incarnation; the swap that was decided goes through."""
    world = World(config(LLAMA, CODER))
    world.up("llama_0")
    busy = world.ask("llama")
    other = world.ask("coder")
    world.wait(125)  # coder's patience is over
    assert world.state("llama_0") is State.DRAINING
    again = world.ask("llama")
    world.wait(30)
    assert again not in world.granted
    assert world.state("llama_0") is State.DRAINING
    world.leave(busy)
    assert spawned(world) == ["llama_0", "coder_0"]
    world.ready("coder_0")
    assert other in world.granted


def test_nobody_is_evicted_between_ready_and_the_request_that_woke_it():
    """Even where the other model's waiters lost patience while it loaded."""
    world = World(config(LLAMA, CODER))
    woke = world.ask("llama", patience=1000)
    rival = world.ask("coder", patience=1000)
    world.wait(200)
    assert world.state("llama_0") is State.STARTING
    world.ready("llama_0")
    assert woke in world.granted
    assert rival not in world.granted
    world.leave(woke)
    world.wait(31)  # its quantum
    world.ready("coder_0")
    assert rival in world.granted


def test_a_client_that_gives_up_during_the_load_leaves_an_engine_whose_idle_clock_runs():
    """It runs from the moment of readiness, and the engine does not stay for ever."""
    world = World(config(LLAMA))
    world.leave(world.ask("llama"))
    world.wait(60)
    world.ready("llama_0")
    world.wait(99)
    assert world.state("llama_0") is State.READY
    world.wait(2)
    assert world.state("llama_0") is State.COLD


def test_a_model_deaf_to_sigterm_does_not_delay_its_ready_sibling():
    world = World(config(LLAMA, SIBLING))
    world.up("llama_0")
    world.up("llama_1")
    world.alive.discard(world.incarnation("llama_0"))  # SIGTERM has no effect
    world.send(events.StopAsked("t", "llama_0"))
    assert world.state("llama_0") is State.STOPPING
    lease = world.ask("llama")
    assert world.granted[lease] == "llama_1"


def test_a_card_held_by_a_deaf_model_does_not_stop_starts_on_another():
    other = profile("coder_1", 1, gib=12)
    world = World(config(LLAMA, other))
    world.up("llama_0")
    world.alive.discard(world.incarnation("llama_0"))
    world.send(events.StopAsked("t", "llama_0"))
    lease = world.ask("coder")
    world.ready("coder_1")
    assert world.state("llama_0") is State.STOPPING
    assert world.granted[lease] == "coder_1"


def test_overlapping_traffic_on_one_model_does_not_starve_another():
    """There is always a request in flight on llama, so it is never idle; coder gets its turn all the same."""
    world = World(config(LLAMA, CODER))
    world.up("llama_0")
    flying = [world.ask("llama"), world.ask("llama")]
    other = world.ask("coder")
    began = world.now
    while other not in world.granted and world.now < began + 290:
        world.wait(2)
        if flying[0] in world.granted:
            world.leave(flying.pop(0))
            flying.append(world.ask("llama"))
        elif world.state("llama_0") is State.COLD and world.state("coder_0") is State.STARTING:
            world.ready("coder_0")
    assert other in world.granted
    assert world.now - began < 125  # its patience, and nobody in flight was cut for it


def test_engines_found_asleep_are_promised_their_residue_alone():
    """Two models share a card because one of them sleeps; a new daemon must not promise it twice."""
    world = World(config(LLAMA, CODER))
    world.held = {"a": {"GPU-0": int(1.5 * GIB)}, "b": {"GPU-0": 20 * GIB}}
    world.alive |= {"a", "b"}
    world.send(events.Found("llama_0", "a", ("GPU-0",), alive=True, asleep=1))
    world.send(events.Found("coder_0", "b", ("GPU-0",), alive=True))
    world.ready("coder_0")
    world.send(events.Slept("a"))
    assert world.state("llama_0") is State.SLEEPING
    assert world.fleet.engines["llama_0"].settled
    assert world.fleet.engines["llama_0"].reserved["GPU-0"] == int(1.5 * GIB)


def test_an_engine_found_while_nvml_is_silent_is_promised_its_memory_once_that_speaks():
    world = World(config(LLAMA, CODER))
    seen = world.fleet.ledger.survey
    world.fleet.ledger.survey = type(seen)(seen.readings[-1:], seen.at, "driver not loaded")
    world.send(events.Found("llama_0", "a", ("GPU-0",), alive=True))
    assert world.fleet.engines["llama_0"].reserved == {"GPU-0": 0}
    world.alive.add("a")
    world.held["a"] = {"GPU-0": 20 * GIB}
    world.read()
    assert world.fleet.engines["llama_0"].reserved == {"GPU-0": 20 * GIB}


def test_who_hangs_at_every_start_is_put_off_longer_each_time():
    """Ten minutes without progress lie between its failures; that is no reason to forgive them."""
    world = World(config(profile("coder_0", 0), restarts=Restarts(jitter=0)))
    delays = []
    for _ in range(4):
        world.ask("coder", patience=5000)
        world.wait(601)
        engine = world.fleet.engines["coder_0"]
        assert engine.state is State.BACKOFF
        assert engine.deadline is not None
        delays.append(round(engine.deadline - engine.since))
        world.wait(delays[-1] + 1)
    assert delays == [10, 20, 40, 80]


def test_an_unhealthy_engine_is_replaced():
    world = World(config(profile("coder_0", 0)))
    world.up("coder_0")
    world.send(events.Unhealthy(world.incarnation("coder_0"), "no answer to 3 probes"))
    assert world.state("coder_0") is State.BACKOFF
    waiting = world.ask("coder")
    world.wait(11)
    world.ready("coder_0")
    assert waiting in world.granted


def test_who_crashes_while_an_operator_stops_it_stays_down():
    world = World(config(profile("coder_0", 0)))
    world.up("coder_0")
    world.ask("coder")
    world.send(events.StopAsked("t", "coder_0"))
    assert world.state("coder_0") is State.DRAINING
    world.crash("coder_0")
    world.wait(400)
    assert world.state("coder_0") is State.COLD
    assert spawned(world) == ["coder_0"]


def test_a_reading_overtaken_by_a_later_one_is_void():
    """It still shows memory that has come back since, which would be taken for a neighbour's for a minute."""
    world = World(config(LLAMA, CODER))
    world.up("llama_0")
    late = events.DevicesRead(world.survey(), {name: dict(held) for name, held in world.held.items()})
    world.now += 1
    world.send(events.StopAsked("t", "llama_0"))
    assert world.state("llama_0") is State.COLD
    world.send(late)
    assert world.ask("coder") not in world.refused
    assert world.state("coder_0") is State.STARTING


@pytest.mark.parametrize(("seconds", "delay"), [(599, 20), (601, 10)])
def test_ten_minutes_of_readiness_forgive_a_failure_and_less_do_not(seconds: float, delay: float):
    world = World(config(profile("coder_0", 0, idle_ttl=None), restarts=Restarts(jitter=0)))
    world.up("coder_0")
    world.crash("coder_0")
    world.wait(11)
    world.ready("coder_0")
    world.wait(seconds)
    world.crash("coder_0")
    engine = world.fleet.engines["coder_0"]
    assert engine.deadline is not None
    assert round(engine.deadline - engine.since) == delay


def test_beside_an_engine_found_loading_nobody_starts_before_it_answers():
    """One start a GPU, also over a daemon's restart; what sleeps or serves there is not stopped meanwhile either."""
    small, other = profile("llama_0", 0, gib=8), profile("coder_0", 0, gib=8)
    world = World(config(small, other, profile("emb_0", 0, gib=2)))
    world.up("emb_0")
    world.held["old"] = {"GPU-0": 2 * GIB}
    world.alive.add("old")
    world.send(events.Found("llama_0", "old", ("GPU-0",), alive=True))
    world.send(events.Progressed("old", None))
    world.send(events.StopAsked("s", "emb_0"))
    lease = world.ask("coder")
    world.wait(20)
    assert (world.state("coder_0"), world.state("emb_0")) == (State.COLD, State.DRAINING)
    world.ready("llama_0")
    assert world.state("emb_0") is State.COLD
    assert world.state("coder_0") is State.STARTING
    world.ready("coder_0")
    assert lease in world.granted


def test_beside_an_engine_found_asleep_a_start_goes_on_at_once():
    world = World(config(profile("llama_0", 0, gib=8, sleep=True), profile("coder_0", 0, gib=8)))
    world.held["old"] = {"GPU-0": 1 * GIB}
    world.alive.add("old")
    world.send(events.Found("llama_0", "old", ("GPU-0",), alive=True, asleep=1))
    lease = world.ask("coder")
    assert world.state("coder_0") is State.COLD
    world.send(events.Slept("old"))
    assert world.state("coder_0") is State.STARTING
    world.ready("coder_0")
    assert lease in world.granted
