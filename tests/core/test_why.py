"""`llmd why`: one history for each answer."""

from __future__ import annotations

from datetime import time
from typing import Any

import pytest

from supervisor.config import Mode
from supervisor.core import events
from supervisor.core.devices import GIB, HOST, Holder
from supervisor.core.lifecycle import State
from supervisor.core.routing import Ask
from supervisor.core.why import explain
from supervisor.errors import ModelNotFound
from tests.core.world import World, config, profile

LLAMA = profile("llama_0", 0)
CODER = profile("coder_0", 0)
BIG = profile("big_dual", 0, 1, gib=22)


def why(world: World, name: str = "llama_0") -> dict[str, Any]:
    """The one profile's entry."""
    (found,) = explain(world.fleet, name)["profiles"]
    return found


def loaded(*profiles: Any, up: str) -> World:
    world = World(config(*profiles))
    world.up(up)
    return world


def test_never_asked_for():
    found = why(World(config(LLAMA)))
    assert (found["state"], found["loaded"], found["failure"]) == ("cold", False, None)
    assert found["why"] == "it is not loaded: nobody has asked for it yet"
    assert found["needs"] == [
        {"device": "GPU-0", "name": "GPU 0 (RTX 3090)", "need": 20 * GIB,
         "available": 24 * GIB - (256 << 20), "holds": 0}
    ]  # fmt: skip
    assert (found["stands_in_the_way"], found["makes_room"], found["serves_in"]) == (None, [], 60)


def test_ready_and_idle():
    world = loaded(LLAMA, up="llama_0")
    world.wait(90)
    found = why(world)
    assert (found["loaded"], found["why"], found["serves_in"]) == (True, "it is ready", 0)
    assert (found["idle"], found["in_flight"], found["needs"][0]["holds"]) == (90, 0, 20 * GIB)


def test_ready_and_full():
    world = loaded(profile("llama_0", 0, max_concurrent=1), up="llama_0")
    world.ask("llama")
    found = why(world)
    assert (found["in_flight"], found["idle"]) == (1, None)
    assert found["serves_in"] > 0


def test_ready_but_squeezed():
    world = loaded(LLAMA, up="llama_0")
    world.foreign[0] = (Holder(4242, 4 * GIB, "blender", "alice"),)
    world.wait(5)
    assert "it is ready, but GPU 0" in why(world)["why"]


def test_on_its_way():
    world = World(config(LLAMA))
    world.ask("llama")
    world.wait(10)
    found = why(world)
    assert (found["why"], found["stands_in_the_way"], found["queued"]) == ("it is starting", None, 1)
    assert 0 < found["serves_in"] <= 60


def test_taken_down_for_being_idle():
    world = loaded(profile("llama_0", 0, idle_ttl=60.0), up="llama_0")
    world.wait(70)
    assert why(world)["why"] == "it is not loaded: idle"


def test_evicted_and_by_whom_it_could_come_back():
    world = loaded(LLAMA, CODER, up="llama_0")
    world.wait(60)
    world.ask("coder")
    world.ready("coder_0")
    found = why(world)
    assert found["why"] == "it is not loaded: coder_0 needs its place"
    assert "coder_0" in found["stands_in_the_way"]
    assert found["makes_room"] == ["coder_0"]
    patience = world.fleet.config.scheduling.patience_interactive
    assert 0 < found["serves_in"] - world.fleet.engines["llama_0"].way_back <= patience + 30


def test_an_idle_holder_gives_way_at_once():
    world = loaded(LLAMA, CODER, up="coder_0")
    world.wait(60)
    found = why(world)
    assert (found["makes_room"], found["by_sleeping"], found["serves_in"]) == (["coder_0"], False, 60)


def test_a_holder_that_can_sleep_does():
    world = loaded(LLAMA, profile("coder_0", 0, sleep=True), up="coder_0")
    world.wait(60)
    found = why(world)
    assert (found["makes_room"], found["by_sleeping"]) == (["coder_0"], True)


