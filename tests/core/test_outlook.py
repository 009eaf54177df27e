"""What those who wait may expect, and who is told at once that it would take too long."""

from __future__ import annotations

import pytest

from supervisor.core import events, outlook
from supervisor.core.learned import Learned
from supervisor.core.lifecycle import State
from supervisor.core.progress import Progress
from supervisor.errors import NotAvailable
from tests.core.world import World, config, profile

LLAMA = profile("llama_0", 0, max_concurrent=1)


def slow(**learned: float) -> World:
    world = World(config(LLAMA))
    world.fleet.engines["llama_0"].learned = Learned(**learned)
    return world


def refusal(world: World, lease: str) -> NotAvailable:
    error = world.refused[lease]
    assert isinstance(error, NotAvailable)
    return error


def test_who_cannot_wait_for_a_measured_start_is_told_at_once_and_finds_it_later() -> None:
    world = slow(start=400.0)
    error = refusal(world, world.ask("llama", patience=290))
    assert error.retry_after == 400
    assert "'llama' is cold: llama_0 needs about 400 s" in error.message
    assert world.state("llama_0") is State.STARTING
    world.wait(200)
    assert refusal(world, world.ask("llama", patience=100)).retry_after == pytest.approx(200, abs=1)
    patient = world.ask("llama", patience=290)  # 200 s are left
    world.ready("llama_0")
    assert world.granted == {patient: "llama_0"}
    assert world.fleet.engines["llama_0"].starts == 1


def test_a_guess_refuses_nobody() -> None:
    world = slow()
    lease = world.ask("llama", patience=5)
    assert lease in world.fleet.queues


def test_who_can_wait_is_held() -> None:
    world = slow(start=30.0)
    assert world.ask("llama", patience=31) in world.fleet.queues


def test_another_profile_that_is_ready_or_unmeasured_is_waited_for() -> None:
    world = World(config(LLAMA, profile("llama_1", 1)))
    world.fleet.engines["llama_0"].learned = Learned(start=400.0)
    assert world.ask("llama", patience=10) not in world.refused
    world.fleet.engines["llama_1"].learned = Learned(start=400.0)
    world.up("llama_1")
    assert world.ask("llama", patience=10) not in world.refused


def test_one_asleep_is_measured_by_its_waking() -> None:
    world = slow(start=400.0, wake=2.0)
    engine = world.fleet.engines["llama_0"]
    engine.state, engine.asleep = State.SLEEPING, 1
    assert outlook.seconds_left(world.fleet, engine) == 2


def test_a_failure_that_would_come_again_is_told_as_final() -> None:
    world = slow()
    first = world.ask("llama")
    world.crash("llama_0", "ValueError: To serve at least one request with the model's max seq len (8192)")
    world.wait(10)
    assert world.state("llama_0") is State.IMPOSSIBLE
    assert "max seq len" in refusal(world, first).message
    assert refusal(world, first).retry_after is None
    assert refusal(world, world.ask("llama")).retry_after is None


def test_progress_in_words() -> None:
    world = slow(start=100.0)
    assert outlook.progress(world.fleet, "llama") == "llama_0 is cold and waits for its place"
    lease = world.ask("llama")
    assert outlook.progress(world.fleet, "llama_0") == "Loading llama_0: 0 %, about 100 s"
    world.send(events.Progressed(world.incarnation("llama_0"), Progress("loading weights", 45.2)))
    world.wait(80)
    assert outlook.progress(world.fleet, "llama") == "Loading llama_0: 45 %, about 20 s"
    world.ready("llama_0")
    world.ask("llama")
    assert outlook.progress(world.fleet, "llama") == "llama_0 is busy: 1 of 1 places taken, 1 waiting"
    world.leave(lease)


def test_progress_without_a_measured_start_promises_nothing() -> None:
    world = slow()
    world.ask("llama")
    assert outlook.progress(world.fleet, "llama") == "Loading llama_0: 0 %"
