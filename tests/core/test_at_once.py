"""Requests that come and go while nobody waits: the short way through the core changes nothing but what it costs."""

from __future__ import annotations

import copy
import dataclasses
import datetime
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.config import Key, Mode, Peer, Routing
from supervisor.core import decide, events, kinds, orders
from supervisor.core.devices import GIB, Holder
from supervisor.core.fleet import Fleet
from supervisor.core.lifecycle import State
from supervisor.core.peer import Listed
from supervisor.core.routing import Ask
from supervisor.errors import Overloaded
from tests.core.world import CARD, World, config, profile


def warm(**fields: object) -> World:
    world = World(config(profile("llama_0", 0, max_concurrent=2, **fields), profile("coder_1", 1)))
    world.up("llama_0")
    return world


def at_once(world: World, lease: str, model: str = "llama") -> None:
    world.send(events.Arrived(lease, Ask(model, "webui", request=lease), 0.0, at_once=True))


def test_what_is_free_is_given_at_once() -> None:
    world = warm()
    at_once(world, "a")
    assert world.granted == {"a": "llama_0"}
    world.leave("a")
    assert world.state("llama_0") is State.READY


@pytest.mark.parametrize("model", ["llama", "coder", "nobody"])
def test_what_is_not_free_at_once_leaves_no_trace(model: str) -> None:
    world = warm()
    for lease in ("a", "b"):
        at_once(world, lease)
    orders = len(world.log)
    at_once(world, "c", model)
    assert "c" in world.refused
    assert (model == "nobody") != isinstance(world.refused["c"], Overloaded)
    assert len(world.log) == orders + 1  # the refusal, and no note, no route, no start
    assert world.state("coder_1") is State.COLD


def test_who_would_linger_for_its_cache_leaves_no_deadline_behind() -> None:
    world = twins()
    for lease in ("a", "b", "c"):
        world.send(events.Arrived(lease, Ask("llama", "webui", conversation="talk"), 0.0, at_once=True))
    assert (world.granted["b"], isinstance(world.refused["c"], Overloaded)) == ("llama_1", True)
    assert world.fleet.reconsider is None


def night(world: World) -> None:
    world.send(events.ModeChanged("night", "day", "06:00", next_in=14400))


def breaker(world: World) -> None:
    world.send(events.Unhealthy(world.incarnation("llama_0"), "5 requests in a row failed"))


