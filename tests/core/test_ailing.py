"""GPUs whose driver reports errors: what each does to the engines there, how often it is told, when it is over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from supervisor.core import events, orders
from supervisor.core.lifecycle import State
from supervisor.core.status import describe
from supervisor.core.why import explain
from supervisor.core.xid import KNOWN, Policy, judge
from tests.core.world import World, config, profile

LLAMA = profile("llama_0", 0)
OTHER = profile("llama_1", 1)
BIG = profile("big_dual", 0, 1)

SICK = [79, 48, 62, 64, 74, 95, 110, 119, 120, 140]
PROGRAM = [13, 31, 43, 45, 94, 109]
HARMLESS = [63, 92, 154, 9999]


def report(world: World, xid: int, card: int = 0) -> None:
    world.send(events.XidReported(f"GPU-{card}", xid))


def status(world: World, card: int = 0) -> dict[str, Any]:
    body = describe(world.fleet, {}, (), Path, world.now)
    found: dict[str, Any] = body["devices"][card]
    return found


def test_the_table_is_in_words_and_nothing_unknown_is_acted_on():
    assert all(known.meaning for known in KNOWN.values())
    assert judge(9999).policy is Policy.NOTE


@pytest.mark.parametrize("xid", SICK)
def test_a_sick_gpu_ends_its_engines_at_once_and_the_other_card_serves(xid: int):
    world = World(config(LLAMA, OTHER))
    world.up("llama_0")
    cut, died = world.ask("llama"), world.incarnation("llama_0")
    report(world, xid)
    assert orders.Kill(died) in world.log
    assert cut in world.granted
    world.leave(cut)
    failure = world.fleet.engines["llama_0"].last_failure
    assert failure is not None
    assert str(failure).startswith(f"gpu sick: GPU 0 (RTX 3090) reported XID {xid}: ")
    lease = world.ask("llama")
    world.ready("llama_1")
    assert world.granted[lease] == "llama_1"
    world.wait(120)
    assert world.fleet.engines["llama_0"].starts == 1, "it is not tried again there"


@pytest.mark.parametrize("xid", PROGRAM + HARMLESS)
def test_a_programs_fault_and_what_is_harmless_stop_nothing(xid: int):
    world = World(config(LLAMA))
    world.up("llama_0")
    report(world, xid)
    assert world.state("llama_0") is State.READY
    assert status(world)["quarantined"] is None
    assert status(world)["xids"][0]["policy"] == ("application" if xid in PROGRAM else "note")


def test_who_asks_hears_the_reason_when_no_other_card_has_the_model():
    world = World(config(LLAMA))
    report(world, 79)
    lease = world.ask("llama")
    assert "GPU 0 (RTX 3090) is quarantined: GPU 0 (RTX 3090) reported XID 79: the GPU has fallen" in str(
        world.refused[lease]
    )


def test_an_engine_of_two_cards_goes_with_one_of_them_and_one_reserved_is_never_spawned():
    world = World(config(BIG, LLAMA))
    world.up("big_dual")
    report(world, 74, card=1)
    world.wait(30)
    assert world.state("big_dual") is not State.READY
    world.up("llama_0")
    assert world.state("llama_0") is State.READY


def test_one_that_waits_for_its_reading_is_let_go():
    world = World(config(LLAMA))
    obey = world.obey
    world.obey = lambda order: None  # type: ignore[method-assign]
    world.ask("llama", patience=50)
    assert world.state("llama_0") is State.RESERVED
    world.obey = obey  # type: ignore[method-assign]
    report(world, 48)
    assert world.state("llama_0") is State.COLD


def test_each_is_told_once_counted_always_and_told_again_after_a_quiet_hour():
    world = World(config(LLAMA))
    for _ in range(5):
        report(world, 31)
        world.wait(10)
    report(world, 13)
    report(world, 31, card=1)
    assert world.notes().count("gpu_xid") == 3
    assert [(x["xid"], x["count"]) for x in status(world)["xids"]] == [(13, 1), (31, 5)]
    world.wait(3601)
    report(world, 31)
    assert world.notes().count("gpu_xid") == 4


def test_it_is_of_use_again_once_it_was_lost_and_reads_well():
    world = World(config(LLAMA))
    report(world, 79)
    world.read()
    assert status(world)["quarantined"]
    assert explain(world.fleet, "llama")["devices"][0]["trouble"] == status(world)["quarantined"]
    assert explain(world.fleet, "llama")["devices"][0]["xids"][0]["xid"] == 79
    world.trouble[0] = "GPU is lost"
    world.read()
    world.trouble.clear()
    world.read()
    assert status(world)["quarantined"] is None
    assert "device_released" in world.notes()
    world.up("llama_0")
    assert world.state("llama_0") is State.READY


def test_memory_that_comes_back_does_not_end_a_quarantine_for_an_error():
    world = World(config(LLAMA))
    world.up("llama_0")
    report(world, 95)
    world.wait(60)
    assert world.state("llama_0") in (State.COLD, State.BACKOFF)
    assert status(world)["quarantined"]


def test_a_person_who_knows_better_puts_a_gpu_back_to_use():
    world = World(config(LLAMA))
    report(world, 79)
    assert status(world)["quarantined"]
    world.send(events.ReleaseAsked("r", 0))
    assert world.answers["r"].error is None
    assert status(world)["quarantined"] is None
    assert world.ask("llama") not in world.refused
