"""Memory lent to other programs, as plain histories."""

from __future__ import annotations

import pytest

from supervisor.core import events
from supervisor.core.devices import GIB, Holder
from supervisor.core.lifecycle import State
from tests.core.world import World, config, profile

LLAMA = profile("llama_0", 0)
CODER = profile("coder_1", 1)


def borrow(world: World, gib: float = 12, *gpus: int, ttl: float = 1200) -> str:
    world.send(events.LoanAsked("loan", "comfy", gpus or (0,), int(gib * GIB), ttl))
    return "loan"


def test_an_idle_engine_makes_room_and_the_loan_holds_it():
    world = World(config(LLAMA))
    world.up("llama_0")
    loan = borrow(world)
    assert world.state("llama_0") is State.COLD
    assert world.answers[loan].error is None
    assert "12.00 GiB on GPU 0" in world.answers[loan].message
    lease = world.ask("llama")
    assert "loan to comfy 12.00 GiB" in str(world.refused[lease])


def test_a_busy_engine_is_waited_for():
    world = World(config(LLAMA))
    world.up("llama_0")
    busy = world.ask("llama")
    loan = borrow(world)
    world.wait(100)
    assert loan not in world.answers
    world.leave(busy)
    assert world.answers[loan].error is None


def test_who_borrows_elsewhere_disturbs_nobody():
    world = World(config(LLAMA, CODER))
    world.up("llama_0")
    borrow(world, 12, 1)
    assert world.state("llama_0") is State.READY


def test_a_loan_ends_with_its_time_or_its_borrower():
    world = World(config(LLAMA))
    borrow(world, ttl=60)
    world.wait(59)
    assert world.fleet.claims()
    world.wait(2)
    assert not world.fleet.claims()
    assert "loan_ended" in world.notes()
    borrow(world)
    world.send(events.LoanEnded("loan", "it ended"))
    assert not world.fleet.loans


def test_what_the_borrower_uses_counts_once():
    """12 GiB lent, 11 used by a process that nobody told of: 24 - 12 is left, not 24 - 23."""
    world = World(config(profile("small_0", 0, gib=11)))
    borrow(world)
    world.foreign[0] = (Holder(77, 11 * GIB, "python", "alice"),)
    world.read()
    world.up("small_0")
    assert world.state("small_0") is State.READY


def test_a_borrower_that_keeps_its_memory_becomes_a_neighbour():
    world = World(config(LLAMA))
    borrow(world, ttl=60)
    world.foreign[0] = (Holder(77, 11 * GIB, "python", "alice"),)
    world.wait(70)
    assert "PID 77 python (alice) 11.00 GiB" in str(world.refused[world.ask("llama")])


@pytest.mark.parametrize(("gib", "gpu", "says"), [(30, 0, "has 24.00 GiB in all"), (2, 7, "wants GPU 7")])
def test_what_can_never_be_lent_is_refused_at_once(gib: float, gpu: int, says: str):
    world = World(config(LLAMA))
    loan = borrow(world, gib, gpu)
    assert says in world.answers[loan].message
    assert world.answers[loan].error
    assert not world.fleet.loans


def test_who_stops_waiting_for_a_loan_leaves_nothing_behind():
    world = World(config(LLAMA))
    world.up("llama_0")
    world.ask("llama")
    loan = borrow(world)
    world.send(events.TicketDropped(loan))
    assert not world.fleet.loans


def test_foreign_memory_is_told_of_with_its_owner_once():
    world = World(config(LLAMA))
    world.foreign[0] = (Holder(4242, 6 * GIB, "blender", "alice"),)
    world.wait(30)
    grown = [o for o in world.log if getattr(o, "event", "") == "foreign_grew"]
    assert len(grown) == 1
    assert "from 0.00 GiB to 6.00 GiB: PID 4242 blender (alice) 6.00 GiB" in grown[0].message
    world.foreign[0] = ()
    world.wait(10)
    assert world.notes().count("foreign_shrank") == 1


def test_a_promise_that_nothing_was_measured_of_yet_makes_no_foreign_memory_vanish():
    world = World(config(LLAMA))
    world.foreign[0] = (Holder(4242, 3 * GIB, "blender", "alice"),)
    world.wait(10)
    world.up("llama_0")
    world.wait(10)
    assert world.notes().count("foreign_grew") == 1
    assert "foreign_shrank" not in world.notes()


def test_a_running_engine_whose_headroom_is_eaten_gets_no_more_requests_until_it_is_back():
    world = World(config(LLAMA))
    world.up("llama_0")
    first = world.ask("llama")
    world.foreign[0] = (Holder(4242, int(3.9 * GIB), "blender", "alice"),)
    world.read()
    waiting = world.ask("llama", patience=100)
    assert first in world.granted
    assert waiting not in world.granted
    world.foreign[0] = ()
    world.wait(65)  # counted at its highest of the last minute
    assert world.granted[waiting] == "llama_0"
