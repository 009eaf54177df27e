"""Engines that take memory of another GPU than the one they were sent to."""

from __future__ import annotations

import pytest

from supervisor.core import events, orders
from supervisor.core.devices import GIB
from supervisor.core.lifecycle import State
from tests.core.world import World, config, profile

SAID = (
    "llama_0 took 8.00 GiB of GPU 1 (RTX 3090), but was sent to GPU 0 (RTX 3090); "
    "what chooses its GPUs is CUDA_VISIBLE_DEVICES"
)


def landed(sizes: dict[str, float]) -> World:
    world = World(config(profile("llama_0", 0, gib=8), profile("coder_1", 1)))
    world.send(events.StartAsked("t", "llama_0"))
    world.held[world.incarnation("llama_0")] = {device: int(size * GIB) for device, size in sizes.items()}
    world.read()
    return world


@pytest.mark.parametrize(
    "sizes", [{"GPU-1": 8}, {"GPU-0": 0.3, "GPU-1": 8}, {"GPU-0": 8, "GPU-1": 8, "host": 3}]
)
def test_it_is_stopped_with_words_that_say_where_it_is_and_why(sizes: dict[str, float]) -> None:
    world = landed(sizes)
    assert world.state("llama_0") is State.IMPOSSIBLE
    assert world.answers["t"].error is not None
    assert SAID in str(world.answers["t"].error)
    assert SAID in str(world.refused[world.ask("llama")])
    world.wait(400)
    assert sum(isinstance(order, orders.Spawn) for order in world.log) == 1
    assert world.ask("coder") not in world.refused


def test_a_context_on_another_gpu_is_no_landing() -> None:
    world = landed({"GPU-0": 8, "GPU-1": 0.4, "host": 5})
    world.ready("llama_0")
    assert world.state("llama_0") is State.READY


def test_one_found_out_while_it_serves_is_stopped_too() -> None:
    world = landed({"GPU-0": 0})
    world.ready("llama_0")
    world.held[world.incarnation("llama_0")] = {"GPU-1": 8 * GIB}
    world.read()
    assert world.state("llama_0") is State.IMPOSSIBLE


def test_the_memory_that_it_took_elsewhere_must_come_back_too() -> None:
    world = World(config(profile("llama_0", 0, gib=8), profile("coder_1", 1)))
    world.send(events.StartAsked("t", "llama_0"))
    tree = world.incarnation("llama_0")
    world.sticky = True
    world.held[tree] = {"GPU-1": 8 * GIB}
    world.read()
    assert world.state("llama_0") is State.SETTLING
    world.wait(61)
    assert set(world.fleet.ledger.quarantined) == {"GPU-0", "GPU-1"}
    world.held[tree] = {}
    world.read()
    assert world.state("llama_0") is State.IMPOSSIBLE
    assert not world.fleet.ledger.quarantined


def test_a_gpu_that_it_never_used_has_no_say_in_its_settling() -> None:
    world = landed({"GPU-0": 8, "GPU-1": 0})
    world.ready("llama_0")
    world.read()
    world.trouble[1] = "GPU is lost"
    world.send(events.StopAsked("u", "llama_0"))
    assert world.state("llama_0") is State.COLD
