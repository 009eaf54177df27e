"""Histories of memory on its way back: whose it is, and who may say that a quarantine is over."""

from __future__ import annotations

from dataclasses import replace

import pytest

from supervisor.core import events, orders
from supervisor.core.devices import GIB, Holder, Survey
from supervisor.core.lifecycle import State
from tests.core.world import OURS, World, config, profile

EIGHT = (profile("llama_0", 0, gib=8), profile("coder_0", 0, gib=8))
CARD = "GPU-0"


class Leaky(World):
    """Memory of killed trees does not come back before the test says so."""

    def up_and_gone(self, *names: str) -> list[str]:
        """Start them, stop them all together; their incarnations."""
        for name in names:
            self.up(name)
        trees = [self.incarnation(name) for name in names]
        self.sticky = True
        for name in names:
            self.send(events.StopAsked(f"stop-{name}", name))
        assert {self.state(name) for name in names} == {State.SETTLING}
        return trees

    def returned(self, incarnation: str, size: int = 0) -> None:
        """All but `size` of its memory comes back."""
        self.held[incarnation] = {CARD: size}
        self.read()


@pytest.mark.parametrize("first", [0, 1])
def test_the_memory_of_one_does_not_settle_two(first: int) -> None:
    world = Leaky(config(*EIGHT))
    trees = world.up_and_gone("llama_0", "coder_0")
    world.returned(trees[first])
    assert sorted(world.state(p.name) for p in EIGHT) == [State.COLD, State.SETTLING]
    world.returned(trees[1 - first])
    assert {world.state(p.name) for p in EIGHT} == {State.COLD}


def test_a_neighbour_that_leaves_proves_nothing() -> None:
    world = Leaky(config(*EIGHT))
    world.foreign[0] = (Holder(9, 9 * GIB),)
    world.read()
    (tree,) = world.up_and_gone("llama_0")
    world.foreign[0] = ()
    world.read()
    assert world.state("llama_0") is State.SETTLING
    world.wait(61)
    assert CARD in world.fleet.ledger.quarantined
    world.returned(tree)
    assert world.state("llama_0") is State.COLD


def test_a_neighbour_that_comes_hides_nothing() -> None:
    world = Leaky(config(*EIGHT))
    (tree,) = world.up_and_gone("llama_0")
    world.foreign[0] = (Holder(9, 9 * GIB),)
    world.returned(tree)
    assert world.state("llama_0") is State.COLD


@pytest.mark.parametrize(("left", "state"), [(1.0, State.SETTLING), (0.7, State.COLD)])
def test_nine_tenths_of_it_must_be_back(left: float, state: State) -> None:
    world = Leaky(config(*EIGHT))
    (tree,) = world.up_and_gone("llama_0")
    world.returned(tree, int(left * GIB))
    assert world.state("llama_0") is state


def test_what_a_dead_process_of_ours_is_still_listed_with_is_not_back() -> None:
    world = Leaky(config(*EIGHT))
    (tree,) = world.up_and_gone("llama_0")
    survey = world.survey()
    (card, *rest) = survey.readings
    listed = type(card)(
        **{name: getattr(card, name) for name in card.__slots__} | {"holders": (Holder(1, 8 * GIB),)}
    )
    nobody = events.DevicesRead(type(survey)((listed, *rest), world.now), {tree: {CARD: 0}})
    world.send(nobody)
    assert world.state("llama_0") is State.SETTLING


def test_nobody_elses_settling_lifts_a_quarantine() -> None:
    world = Leaky(config(*EIGHT))
    world.up("coder_0")
    (tree,) = world.up_and_gone("llama_0")
    world.wait(61)
    world.sticky = False
    world.send(events.StopAsked("t", "coder_0"))
    assert world.state("coder_0") is State.COLD
    assert CARD in world.fleet.ledger.quarantined
    world.returned(tree)
    assert not world.fleet.ledger.quarantined
    (note,) = [o for o in world.log if isinstance(o, orders.Note) and o.event == "quarantine_lifted"]
    assert note.message == "GPU 0 (RTX 3090) is no longer quarantined; the memory of llama_0 is back"


def test_a_card_stays_quarantined_while_another_reason_stands() -> None:
    world = Leaky(config(*EIGHT))
    trees = world.up_and_gone("llama_0", "coder_0")
    world.wait(61)
    world.returned(trees[0])
    assert "did not come back" in world.fleet.ledger.quarantined[CARD]
    assert any("stays quarantined" in order.message for order in world.log if isinstance(order, orders.Note))
    world.returned(trees[1])
    assert not world.fleet.ledger.quarantined


def test_memory_that_could_not_be_read_as_its_engine_stopped_is_nobody_elses() -> None:
    world = Leaky(config(profile("llama_0", 0, gib=8), profile("coder_0", 0, gib=12)))
    for name in ("llama_0", "coder_0"):
        world.up(name)
    llama, coder = world.incarnation("llama_0"), world.incarnation("coder_0")
    world.sticky = True
    world.trouble[0] = "GPU is lost"
    world.read()
    world.send(events.StopAsked("stop-coder", "coder_0"))
    world.trouble.clear()
    world.now += 1
    world.read()
    world.send(events.StopAsked("stop-llama", "llama_0"))
    world.returned(coder)
    assert (world.state("coder_0"), world.state("llama_0")) == (State.COLD, State.SETTLING)
    world.returned(llama)
    assert world.state("llama_0") is State.COLD


class Kept(Leaky):
    """A driver keeps some of each card: in use, and by nobody."""

    kept = int(0.42 * GIB)

    def survey(self) -> Survey:
        found = super().survey()
        cards = (
            r
            if r.index is None or r.trouble
            else replace(r, used=r.used + self.kept, free=r.free - self.kept)
            for r in found.readings
        )
        return replace(found, readings=tuple(cards))


@pytest.mark.parametrize("told", [True, False])
def test_what_a_driver_keeps_is_not_owed_by_an_engine_whose_card_was_never_read(told: bool) -> None:
    """An engine found while its card could not be read, which is gone before it can: nobody saw what was there."""
    world = Kept(config(profile("emb_0", 0, gib=2)))
    if told:
        (card, *_) = world.fleet.ledger.survey.readings
        world.fleet.ledger.totals[world.fleet.ledger.survey.card(card)] = card.total - world.kept
    world.trouble[0] = "GPU is lost"
    world.read()
    world.alive.add("old")
    world.held["old"] = {CARD: 2 * GIB}
    world.sticky = True
    world.send(events.Found("emb_0", "old", (CARD,), alive=True))
    world.crash("emb_0")
    world.trouble.clear()
    world.returned("old", GIB)
    assert world.state("emb_0") is State.SETTLING
    world.returned("old")
    assert world.state("emb_0") is State.BACKOFF


def test_what_a_driver_keeps_is_not_owed_where_the_last_reading_was_torn() -> None:
    """The neighbour is in the list of processes already, and not in the card's memory yet."""
    world = Kept(config(profile("emb_0", 0, gib=2)))
    world.up("emb_0")
    tree = world.incarnation("emb_0")
    (card, *others) = world.survey().readings
    torn = replace(card, holders=(*card.holders, Holder(9, 2 * GIB)))
    survey = replace(world.survey(), readings=(torn, *others))
    world.send(events.DevicesRead(survey, {tree: {CARD: 2 * GIB}}, OURS))
    world.sticky = True
    world.send(events.StopAsked("stop", "emb_0"))
    world.returned(tree, GIB)
    assert world.state("emb_0") is State.SETTLING
    world.returned(tree)
    assert world.state("emb_0") is State.COLD
