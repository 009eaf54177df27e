"""The two tests of a start, number by number, and what is foreign where the driver does not say whose memory it is."""

from __future__ import annotations

import pytest

from supervisor.config import Memory
from supervisor.core import events
from supervisor.core.devices import GIB, Holder, Reading, Survey
from supervisor.core.ledger import Claim, Ledger, Verdict
from supervisor.core.lifecycle import State
from tests.core.world import CARD, World, config, profile

MARGIN = GIB // 4


def judged(needed: float, *claims: Claim, used: float = 0, seen: bool = True) -> Verdict:
    """Whether `needed` GiB fit on a card of 24 of which `used` are in use. `seen`: what is foreign was looked for."""
    ledger = Ledger(Memory(margin=MARGIN))
    reading = Reading("GPU-0", CARD, int(used * GIB), CARD - int(used * GIB), 0.0, "RTX 3090", 0)
    ledger.take(Survey((reading,)), frozenset())
    if seen:
        ledger.look_for_foreign({"GPU-0": claims})
    return ledger.judge(profile("new_0", 0, gib=needed), {"GPU-0": claims}, 0.0)


def claim(reserved: float, measured: float | None) -> Claim:
    return Claim("llama_0", int(reserved * GIB), None if measured is None else int(measured * GIB))


@pytest.mark.parametrize(
    ("reserved", "measured", "used", "available"),
    [
        (10, 10, 10, 13.75),  # the margin stays
        (10, 2, 2, 13.75),  # what it has not taken yet is its own
        (10, 11, 11, 12.75),  # what it took beyond is too
        (10, 10, 13, 10.75),  # 3 GiB are foreign
        (10, 2, 8, 7.75),  # 6 are
    ],
)
def test_on_paper(reserved: float, measured: float, used: float, available: float) -> None:
    held = claim(reserved, measured)
    assert judged(available, held, used=used).admitted
    (short,) = judged(available + 0.01, held, used=used).shortages
    assert short.available == int(available * GIB)
    assert short.need == int((available + 0.01) * GIB)


@pytest.mark.parametrize(("measured", "available"), [(8, 10), (4, 6), (0, 2)])
def test_right_now_what_others_were_promised_and_have_not_taken_is_not_there(
    measured: float, available: float
) -> None:
    """14 of 24 GiB are in use: more than anything on paper knows of. Of the 10 that are free some are spoken for."""
    held = claim(8, measured)
    assert judged(available, held, used=14, seen=False).admitted
    (short,) = judged(available + 0.01, held, used=14, seen=False).shortages
    assert short.available == available * GIB


def test_where_nothing_is_measured_what_was_promised_is_taken_for_its_own() -> None:
    """11 in use, 8 promised: 3 are foreign. And what is free is free: nobody knows what of it is spoken for."""
    assert judged(12.75, claim(8, None), used=11).admitted
    assert not judged(12.76, claim(8, None), used=11).admitted


def test_foreign_memory_is_never_less_than_none() -> None:
    """Of 8 GiB that were promised 5 are in use: what is left on paper does not grow by that."""
    assert not judged(15.76, claim(8, None), used=5).admitted
    assert judged(15.75, claim(8, None), used=5).admitted


class Nameless(World):
    """A driver that lists no processes: whose memory it is cannot be told."""

    def read(self) -> None:
        self.send(events.DevicesRead(self.survey()))

    def card(self, index: int) -> Reading:
        found = super().card(index)
        return Reading(found.device, found.total, found.used, found.free, found.at, found.name, found.index)


def test_no_pid_is_guessed_where_the_driver_lists_none() -> None:
    world = Nameless(config(profile("llama_0", 0, gib=8), profile("coder_0", 0, gib=14)))
    world.up("llama_0")
    world.ask("llama")
    world.foreign[0] = (Holder(4242, 6 * GIB, "blender", "alice"),)
    world.read()
    assert world.fleet.ledger.foreign("GPU-0") == 6 * GIB
    world.send(events.StartAsked("t", "coder_0"))
    told = world.answers["t"].message
    assert "9.75 GiB is available of 24.00 GiB; held by: llama_0 8.00 GiB" in told
    assert "PID" not in told
    assert world.state("llama_0") is State.READY
