"""Whose place is taken: histories in which one term of an engine's worth decides."""

from __future__ import annotations

from typing import Any

from supervisor.config import Config, Key, Memory
from supervisor.core.devices import GIB, Holder
from supervisor.core.learned import Learned
from supervisor.core.lifecycle import State
from tests.core.world import World, config, profile

KEYS = {"n8n": Key(env="A", priority="batch")}


def loaded(configured: Config, **start: float) -> World:
    """All of `start` are up, with the seconds that their start takes."""
    world = World(configured)
    for name, seconds in start.items():
        world.fleet.engines[name].learned = Learned(start=seconds)
    for name in start:
        world.up(name)
    return world


def use(world: World, model: str, times: int = 1, **asked: Any) -> None:
    for _ in range(times):
        world.leave(world.ask(model, **asked))


def gone(world: World) -> list[str]:
    return [name for name, engine in world.fleet.engines.items() if engine.state is State.COLD]


def test_who_is_asked_for_less_often_goes():
    pair = [profile(name, 0, gib=10) for name in ("a_0", "b_0", "new_0")]
    world = loaded(config(*pair), a_0=60, b_0=60)
    use(world, "a")
    use(world, "b", times=3)
    world.ask("new")
    assert gone(world) == ["a_0"]


def test_a_batch_request_counts_for_less():
    pair = [profile(name, 0, gib=10) for name in ("a_0", "b_0", "new_0")]
    world = loaded(config(*pair, keys=KEYS), a_0=60, b_0=60)
    use(world, "a", times=3, source="n8n")
    use(world, "b")
    world.ask("new")
    assert gone(world) == ["a_0"]


def test_who_is_back_sooner_goes():
    pair = [profile(name, 0, gib=10) for name in ("a_0", "b_0", "new_0")]
    world = loaded(config(*pair), a_0=300, b_0=30)
    use(world, "a")
    use(world, "b", times=2)
    world.ask("new")
    assert gone(world) == ["b_0"]


def test_who_frees_more_goes():
    world = loaded(config(profile("a_0", 0, gib=7), profile("b_0", 0, gib=14), profile("new_0", 0, gib=8)),
                   a_0=60, b_0=60)  # fmt: skip
    use(world, "a", times=2)
    use(world, "b", times=3)
    world.ask("new")
    assert gone(world) == ["b_0"]


def test_what_is_not_asked_for_any_more_ages():
    """a was asked for more often than c, but before b, which was dearer than both, had to go."""
    four = [profile(f"{name}_0", 0, gib=10) for name in ("a", "b", "c", "new")]
    world = loaded(config(*four), a_0=60, b_0=60)
    use(world, "b", times=8)
    use(world, "a", times=4)
    busy = world.ask("a")
    world.ask("c")
    world.ready("c_0")
    assert gone(world) == ["b_0", "new_0"]
    world.leave(busy)
    world.leave(next(lease for lease, place in world.granted.items() if place == "c_0"))
    world.ask("new")
    assert gone(world) == ["a_0", "b_0"]


def test_memory_on_another_card_does_not_count():
    three = (profile("a_dual", 0, 1, gib=10), profile("b_0", 0, gib=10), profile("new_0", 0, gib=10))
    world = loaded(config(*three), a_dual=60, b_0=60)
    use(world, "b", times=2)
    use(world, "a", times=3)  # half as dear, if both of its cards counted
    world.ask("new")
    assert gone(world) == ["b_0"]


def test_who_must_stop_although_it_could_sleep_is_back_from_cold():
    """Too much would stay behind of a sleeper, so one of them must stop: the one that wakes sooner loads longer."""
    pair = [profile(name, 0, gib=10, sleep=True) for name in ("a_0", "b_0")]
    world = loaded(config(*pair, profile("new_0", 0, gib=13.5), memory=Memory(residue=6 * GIB)), a_0=0, b_0=0)
    for name, known in {"a_0": Learned(start=200.0, wake=2.0), "b_0": Learned(start=20.0, wake=5.0)}.items():
        world.fleet.engines[name].learned = known
    use(world, "a")
    use(world, "b")
    world.ask("new")
    assert gone(world) == ["b_0"]


def test_nobody_goes_where_all_of_them_would_not_do():
    world = loaded(
        config(profile("a_0", 0, gib=4), profile("b_0", 0, gib=4), profile("new_0", 0)), a_0=60, b_0=60
    )
    world.foreign[0] = (Holder(77, 8 * GIB, "comfy", "ann"),)
    world.read()
    told = str(world.refused[world.ask("new")])
    assert gone(world) == ["new_0"]
    assert "new_0 needs 20.00 GiB on GPU 0 (RTX 3090), 7.75 GiB is available" in told
    assert "held by: a_0 4.00 GiB, b_0 4.00 GiB, PID 77 comfy (ann) 8.00 GiB" in told