def test_the_foretold_swap_is_the_one_that_happens():
    """The prediction is made from the same policy: a request is served no later than was told."""
    world = loaded(profile("coder_0", 0, max_concurrent=1), LLAMA, up="coder_0")
    busy = world.ask("coder")
    foretold = why(world)
    begins = world.now + foretold["serves_in"] - world.fleet.engines["llama_0"].way_back
    world.ask("llama")
    while world.state("coder_0") is State.READY:
        world.wait(1)
    assert world.now <= begins + 1
    world.leave(busy)
    assert world.state("llama_0") is State.STARTING


def test_a_pinned_holder_never_gives_way():
    world = loaded(LLAMA, profile("coder_0", 0, pin=True), up="coder_0")
    world.wait(600)
    found = why(world)
    assert (found["serves_in"], found["makes_room"]) == (None, [])
    (device,) = explain(world.fleet, "llama_0")["devices"]
    assert device["ours"][0]["pinned"] is True


def test_foreign_memory_is_named_and_nothing_would_help():
    world = World(config(LLAMA))
    world.foreign[0] = (Holder(4242, 6 * GIB, "blender", "alice"),)
    world.read()
    answer = explain(world.fleet, "llama")
    (found,), (device,) = answer["profiles"], answer["devices"]
    assert found["serves_in"] is None
    assert "PID 4242 blender (alice) 6.00 GiB" in found["stands_in_the_way"]
    assert device["foreign"][0] == {"pid": 4242, "used": 6 * GIB, "name": "blender", "user": "alice"}
    assert (device["foreign_total"], device["free"]) == (6 * GIB, 18 * GIB)


def test_who_holds_the_memory_with_state_and_idle_time():
    world = loaded(LLAMA, CODER, up="coder_0")
    world.wait(45)
    (device,) = explain(world.fleet, "llama_0")["devices"]
    assert device["ours"] == [
        {"profile": "coder_0", "held": 20 * GIB, "state": "ready", "in_flight": 0, "pinned": False, "idle": 45}
    ]  # fmt: skip


def test_failed_and_tried_again():
    world = World(config(LLAMA))
    world.send(events.StartAsked("t", "llama_0"))
    world.crash("llama_0", "loading", "Segmentation fault")
    world.send(events.StartAsked("t2", "llama_0"))
    world.crash("llama_0", "loading", "Segmentation fault")
    found = why(world)
    assert found["failure"] == {
        "kind": "transient",
        "message": "the engine exited with status 1 while loading",
        "log": ["loading", "Segmentation fault"],
    }
    assert found["why"].startswith("it failed and is tried again in ")
    left = world.fleet.engines["llama_0"].deadline - world.now
    assert found["serves_in"] == pytest.approx(left + 60, abs=0.2)


def test_given_up():
    world = World(config(LLAMA))
    world.send(events.StartAsked("t", "llama_0"))
    world.crash("llama_0", "vllm: error: unrecognized arguments: --nonsense")
    found = why(world)
    assert (found["state"], found["serves_in"]) == ("impossible", None)
    assert found["why"].startswith("it cannot start: not tried again until its configuration changes")
    assert found["failure"]["kind"] == "impossible"


def test_too_big_for_its_card():
    found = why(World(config(profile("llama_0", 0, gib=25))))
    assert found["serves_in"] is None
    assert "which has 24.00 GiB in all" in found["stands_in_the_way"]


def test_quarantined():
    world = loaded(LLAMA, up="llama_0")
    world.sticky = True
    world.crash("llama_0")
    world.wait(70)
    assert why(world)["state"] == "settling"
    (device,) = explain(world.fleet, "llama_0")["devices"]
    assert "did not come back" in device["trouble"]


def test_not_in_this_mode():
    modes = {"day": Mode(start="06:00"), "night": Mode(start="02:00", profiles=("big_dual",))}
    world = World(config(LLAMA, BIG, modes=modes))
    world.send(events.ModeChanged("day", "night", "02:00", next_in=3600))
    found = why(world, "big")
    assert found["why"] == "mode day does not have it; it comes back when mode night starts, 02:00"
    assert found["serves_in"] == 3660


