"""What is counted of engines' lives, from whole histories: ways up, ways out with their reasons and seconds."""

from __future__ import annotations

from typing import Any

import pytest
from world import World, config, profile

from supervisor.config import Mode, Restarts
from supervisor.core import events
from supervisor.core.devices import GIB
from supervisor.core.orders import Note
from supervisor.core.tally import Tally


class Counted(World):
    """Tells its notes to a tally, as the shell does."""

    def __init__(self, *profiles: Any, **tables: Any) -> None:
        self.tally = Tally()
        super().__init__(config(*profiles, **tables))

    def obey(self, order: Any) -> None:
        if isinstance(order, Note):
            self.tally.take(order, self.now)
        super().obey(order)


def counts(totals: dict[tuple[str, str], Any]) -> dict[tuple[str, str], int]:
    return {key: total.count for key, total in totals.items()}


def test_a_cold_start_is_counted_with_its_seconds() -> None:
    world = Counted(profile("llama_0", 0))
    world.send(events.StartAsked("t", "llama_0"))
    assert world.tally.starts == {}
    world.wait(40)
    world.ready("llama_0")
    assert counts(world.tally.starts) == {("llama_0", "cold"): 1}
    assert world.tally.starts["llama_0", "cold"].seconds == pytest.approx(40)
    assert world.tally.way("llama_0") == "cold"


def test_an_idle_engine_goes_for_being_idle_and_another_because_it_was_told_to() -> None:
    world = Counted(profile("llama_0", 0, idle_ttl=60), profile("coder_1", 1))
    world.up("llama_0")
    world.up("coder_1")
    world.wait(70)
    world.send(events.StopAsked("s", "coder_1", False))
    assert counts(world.tally.stops) == {("llama_0", "idle"): 1, ("coder_1", "operator"): 1}


def test_an_eviction_is_a_swap_where_the_engine_was_in_use() -> None:
    world = Counted(profile("llama_0", 0), profile("coder_0", 0))
    world.up("llama_0")
    world.wait(600)
    lease = world.ask("coder")
    assert counts(world.tally.evictions) == {("llama_0", "idle"): 1}
    assert counts(world.tally.stops) == {("llama_0", "room"): 1}
    world.ready("coder_0")
    world.ask("llama")
    world.wait(200)
    swap = world.tally.evictions["coder_0", "swap"]
    assert (swap.count, swap.seconds) == (1, 0)
    world.leave(lease)
    assert swap.seconds == world.tally.stops["coder_0", "room"].seconds > 0


def test_a_crash_is_counted_by_its_class() -> None:
    world = Counted(profile("llama_0", 0), restarts=Restarts(jitter=0))
    world.up("llama_0")
    world.crash("llama_0")
    assert world.tally.restarts == {("llama_0", "transient"): 1}
    assert counts(world.tally.stops) == {("llama_0", "failed"): 1}


def test_a_start_that_fails_is_no_start_and_one_class() -> None:
    world = Counted(profile("llama_0", 0))
    world.send(events.StartAsked("t", "llama_0"))
    world.crash("llama_0", "torch.OutOfMemoryError: CUDA out of memory.")
    assert world.tally.starts == {}
    assert world.tally.restarts == {("llama_0", "out_of_memory"): 1}


def test_the_end_of_the_daemon_and_of_a_mode_are_reasons_of_their_own() -> None:
    modes = {"day": Mode(start="06:00"), "night": Mode(start="02:00", profiles=("big_1",))}
    world = Counted(profile("llama_0", 0), profile("big_1", 1), modes=modes)
    world.send(events.ModeChanged("day", None, None))
    world.up("llama_0")
    world.send(events.ModeChanged("night", None, None))
    world.up("big_1")
    world.send(events.ShutdownAsked(False))
    assert counts(world.tally.stops) == {("llama_0", "mode"): 1, ("big_1", "shutdown"): 1}
    assert world.tally.modes["begun"] == 2


def test_an_adopted_engine_was_warm() -> None:
    world = Counted(profile("llama_0", 0))
    world.send(events.Found("llama_0", "old", ("GPU-0",), True))
    world.send(events.ProbePassed("old"))
    assert world.tally.starts == {}
    assert world.tally.way("llama_0") == "warm"


@pytest.mark.parametrize("name", ["idle_0", "mode_0"])
def test_a_profile_cannot_pass_for_a_reason(name: str) -> None:
    world = Counted(profile("llama_0", 0), profile(name, 0))
    world.up("llama_0")
    world.ask(name)
    assert counts(world.tally.stops) == {("llama_0", "room"): 1}


def test_an_operator_may_put_to_sleep_too() -> None:
    world = Counted(profile("llama_0", 0, sleep=True))
    world.up("llama_0")
    world.send(events.SleepAsked("t", "llama_0"))
    incarnation = world.incarnation("llama_0")
    world.held[incarnation] = {"GPU-0": GIB}
    world.send(events.Slept(incarnation))
    assert counts(world.tally.sleeps) == {("llama_0", "operator"): 1}
