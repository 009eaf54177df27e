"""Conversations go where their beginning is cached, and never wait long for that."""

from __future__ import annotations

import pytest

from supervisor.config import Routing
from supervisor.core import events, orders
from supervisor.core.homes import Homes
from tests.core.world import World, config, profile


def twins(up: tuple[str, ...] = ("llama_0", "llama_1"), **routing: float) -> World:
    """Two that are alike, one slot each; llama_0 is everyone's first choice."""
    pair = [profile("llama_0", 0, max_concurrent=1), profile("llama_1", 1, max_concurrent=1)]
    world = World(config(*pair, routing=Routing(prefer={"default": ("gpu:0",)}, **routing)))
    for name in up:
        world.up(name)
    return world


def settled(world: World, conversation: str = "c") -> None:
    """The conversation has its first turn on llama_1, while llama_0 was taken."""
    other, turn = world.ask("llama"), world.ask("llama", conversation=conversation)
    assert world.granted == world.granted | {other: "llama_0", turn: "llama_1"}
    world.leave(other)
    world.leave(turn)


def test_the_next_turn_goes_home_and_says_why():
    world = twins()
    settled(world)
    assert world.granted[world.ask("llama")] == "llama_0"
    turn = world.ask("llama", conversation="c")
    assert world.granted[turn] == "llama_1"


def test_the_cache_is_the_reason_that_is_told():
    world = twins()
    settled(world)
    turn = world.ask("llama", conversation="c", request="id")
    (grant,) = [order for order in world.log if isinstance(order, orders.Grant) and order.lease == turn]
    assert grant.reason == "has the earlier turns of this conversation in its cache"
    assert grant.route is not None
    assert grant.route.candidates[0].reason == grant.reason


def test_a_full_home_is_waited_for_and_wins_within_the_linger():
    world = twins()
    settled(world)
    busy = world.ask("llama", conversation="c")
    turn = world.ask("llama", conversation="c")
    assert turn not in world.granted
    world.wait(1.5)
    world.leave(busy)
    assert world.granted[turn] == "llama_1"


def test_a_full_home_never_beats_a_free_twin_by_more_than_the_linger():
    world = twins()
    settled(world)
    world.ask("llama", conversation="c")
    turn = world.ask("llama", conversation="c")
    world.wait(1.9)
    assert turn not in world.granted
    world.wait(0.2)
    assert world.granted[turn] == "llama_0"


def test_with_another_waiting_for_home_the_twin_is_taken_at_once():
    world = twins()
    settled(world)
    world.ask("llama", conversation="c")
    first, second = world.ask("llama", conversation="c"), world.ask("llama", conversation="c", source="b")
    assert {first, second} & world.granted.keys()


def test_no_linger_is_no_waiting():
    world = twins(linger=0)
    settled(world)
    world.ask("llama", conversation="c")
    assert world.granted[world.ask("llama", conversation="c")] == "llama_0"


def test_a_new_incarnation_has_no_cache():
    world = twins()
    settled(world)
    world.crash("llama_1")
    world.wait(30)
    world.ready("llama_1")
    assert world.granted[world.ask("llama", conversation="c")] == "llama_0"


@pytest.mark.parametrize(("after", "home"), [(1799, "llama_1"), (1801, "llama_0")])
def test_a_conversation_is_forgotten(after: float, home: str):
    world = twins()
    settled(world)
    for engine in world.fleet.engines.values():
        engine.deadline = None  # nobody is stopped for being idle
    world.now += after
    world.read()
    for engine in world.fleet.engines.values():
        engine.deadline = None
    assert world.granted[world.ask("llama", conversation="c")] == home


def half_up() -> World:
    """llama_1 is ready, llama_0 begins to load, which is taken to last 60 s."""
    world = twins(up=("llama_1",))
    world.send(events.StartAsked("t", "llama_0"))
    return world


def test_a_nearly_loaded_first_choice_is_waited_for():
    world = half_up()
    world.wait(59)
    turn = world.ask("llama")
    assert turn not in world.granted
    world.ready("llama_0")
    assert world.granted[turn] == "llama_0"


def test_a_first_choice_that_loads_for_long_is_not():
    world = half_up()
    world.wait(30)
    assert world.granted[world.ask("llama")] == "llama_1"


def test_the_memory_is_bounded_and_forgets_who_was_quiet_longest():
    homes = Homes(ttl=100, most=2)
    for name in ("a", "b", "a", "c"):
        homes.settle(name, "llama_0", "i1", 0)
    assert len(homes) == 2
    assert [name for name in "abc" if homes.of(name, 0)] == ["a", "c"]


def test_sticky_off_remembers_nothing():
    homes = Homes(ttl=None)
    homes.settle("a", "llama_0", "i1", 0)
    assert len(homes) == 0
