"""One start a GPU at a time, in each way that memory moves; and readings of it while it moves."""

from __future__ import annotations

from supervisor.core import events
from supervisor.core.devices import GIB, HOST, Reading, Survey
from supervisor.core.lifecycle import State
from tests.core.test_settling import Leaky
from tests.core.test_sleeping import Sleepers
from tests.core.world import World, config, profile

ALPHA, BETA, GAMMA = (profile(f"{name}_0", 0, gib=6, sleep=True) for name in ("alpha", "beta", "gamma"))


def test_while_one_wakes_nobody_starts_there_and_nobody_leaves() -> None:
    world = Sleepers(config(ALPHA, BETA, GAMMA))
    world.up("alpha_0")
    world.up("beta_0")
    world.send(events.SleepAsked("s", "alpha_0"))
    world.wakes = False
    world.send(events.StartAsked("w", "alpha_0"))
    assert world.state("alpha_0") is State.WAKING
    world.send(events.StartAsked("c", "gamma_0"))
    world.send(events.StopAsked("b", "beta_0"))
    world.wait(10)
    assert (world.state("beta_0"), world.state("gamma_0")) == (State.DRAINING, State.COLD)
    world.held[world.incarnation("alpha_0")] = {"GPU-0": 6 * GIB}
    world.ready("alpha_0")
    assert (world.state("beta_0"), world.state("gamma_0")) == (State.COLD, State.STARTING)


def test_while_one_falls_asleep_nobody_starts_there() -> None:
    world = Sleepers(config(ALPHA, BETA))
    world.up("alpha_0")
    world.replies = False
    world.send(events.SleepAsked("s", "alpha_0"))
    world.send(events.StartAsked("t", "beta_0"))
    world.wait(10)
    assert (world.state("alpha_0"), world.state("beta_0")) == (State.SLEEPING, State.COLD)
    world.send(events.Slept(world.incarnation("alpha_0")))
    assert world.state("beta_0") is State.STARTING


def test_memory_on_its_way_back_is_no_neighbours() -> None:
    """Else its peak would stand for a minute in the way of who comes next."""
    world = Leaky(config(profile("llama_0", 0), profile("coder_0", 0)))
    (tree,) = world.up_and_gone("llama_0")
    world.wait(10)
    world.returned(tree)
    assert world.fleet.ledger.foreign("GPU-0") == 0
    world.send(events.StartAsked("t", "coder_0"))
    assert world.state("coder_0") is State.STARTING


class Cramped(World):
    """Of its host's memory much is used in a way that nobody is told of."""

    free = 10 * GIB

    def survey(self) -> Survey:
        cards = super().survey().readings[:-1]
        return Survey(
            (*cards, Reading(HOST, 64 * GIB, 4 * GIB, self.free, self.now, "host memory")), self.now
        )


def test_of_free_host_memory_the_floor_stays_free() -> None:
    world = Cramped(config(profile("emb_cpu", gib=0, device="cpu", memory=9 * GIB)))
    assert "8.00 GiB is available" in str(world.refused[world.ask("emb")])
    world.free = 11 * GIB
    world.read()
    world.ask("emb")
    assert world.state("emb_cpu") is State.STARTING
