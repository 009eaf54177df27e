"""A size on cards of several sizes: vLLM takes one fraction of each, and the ledger counts that."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from supervisor.config import Profile
from supervisor.core import events, orders
from supervisor.core.devices import GIB, Survey
from supervisor.core.lifecycle import State
from tests.core.world import World, config, profile


def uneven(*profiles: Profile) -> World:
    """GPU 0 has 24 GiB, GPU 1 has 48."""
    world = World(config(*profiles))
    world.totals[1] = 48 * GIB
    world.read()
    return world


@pytest.mark.parametrize("gpus", [(0, 1), (1, 0)])
def test_what_is_promised_is_what_vllm_takes_of_each(gpus: tuple[int, ...]):
    world = uneven(profile("big_dual", *gpus, gib=12))
    world.send(events.StartAsked("t", "big_dual"))
    (spawn,) = [order for order in world.log if isinstance(order, orders.Spawn)]
    takes = {f"GPU-{i}": math.ceil(world.totals[i] * spawn.utilization) for i in gpus}
    assert world.fleet.engines["big_dual"].reserved == takes == {"GPU-0": 12 * GIB, "GPU-1": 24 * GIB}


def test_nobody_is_let_in_where_the_size_alone_would_leave_room():
    world = uneven(profile("big_dual", 0, 1, gib=12), profile("coder_1", 1, gib=30))
    world.up("big_dual")
    busy = world.ask("big")
    world.send(events.StartAsked("t", "coder_1"))
    assert "held by: big_dual 24.00 GiB" in str(world.answers["t"].error)
    world.leave(busy)
    world.up("coder_1")
    assert world.state("big_dual") is State.COLD


def test_it_does_not_start_where_only_the_size_is_free():
    world = uneven(profile("big_dual", 0, 1, gib=12), profile("coder_1", 1, gib=30))
    world.up("coder_1")
    world.ask("coder")
    world.send(events.StartAsked("t", "big_dual"))
    assert "big_dual needs 24.00 GiB on GPU 1" in str(world.answers["t"].error)


def test_a_card_that_cannot_be_read_says_nothing_of_what_it_takes_of_the_other():
    world = uneven(profile("big_dual", 0, 1, gib=12))
    world.survey = lambda: broken(world)  # type: ignore[method-assign]
    world.read()
    world.send(events.StartAsked("t", "big_dual"))
    told = str(world.answers["t"].error)
    assert "GPU is lost" in told
    assert "big_dual needs" not in told


def broken(world: World) -> Survey:
    found = World.survey(world)
    lost = replace(found.readings[0], total=0, used=0, free=0, trouble="GPU is lost", at=world.now)
    return replace(found, readings=(lost, *found.readings[1:]))
