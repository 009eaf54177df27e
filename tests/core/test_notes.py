"""Every decision is noted with what it was made from, and a flood of one kind does not wash out the others."""

from __future__ import annotations

from supervisor.config import Mode
from supervisor.core import events, orders
from supervisor.core.devices import GIB, Holder
from tests.core.world import World, config, profile

LLAMA = profile("llama_0", 0, max_concurrent=1, max_queue=0)
CODER = profile("coder_0", 0)


def notes(world: World, event: str) -> list[orders.Note]:
    return [order for order in world.log if isinstance(order, orders.Note) and order.event == event]


def test_a_start_tells_what_it_was_promised_and_what_was_free():
    world = World(config(LLAMA))
    world.ask("llama")
    (note,) = notes(world, "engine_starting")
    assert note.facts == {
        "reserved": {"GPU-0": 20 * GIB},
        "free": {"GPU-0": 24 * GIB},
        "waiting": 1,
        "expected_s": 60.0,
    }


def test_an_eviction_tells_for_whom_and_at_what_cost():
    world = World(config(LLAMA, CODER))
    world.up("coder_0")
    world.wait(30)
    world.ask("llama")
    (note,) = notes(world, "evict")
    assert note.message.startswith("coder_0 makes room for llama_0")
    assert note.facts == {
        "by": "llama_0", "busy": 0, "idle_s": 30, "worth": 0, "waiting": 1, "swap": False,
    }  # fmt: skip
    assert [note.message for note in notes(world, "engine_draining")] == [
        "coder_0 drains: llama_0 needs its place"
    ]
    assert len(notes(world, "engine_stopped")) == 1


def test_a_stop_while_it_loads_tells_why():
    world = World(config(LLAMA))
    world.send(events.StartAsked("t", "llama_0"))
    world.send(events.StopAsked("s", "llama_0"))
    (note,) = notes(world, "engine_stopping")
    assert note.message == "llama_0 stops while starting: asked by an operator"


def test_the_restart_policy_tells_its_inputs_and_when_it_gives_up():
    world = World(config(LLAMA))
    world.up("llama_0")
    for _ in range(4):
        world.crash("llama_0")
        world.wait(301)
        world.ready("llama_0")
    world.crash("llama_0")
    found = notes(world, "engine_restart_policy")
    assert found[0].facts["kind"] == "transient"
    assert [note.facts["failures"] for note in found] == [1, 2, 3, 4, 5]
    assert 7.5 <= found[0].facts["delay_s"] <= 10
    assert found[-1].facts["delay_s"] is None
    assert "given up" in found[-1].message


def test_refusals_are_noted_with_model_and_source_once_in_a_while():
    world = World(config(LLAMA))
    world.up("llama_0")
    world.ask("llama")
    for _ in range(1000):
        world.ask("llama", source="n8n")
    (first,) = notes(world, "refuse")
    assert first.facts == {"model": "llama", "source": "n8n", "tokens": 0, "like_it_before": 0}
    assert "at its limit" in first.message
    world.wait(11)
    world.ask("llama", source="n8n")
    assert notes(world, "refuse")[-1].facts["like_it_before"] == 999


def test_what_a_client_did_wrong_is_no_decision():
    world = World(config(LLAMA))
    for number in range(50):
        world.ask(f"made-up-{number}")
    assert len(world.refused) == 50
    assert not notes(world, "refuse")
    assert not world.fleet.refusals


def test_a_wait_that_lasted_too_long_is_noted():
    world = World(config(LLAMA))
    world.ask("llama", patience=20)
    world.wait(21)
    (note,) = notes(world, "refuse")
    assert "was not ready after 20 s" in note.message


def test_a_failed_start_is_noted_for_those_who_waited_without_its_log():
    world = World(config(LLAMA))
    world.ask("llama")
    world.crash("llama_0", "line one", "line two")
    (note,) = notes(world, "refuse")
    assert "\n" not in note.message


def test_a_mode_and_what_it_does_not_serve_are_noted():
    modes = {"day": Mode(start="06:00", profiles=("coder_0",)), "night": Mode(start="02:00")}
    world = World(config(LLAMA, CODER, modes=modes))
    world.send(events.ModeChanged("day", "night", "02:00", next_in=36_000))
    world.ask("llama")
    assert len(notes(world, "mode")) == 1
    assert notes(world, "refuse")[0].facts["model"] == "llama"


def test_who_is_squeezed_and_relieved_is_told_once_each():
    world = World(config(LLAMA))
    world.up("llama_0")
    world.foreign[0] = (Holder(9, int(3.9 * GIB), "train", "bob"),)
    world.wait(30)
    world.foreign[0] = ()
    world.wait(90)
    (squeezed,), relieved = notes(world, "engine_squeezed"), notes(world, "engine_relieved")
    assert squeezed.message.startswith(
        "llama_0 is given no more requests: GPU 0 (RTX 3090) has 0.10 GiB free"
    )
    assert len(relieved) == 1


def test_a_loan_that_is_refused_is_told_with_who_asked_and_why():
    world = World(config(LLAMA))
    world.foreign[0] = (Holder(9, 20 * GIB, "train", "bob"),)
    world.read()
    world.send(events.LoanAsked("l", "comfy", (0,), 8 * GIB, 60))
    (note,) = notes(world, "loan_refused")
    assert note.message.startswith("no loan to comfy: a loan to comfy needs 8.00 GiB on GPU 0")


def test_a_start_that_the_second_look_forbids_is_told():
    world = World(config(LLAMA))
    world.foreign[0] = (Holder(9, 20 * GIB, "train", "bob"),)  # since the last reading
    world.ask("llama")
    (note,) = notes(world, "start_withdrawn")
    assert note.message.startswith("llama_0 does not start after all: llama_0 needs 20.00 GiB on GPU 0")
