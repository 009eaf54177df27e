"""A running engine whose headroom others have taken: who gets its requests, and when it is given some again."""

from __future__ import annotations

import pytest

from supervisor.core.devices import GIB, MIB, Holder
from supervisor.core.lifecycle import State
from tests.core.world import CARD, World, config, profile

LLAMA, SIBLING = profile("llama_0", 0), profile("llama_1", 1)
SAID = "GPU 0 (RTX 3090) has 0.10 GiB free, 0.25 GiB are needed to serve; others hold 3.90 GiB: PID 77 comfy (ann)"


def crowd(world: World, free: int) -> None:
    """A neighbour leaves so many bytes of GPU 0 free beside llama_0."""
    world.foreign[0] = (Holder(77, CARD - 20 * GIB - free, "comfy", "ann"),)
    world.read()


def squeezed(*siblings: object) -> World:
    world = World(config(LLAMA, *siblings))  # type: ignore[arg-type]
    world.up("llama_0")
    crowd(world, GIB // 10)
    return world


def test_it_takes_half_as_much_again_to_be_let_go() -> None:
    world = squeezed()
    lease = world.ask("llama")
    for free in (257, 383):
        crowd(world, free * MIB)
        assert lease not in world.granted
    crowd(world, 385 * MIB)
    assert lease in world.granted
    crowd(world, 300 * MIB)
    assert world.ask("llama") in world.granted, "it is squeezed at its headroom, not above"
    crowd(world, 255 * MIB)
    assert world.ask("llama") not in world.granted


@pytest.mark.parametrize("running", [True, False])
def test_its_requests_go_to_a_sibling(running: bool) -> None:
    world = squeezed(SIBLING)
    if running:
        world.up("llama_1")
    lease = world.ask("llama")
    if not running:
        assert world.state("llama_1") is State.STARTING
        world.ready("llama_1")
    assert world.granted[lease] == "llama_1"


def test_a_sibling_takes_the_place_of_who_is_idle() -> None:
    world = squeezed(SIBLING, profile("coder_1", 1))
    world.up("coder_1")
    world.wait(61)
    world.ask("llama")
    assert (world.state("coder_1"), world.state("llama_1")) == (State.COLD, State.STARTING)


def test_alone_they_wait_and_hear_why_when_they_waited_too_long() -> None:
    world = squeezed()
    lease = world.ask("llama", patience=100)
    world.wait(99)
    assert lease not in world.granted | world.refused
    world.wait(2)
    assert f"llama_0 is ready, but {SAID}" in str(world.refused[lease])
    assert world.state("llama_0") is State.READY
