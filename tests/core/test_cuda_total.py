"""CUDA's total, which is less than NVML's: learned from what engines log, used for what vLLM takes and what there is."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from supervisor.config import Profile
from supervisor.core import events, orders
from supervisor.core.devices import GIB, Card, Survey
from supervisor.core.lifecycle import State
from supervisor.core.status import describe
from supervisor.core.why import explain
from tests.core.world import CARD, World, config, profile

TOLD = int(23.58 * GIB)
TOO_LITTLE = (
    "(EngineCore pid=7) ERROR 11-23 09:45:24 [core.py:1510] ValueError: Free memory on device cuda:0 (20.9/23.58 GiB)"
    " on startup is less than desired GPU memory utilization (0.92, 21.69 GiB)."
)
LLAMA = profile("llama_0", 0, gib=12)


class Cards(World):
    """What CUDA does not count is in use by nobody, as NVML shows it; the driver has a version."""

    driver = "590.1"
    reserve = CARD - TOLD

    def survey(self) -> Survey:
        found = World.survey(self)
        cards = [
            replace(r, used=r.used + self.reserve, free=r.free - self.reserve) if r.index is not None else r
            for r in found.readings
        ]
        return Survey(tuple(cards), self.now, driver=self.driver)


def share(profile: Profile, **fields: object) -> Profile:
    return profile.model_copy(update={"vram": None, **fields})


def told(world: World, name: str, totals: dict[int, int]) -> None:
    """Start it, let its log tell, and stop it."""
    world.send(events.StartAsked(f"t-{name}", name))
    world.send(events.Told(world.incarnation(name), totals=totals))
    world.ready(name)
    world.send(events.StopAsked(f"s-{name}", name))


def spawned(world: World, name: str) -> orders.Spawn:
    world.up(name)
    return [order for order in world.log if isinstance(order, orders.Spawn)][-1]


def test_a_size_is_passed_as_a_fraction_of_cudas_total():
    world = Cards(config(LLAMA))
    assert spawned(world, "llama_0").utilization == 0.5
    world.send(events.StopAsked("s", "llama_0"))
    told(world, "llama_0", {0: TOLD})
    again = spawned(world, "llama_0").utilization
    assert again == math.floor(10_000 * 12 * GIB / TOLD) / 10_000
    assert 11.99 * GIB < TOLD * again <= 12 * GIB


def test_a_fraction_is_one_of_cudas_total():
    world = Cards(config(share(LLAMA, gpu_memory_utilization=0.9)))
    world.up("llama_0")
    assert world.fleet.engines["llama_0"].reserved == {"GPU-0": math.ceil(CARD * 0.9)}
    world.send(events.StopAsked("s", "llama_0"))
    told(world, "llama_0", {0: TOLD})
    world.up("llama_0")
    assert world.fleet.engines["llama_0"].reserved == {"GPU-0": math.ceil(TOLD * 0.9)}


def test_a_start_that_finds_too_little_tells_it_too():
    world = Cards(config(LLAMA))
    world.send(events.StartAsked("t", "llama_0"))
    world.crash("llama_0", TOO_LITTLE)
    assert world.fleet.ledger.totals == {Card("GPU-0", "590.1", CARD): math.ceil(23.58499 * GIB)}


def test_what_the_log_of_a_serving_engine_holds_may_be_anybodys():
    world = Cards(config(LLAMA))
    world.up("llama_0")
    world.crash("llama_0", TOO_LITTLE)
    assert world.fleet.ledger.totals == {}


def test_each_card_of_several_has_its_own():
    world = Cards(config(profile("big_dual", 1, 0)))
    told(world, "big_dual", {0: TOLD, 1: TOLD - GIB})
    assert {card.device: size for card, size in world.fleet.ledger.totals.items()} == {
        "GPU-1": TOLD,
        "GPU-0": TOLD - GIB,
    }


@pytest.mark.parametrize("size", [0, 20 * GIB, CARD + GIB])
def test_a_figure_that_cannot_be_this_cards_is_none(size: int):
    """More than NVML's is taken for NVML's: two decimals may be rounded up."""
    world = Cards(config(LLAMA))
    told(world, "llama_0", {0: size, 1: TOLD})
    assert spawned(world, "llama_0").utilization == 0.5


def test_under_another_driver_it_has_to_be_told_again():
    world = Cards(config(LLAMA))
    told(world, "llama_0", {0: TOLD})
    world.driver = "600.0"
    world.read()
    assert spawned(world, "llama_0").utilization == 0.5


def test_it_is_kept_once_and_a_later_daemon_goes_by_it():
    world = Cards(config(LLAMA))
    told(world, "llama_0", {0: TOLD})
    told(world, "llama_0", {0: TOLD})
    (kept,) = [order for order in world.log if isinstance(order, orders.RememberTotal)]
    assert world.notes().count("cuda_total") == 1
    later = Cards(config(LLAMA))
    later.fleet.ledger.totals[kept.card] = kept.total
    later.read()
    assert spawned(later, "llama_0").utilization > 0.5


def test_a_size_that_cuda_does_not_have_can_never_fit():
    """By NVML's total it would: 23.5 GiB and a margin of 0.25 are less than 24."""
    world = Cards(config(LLAMA, profile("large_0", 0, gib=23.5)))
    told(world, "llama_0", {0: TOLD})
    world.send(events.StartAsked("t", "large_0"))
    message = "large_0 needs 23.50 GiB on GPU 0 (RTX 3090), which has 23.58 GiB in all (0.25 GiB kept free)"
    assert message in str(world.answers["t"].error)


def test_what_cuda_does_not_count_is_taken_off_once():
    """NVML shows it as used: all of CUDA's total, less the margin, is still there to be promised."""
    world = Cards(config(LLAMA, profile("large_0", 0, gib=23.3)))
    told(world, "llama_0", {0: TOLD})
    world.up("large_0")
    assert world.state("large_0") is State.READY


def test_a_driver_that_counts_it_as_nobodys_is_not_believed_to_have_more():
    """Before anything foreign was seen, as behind engines that start and stop, CUDA's total is the bound."""
    world = Cards(config(LLAMA))
    told(world, "llama_0", {0: TOLD})
    world.fleet.ledger.unlearn_foreign(["GPU-0"])
    margin = world.fleet.config.memory.margin
    assert world.fleet.ledger.room("GPU-0", {}) == TOLD - margin


def test_a_person_sees_both():
    world = Cards(config(LLAMA))
    told(world, "llama_0", {0: TOLD})
    shown = describe(world.fleet, {}, (), Path, world.now)["devices"]
    assert [(d["total"], d["cuda_total"]) for d in shown[:2]] == [(CARD, TOLD), (CARD, None)]
    (device,) = explain(world.fleet, "llama")["devices"]
    assert (device["total"], device["cuda_total"]) == (CARD, TOLD)