def test_asleep_and_what_was_learned():
    world = loaded(profile("llama_0", 0, sleep=True, sleep_after=60.0), up="llama_0")
    world.wait(60)
    world.held[world.incarnation("llama_0")] = {"GPU-0": GIB}
    world.send(events.Slept(world.incarnation("llama_0")))
    world.wait(6)
    found = why(world)
    assert (found["state"], found["why"]) == ("sleeping", "it sleeps at level 1: idle")
    assert (found["learned"]["start"], found["learned"]["residue"]) == (0, {"GPU-0": GIB})
    assert found["serves_in"] == 3


def test_what_was_learned_of_tokens():
    world = loaded(LLAMA, up="llama_0")
    assert why(world)["learned"]["letters_per_token"] is None
    for number in range(50):
        letters = 500 + 100 * number
        world.send(events.Arrived("n", Ask("llama", letters=letters), 290))
        world.send(events.Left("n", prompt=round(30 + letters / 3)))
        world.log.clear()
    found = why(world)["learned"]
    assert found["letters_per_token"] == pytest.approx(3, rel=0.05)
    assert found["requests_counted"] == 50


def test_a_models_profiles_are_all_explained():
    answer = explain(World(config(LLAMA, profile("llama_1", 1), CODER)).fleet, "llama")
    assert [entry["profile"] for entry in answer["profiles"]] == ["llama_0", "llama_1"]
    assert [device["device"] for device in answer["devices"]] == ["GPU-0", "GPU-1"]


def test_an_unknown_name_is_told_the_names():
    with pytest.raises(ModelNotFound, match="there are: llama, coder, llama_0, coder_0"):
        explain(World(config(LLAMA, CODER)).fleet, "gpt-9")


def test_nothing_is_changed_by_asking():
    world = loaded(LLAMA, CODER, up="coder_0")
    world.ask("coder")
    before = repr(world.fleet)
    explain(world.fleet, "llama")
    assert repr(world.fleet) == before


def test_waiters_of_a_slow_source_count_as_they_wait():
    """Who waits already has waited: the foretelling starts from that, not from now."""
    world = loaded(profile("coder_0", 0, max_concurrent=1), LLAMA, up="coder_0")
    world.ask("coder")
    fresh = why(world)["serves_in"]
    world.ask("llama")
    world.wait(20)
    assert why(world)["serves_in"] < fresh


def test_by_day_a_request_for_the_nights_model_would_be_refused():
    modes = {"day": Mode(start=time(6)), "night": Mode(start=time(2), profiles=("big_dual",))}
    world = World(config(LLAMA, BIG, modes=modes))
    world.send(events.ModeChanged("day", "night", "02:00", next_in=3600))
    assert why(world, "big_dual")["refused_now"]
    assert world.ask("big") in world.refused
    assert not why(world)["refused_now"]
    world.wait(3600 - 60)  # so near that it would be waited for
    assert not why(world, "big_dual")["refused_now"]


def test_what_the_mode_waits_for_is_not_what_nobody_asked_for():
    modes = {
        "day": Mode(start=time(6)),
        "night": Mode(start=time(2), profiles=("big_dual",), warm=("big_dual",)),
    }
    world = World(config(LLAMA, BIG, modes=modes))
    world.send(events.ModeChanged("day", "night", "02:00", next_in=3600))
    world.foreign[0] = (Holder(4242, 4 * GIB, "blender", "alice"),)
    world.read()
    world.send(events.ModeChanged("night", "day", "06:00", next_in=3600))
    assert (
        why(world, "big_dual")["why"] == "it is not loaded: mode night wants it, and it waits for its place"
    )


def test_a_sleeper_tells_of_its_host_memory():
    world = loaded(profile("llama_0", 0, sleep=True, sleep_after=60.0), up="llama_0")
    world.wait(70)
    engine = world.fleet.engines["llama_0"]
    world.held[engine.incarnation or ""] = {"GPU-0": GIB, HOST: 20 * GIB}
    world.send(events.Slept(engine.incarnation or ""))
    world.wait(10)
    assert engine.state is State.SLEEPING
    held = {need["device"]: need["holds"] for need in why(world)["needs"]}
    assert held == {"GPU-0": GIB, HOST: 20 * GIB}
    host = next(d for d in explain(world.fleet, "llama_0")["devices"] if d["device"] == HOST)
    assert [holder["profile"] for holder in host["ours"]] == ["llama_0"]
