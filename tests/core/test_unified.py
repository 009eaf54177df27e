"""GPUs that share the host's memory, as GB10 does: the budget is the host's, the quiet is the GPU's."""

from __future__ import annotations

from supervisor.core import events, orders
from supervisor.core.devices import GIB, HOST, Reading, Survey
from supervisor.core.lifecycle import State
from supervisor.core.why import explain
from tests.core.world import World, config, profile

BOTH = (profile("llama_0", 0, gib=20), profile("coder_0", 0, gib=20))
CPU = {"device": "cpu", "memory": 8 * GIB}


class Unified(World):
    """One such GPU; what engines hold, they hold of 120 GiB of host memory."""

    def survey(self) -> Survey:
        card = Reading("GPU-0", 0, 0, 0, self.now, "GB10", 0, unified=True, trouble=self.trouble.get(0))
        used = 4 * GIB + sum(held.get(HOST, 0) for held in self.held.values())
        host = Reading(HOST, 120 * GIB, used, 120 * GIB - used, self.now, "host memory")
        return Survey((card, host), self.now)


def test_one_start_at_a_time() -> None:
    world = Unified(config(*BOTH))
    for p in BOTH:
        world.send(events.StartAsked(f"t-{p.name}", p.name))
    assert [world.state(p.name) for p in BOTH] == [State.STARTING, State.COLD]
    (spawn,) = [order for order in world.log if isinstance(order, orders.Spawn)]
    assert (spawn.devices, spawn.indices, round(spawn.utilization, 3)) == ((HOST, "GPU-0"), (0,), 0.167)
    world.ready("llama_0")
    assert world.state("coder_0") is State.STARTING
    assert world.fleet.claims()[HOST][0].held == 20 * GIB


def test_the_budget_is_the_hosts() -> None:
    world = Unified(config(profile("llama_0", 0, gib=70), profile("coder_0", 0, gib=70)))
    world.up("llama_0")
    busy = world.ask("llama")
    world.send(events.StartAsked("t", "coder_0"))
    assert "of 120.00 GiB; held by: llama_0 70.00 GiB" in str(world.answers["t"].error)
    world.leave(busy)
    world.up("coder_0")
    assert world.state("llama_0") is State.COLD
    (needed,) = explain(world.fleet, "coder_0")["profiles"][0]["needs"]
    assert (needed["device"], needed["need"]) == (HOST, 70 * GIB)


def test_nothing_is_freed_while_one_starts() -> None:
    world = Unified(config(*BOTH))
    world.up("llama_0")
    world.send(events.StartAsked("t", "coder_0"))
    world.send(events.StopAsked("u", "llama_0"))
    assert world.state("llama_0") is State.DRAINING
    world.ready("coder_0")
    assert world.state("llama_0") is State.COLD


def test_a_stop_is_over_when_the_gpu_answers_again() -> None:
    world = Unified(config(*BOTH))
    world.up("llama_0")
    world.trouble[0] = "GPU is lost"
    world.crash("llama_0")
    assert world.state("llama_0") is State.SETTLING
    world.wait(61)
    assert set(world.fleet.ledger.quarantined) == {"GPU-0"}, "host memory is for others, too"
    world.trouble.clear()
    world.read()
    assert world.state("llama_0") is State.BACKOFF


def test_engines_on_the_cpu_start_side_by_side() -> None:
    world = World(config(profile("emb_cpu", gib=0, **CPU), profile("rank_cpu", gib=0, **CPU)))
    for name in ("emb_cpu", "rank_cpu"):
        world.send(events.StartAsked(name, name))
    assert {world.state("emb_cpu"), world.state("rank_cpu")} == {State.STARTING}