def squeezed(world: World) -> None:
    world.foreign[0] = (Holder(77, CARD - 20 * GIB - GIB // 10, "comfy", "ann"),)
    world.read()


def quarantined(world: World) -> None:
    world.sticky = True
    world.send(events.StopAsked("t", "llama_0"))
    world.wait(61)


def full(world: World) -> None:
    for _ in range(3):
        world.ask("llama")


def draining(world: World) -> None:
    world.ask("llama")
    world.send(events.StopAsked("t", "llama_0"))


def closing(world: World) -> None:
    world.send(events.ShutdownAsked(keep_engines=True))


@pytest.mark.parametrize(
    "befalls",
    [night, breaker, squeezed, quarantined, full, draining, closing],
    ids=lambda f: f.__name__,
)
def test_whatever_befalls_an_engine_a_request_at_once_then_waiting_is_one_that_waits(
    befalls: Callable[[World], None],
) -> None:
    """As it comes on a connection whose requests were served at once before."""
    modes = {
        "day": Mode(start=datetime.time(6)),
        "night": Mode(start=datetime.time(2), profiles=("coder_1",)),
    }
    world = World(
        config(profile("llama_0", 0, max_concurrent=2, max_queue=1), profile("coder_1", 1), modes=modes)
    )
    world.send(events.ModeChanged("day", "night", "02:00", next_in=3600))
    world.up("llama_0")
    at_once(world, "before")
    assert world.granted["before"] == "llama_0"
    world.leave("before")
    befalls(world)
    other = copy.deepcopy(world)
    at_once(world, "x")
    assert "x" not in world.granted
    found = []
    for played in (world, other):
        played.refused.pop("x", None)
        already = len(played.log)
        played.send(events.Arrived("x", Ask("llama", "webui", request="x"), 290.0))
        found.append(
            (played.log[already:], played.granted, played.refused, list(played.fleet.engines.values()))
        )
    assert repr(found[0]) == repr(found[1])


def test_nobody_is_served_at_once_before_those_who_wait() -> None:
    world = warm()
    first, _, third = (world.ask("llama") for _ in range(3))
    at_once(world, "c")
    assert "c" in world.refused
    world.leave(first)
    assert third in world.granted


def test_an_idle_engine_is_stopped_when_its_time_has_come_all_the_same() -> None:
    world = warm(idle_ttl=60.0)
    at_once(world, "a")
    world.wait(300)
    world.leave("a")
    assert world.fleet.due == world.now + 60
    world.wait(61)
    assert world.state("llama_0") is not State.READY


def twins() -> World:
    """Two engines of one model, one of them small and slow to get more, one of another kind, and a peer."""
    both = {"model": "llama", "max_concurrent": 2, "max_queue": 2}
    world = World(
        config(
            profile("llama_0", 0, max_model_len=2000, **both),
            profile("llama_1", 1, max_model_len=8000, **both),
            profile("bge_0", 0, gib=2, task="embed", max_concurrent=1, max_queue=2),
            keys={"webui": Key(env="A"), "n8n": Key(env="B", priority="batch", weight=2.0)},
            routing=Routing(long_context_tokens=1000, prefer={"webui": ("gpu:1",)}, sticky=60.0, linger=2.0),
            peers={"dgx": Peer(url="http://dgx", models=("llama-70b",), max_concurrent=1)},
        )
    )
    world.send(events.PeerHeard("dgx", {"llama-70b": Listed(4000)}))
    for name in ("bge_0", "llama_0", "llama_1"):
        world.up(name)
        world.send(events.Told(world.incarnation(name), kv_tokens=3000))
    return world


asks = st.builds(
    Ask,
    st.sampled_from(["llama", "llama", "llama_1", "bge", "llama-70b", "nobody"]),
    st.sampled_from(["webui", "n8n", "default"]),
    st.sampled_from([0, 10, 300, 900, 1001, 1900, 2500]),
    st.sampled_from([frozenset({"generate"}), frozenset({"embed"}), frozenset()]),
    st.sampled_from([None, 16, 1200]),
    st.sampled_from([None, 40, 4000]),
    least=st.sampled_from([0, 0, 5, 2100, 9000]),
    conversation=st.sampled_from([None, "c", "d"]),
    request=st.sampled_from(["", "id"]),
    person=st.sampled_from(["", "ann", "bob"]),
)
goings = st.tuples(st.just("leave"), st.integers(0, 9), st.sampled_from([None, 0, 12, 800]))
others = st.sampled_from(["tick", "llama_0", "bge_0", "dgx", "wait"])


def befall(world: World, what: str) -> None:
    if what == "wait":
        world.wait(1.3)
    elif what == "tick":
        world.send(events.Ticked())
    elif what == "dgx":
        world.send(events.PeerLost("dgx", "gone"))
    elif world.state(what) is State.READY:
        world.crash(what)
    elif world.state(what) is State.STARTING:
        world.ready(what)


def play(steps: list[Any], *, tries: bool) -> tuple[object, ...]:
    """What was granted and all that the fleet knows then. `tries`: everyone asks at once before it would wait."""
    world = twins()
    for number, step in enumerate(steps):
        world.now += 0.01
        lease, held = f"r{number}", [*world.fleet.leases, *(w.lease for w in world.fleet.queues)]
        if isinstance(step, Ask):
            if tries:
                told = world.send(events.Arrived(lease, step, 0.0, at_once=True))[0]
                assert (type(told), told.lease) in ((orders.Grant, lease), (orders.Refuse, lease))
            if lease not in world.granted:
                world.refused.pop(lease, None)
                world.send(events.Arrived(lease, step, 290.0))
        elif isinstance(step, str):
            befall(world, step)
        elif held:
            world.send(events.Left(held[step[1] % len(held)], step[2], step[2]))
    apart = {"name_incarnation", "rng", "policy", "orders", "scene", "kinds"}
    known = [getattr(world.fleet, f.name) for f in dataclasses.fields(Fleet) if f.name not in apart]
    grants = [order for order in world.log if isinstance(order, orders.Grant)]
    return grants, {lease: repr(why) for lease, why in world.refused.items()}, known


histories = st.lists(st.one_of(asks, asks, goings, others), max_size=60)


@given(histories)
def test_who_asks_at_once_first_is_served_as_who_does_not(steps: list[Any]) -> None:
    assert play(steps, tries=True) == play(steps, tries=False)


@given(histories)
def test_where_a_kind_goes_is_what_would_be_found_for_each_of_it(steps: list[Any]) -> None:
    """Whatever the length of those before it."""

    def anew(fleet: Fleet, ask: Ask, patience: float) -> kinds.Kind:
        return kinds.look(fleet, ask, fleet.home(ask.conversation), patience)

    kept = play(steps, tries=True)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kinds, "find", anew)
        assert play(steps, tries=True) == kept


moves = st.lists(
    st.tuples(st.sampled_from(["llama", "coder", "leave", "tick"]), st.integers(0, 5)), max_size=40
)


@given(moves)
def test_the_short_way_decides_as_the_long_one(steps: list[tuple[str, int]]) -> None:
    def play() -> list[object]:
        world = warm(idle_ttl=20.0)
        for number, (what, seconds) in enumerate(steps):
            world.wait(seconds)
            held = list(world.fleet.leases)
            if what in ("llama", "coder"):
                world.send(events.Arrived(f"r{number}", Ask(what, "webui", 10), 290.0))
            elif what == "leave" and held:
                world.leave(held[seconds % len(held)])
            else:
                world.send(events.Ticked())
        return [
            *map(repr, world.log),
            sorted(world.granted.items()),
            [repr(e) for e in world.fleet.engines.values()],
        ]

    short = play()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(decide, "is_passing", lambda fleet, event: False)
        assert play() == short
