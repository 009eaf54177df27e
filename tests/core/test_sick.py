"""A GPU that fails its engines: nothing starts there until it was reset or a person says so; others serve."""

from __future__ import annotations

import pytest

from supervisor.core import events, orders
from supervisor.core.failures import FailureClass, classify
from supervisor.core.lifecycle import State
from tests.core.world import World, config, profile

HEAD = "(EngineCore pid=95) ERROR 11-23 09:45:24 [core.py:1310] "
LOST = f"{HEAD}RuntimeError: CUDA error: uncorrectable ECC error encountered"
LLAMA, SIBLING, CODER = profile("llama_0", 0), profile("llama_1", 1), profile("coder_0", 0, gib=2)


def struck(world: World) -> World:
    """llama_0 met the error while it loaded."""
    world.send(events.StartAsked("t", "llama_0"))
    world.crash("llama_0", LOST)
    return world


@pytest.mark.parametrize(
    "line",
    [
        LOST,
        f"{HEAD}RuntimeError: CUDA error: uncorrectable NVLink error detected during the execution",
        f"{HEAD}NVMLError_GpuIsLost: GPU is lost",
        "NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus.",
    ],
)
def test_what_a_sick_gpu_says(line: str) -> None:
    assert classify(1, (line,), was_ready=False).kind is FailureClass.GPU_SICK


def test_a_models_bug_makes_no_gpu_sick() -> None:
    line = f"{HEAD}RuntimeError: CUDA error: device-side assert triggered"
    assert classify(1, (line,), was_ready=False).kind is FailureClass.TRANSIENT


def test_nothing_starts_there_and_it_is_not_tried_again() -> None:
    world = struck(World(config(LLAMA, CODER)))
    world.wait(700)
    assert world.state("llama_0") is State.COLD
    for model in ("llama", "coder"):
        refused = str(world.refused[world.ask(model)])
        assert "GPU 0 (RTX 3090) is quarantined: gpu sick: " in refused
        assert "uncorrectable ECC error" in refused
    assert sum(isinstance(order, orders.Spawn) for order in world.log) == 1


def test_its_model_goes_on_elsewhere() -> None:
    world = World(config(LLAMA, SIBLING))
    lease = world.ask("llama")
    world.crash("llama_0", LOST)
    world.ready("llama_1")
    assert world.granted[lease] == "llama_1"


def test_who_serves_beside_it_goes_on() -> None:
    world = World(config(profile("llama_0", 0, gib=8), CODER))
    world.up("coder_0")
    struck(world)
    assert world.ask("coder") in world.granted


def test_it_is_over_once_the_gpu_was_lost_and_reads_well_again() -> None:
    world = struck(World(config(LLAMA)))
    world.wait(30)
    assert "GPU-0" in world.fleet.ledger.quarantined, "reading well proves nothing: it did all the time"
    world.trouble[0] = "GPU requires a reset"
    world.wait(30)
    world.trouble.clear()
    world.read()
    assert not world.fleet.ledger.quarantined
    world.ask("llama")
    assert world.state("llama_0") is State.STARTING


def test_an_operators_start_says_that_it_is_well() -> None:
    world = struck(World(config(LLAMA, SIBLING)))
    world.send(events.StartAsked("other", "llama_1"))
    assert "GPU-0" in world.fleet.ledger.quarantined, "that one is elsewhere"
    world.send(events.StartAsked("again", "llama_0"))
    assert world.state("llama_0") is State.STARTING
    (note,) = [o for o in world.log if isinstance(o, orders.Note) and o.event == "quarantine_lifted"]
    assert note.message.endswith("is no longer quarantined; an operator starts llama_0 there")


def test_memory_that_is_missing_is_not_found_by_an_operators_start() -> None:
    world = World(config(profile("llama_0", 0, gib=8), CODER))
    world.up("llama_0")
    world.sticky = True
    world.send(events.StopAsked("t", "llama_0"))
    world.wait(61)
    world.send(events.StartAsked("u", "coder_0"))
    assert "did not come back" in str(world.answers["u"].error)
    assert "did not come back" in str(world.refused[world.ask("llama")]), "who knows when"


def test_one_that_serves_is_believed_only_in_its_own_words() -> None:
    assert classify(0, (LOST,), was_ready=True).kind is FailureClass.GPU_SICK
    for line in (f"prompt: '{LOST}'", f"{HEAD}prompt: 'CUDA error: uncorrectable ECC error'"):
        assert classify(0, (line,), was_ready=True).kind is FailureClass.TRANSIENT


def test_its_requests_go_on_elsewhere_when_it_dies_serving() -> None:
    world = World(config(profile("llama_0", 0, max_concurrent=1), profile("llama_1", 1, max_concurrent=1)))
    world.up("llama_0")
    busy, waiting = world.ask("llama"), world.ask("llama")
    assert world.granted == {busy: "llama_0"}
    world.crash("llama_0", LOST, code=0)
    world.wait(60)
    world.ready("llama_1")
    assert world.granted[waiting] == "llama_1"
    assert world.state("llama_0") is State.COLD


def test_an_nvml_that_tells_of_no_gpu_at_all_is_no_proof() -> None:
    world = struck(World(config(LLAMA)))
    world.trouble[0] = "GPU is lost"
    world.read()
    seen = world.survey()
    world.send(events.DevicesRead(type(seen)(seen.readings[-1:], seen.at, "driver not loaded")))
    assert "GPU-0" in world.fleet.ledger.quarantined
