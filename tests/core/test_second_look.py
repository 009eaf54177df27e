"""A start, and a wake, is promised its memory first and begun once a reading taken after that agrees."""

from __future__ import annotations

import pytest

from supervisor.core import events, orders
from supervisor.core.devices import GIB, Holder
from supervisor.core.lifecycle import State
from supervisor.core.orders import Order
from tests.core.world import OURS, World, config, profile

LLAMA = profile("llama_0", 0, sleep=True)
CARD = "GPU-0"
RESIDUE = 2 * GIB
COMFY = Holder(77, 10 * GIB, "comfy", "ann")


class Slow(World):
    """Devices are read when the test says so, once `slow`."""

    slow = False

    def obey(self, order: Order) -> None:
        if isinstance(order, orders.Survey) and self.slow:
            return
        super().obey(order)

    def reading(self) -> events.DevicesRead:
        return events.DevicesRead(self.survey(), {n: dict(h) for n, h in self.held.items()}, OURS)

    def begun(self) -> list[Order]:
        return [order for order in self.log if isinstance(order, orders.Spawn | orders.Wake)]


def cold() -> Slow:
    return Slow(config(LLAMA))


def asleep() -> Slow:
    world = cold()
    world.up("llama_0")
    world.send(events.SleepAsked("t", "llama_0"))
    world.held[world.incarnation("llama_0")] = {CARD: RESIDUE}
    world.send(events.Slept(world.incarnation("llama_0")))
    assert world.fleet.engines["llama_0"].settled
    world.log.clear()
    return world


BOTH = pytest.mark.parametrize(("made", "before"), [(cold, State.COLD), (asleep, State.SLEEPING)])


@BOTH
def test_a_neighbour_that_came_since_the_last_reading_is_seen_in_time(made, before: State) -> None:  # type: ignore[no-untyped-def]
    world = made()
    world.foreign[0] = (COMFY,)
    world.now += 4
    lease = world.ask("llama")
    assert not world.begun()
    assert world.state("llama_0") is before
    assert "PID 77 comfy (ann) 10.00 GiB" in str(world.refused[lease])
    assert sum(claim.held for claim in world.fleet.claims().get(CARD, [])) <= RESIDUE
    world.foreign[0] = ()
    world.wait(65)
    world.ask("llama")
    assert len(world.begun()) == 1


@BOTH
def test_a_reading_taken_before_the_promise_begins_nothing(made, before: State) -> None:  # type: ignore[no-untyped-def]
    world = made()
    world.slow = True
    world.now += 2
    late = world.reading()
    world.now += 2
    world.ask("llama")
    assert world.fleet.claims()[CARD][0].held == 20 * GIB
    world.send(late)
    assert not world.begun()
    world.send(world.reading())
    assert len(world.begun()) == 1


def test_what_a_sleeper_keeps_is_its_own_when_it_wakes() -> None:
    """Its card has less free than it needs, by less than it holds."""
    world = asleep()
    world.foreign[0] = (Holder(77, 3 * GIB, "comfy", "ann"),)
    world.read()
    world.ask("llama")
    assert len(world.begun()) == 1


def test_a_sleeper_that_was_not_woken_after_all_sleeps_until_its_time_is_over() -> None:
    world = Slow(config(profile("llama_0", 0, sleep=True, sleep_after=10.0, idle_ttl=100.0)))
    world.up("llama_0")
    world.wait(11)
    world.held[world.incarnation("llama_0")] = {CARD: RESIDUE}
    world.send(events.Slept(world.incarnation("llama_0")))
    world.foreign[0] = (COMFY,)
    world.now += 4
    world.ask("llama")
    world.wait(80)
    assert world.state("llama_0") is State.SLEEPING
    world.wait(10)
    assert world.state("llama_0") is State.COLD


def test_a_sleeper_that_dies_before_it_is_told_to_wake_is_started_afresh() -> None:
    world = asleep()
    world.slow = True
    lease = world.ask("llama")
    assert world.state("llama_0") is State.WAKING
    world.crash("llama_0", code=-9)
    world.slow = False
    world.wait(15)
    world.ready("llama_0")
    assert lease in world.granted
    assert [type(order) for order in world.begun()] == [orders.Spawn]
