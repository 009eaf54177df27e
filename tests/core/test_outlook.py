"""What those who wait may expect, and who is told at once that it would take too long."""

from __future__ import annotations

import pytest

from supervisor.config import Restarts
from supervisor.core import events, outlook, why
from supervisor.core.devices import GIB, Holder
from supervisor.core.fleet import LONG
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
    assert outlook.progress(world.fleet, "llama") == "Loading llama_0: 45 %, loading weights, about 20 s"
    world.ready("llama_0")
    world.ask("llama")
    assert outlook.progress(world.fleet, "llama") == "llama_0 is busy: 1 of 1 places taken, 1 waiting"
    world.leave(lease)


def test_progress_without_a_measured_start_promises_nothing() -> None:
    world = slow()
    world.ask("llama")
    assert outlook.progress(world.fleet, "llama") == "Loading llama_0: 0 %"


def test_who_may_come_again_is_told_of_the_back_off_and_the_start_after_it() -> None:
    world = World(config(LLAMA, restarts=Restarts(jitter=0)))
    world.fleet.engines["llama_0"].learned = Learned(start=40.0)
    lease = world.ask("llama")
    world.crash("llama_0", "boom")
    assert refusal(world, lease).retry_after == 10 + 40
    late = world.ask("llama", patience=4)
    world.wait(4)
    assert refusal(world, late).retry_after == pytest.approx(6 + 40)


def test_a_start_that_ran_out_of_memory_is_not_promised_before_its_long_back_off() -> None:
    world = World(config(LLAMA, restarts=Restarts(jitter=0)))
    lease = world.ask("llama")
    world.crash("llama_0", "torch.OutOfMemoryError: CUDA out of memory.")
    assert refusal(world, lease).retry_after == 300 + 60


def test_a_start_that_was_given_up_is_final() -> None:
    world = World(config(LLAMA, restarts=Restarts(jitter=0, give_up_after=1)))
    lease = world.ask("llama")
    world.crash("llama_0", "boom")
    assert refusal(world, lease).retry_after is None


def test_a_squeezed_engine_is_not_promised_in_a_second() -> None:
    world = World(config(LLAMA))
    world.up("llama_0")
    world.foreign[0] = (Holder(9, int(3.9 * GIB), "train", "bob"),)
    world.read()
    lease = world.ask("llama", patience=100)
    world.wait(101)
    assert refusal(world, lease).retry_after == LONG


def test_one_that_may_sleep_but_is_cold_is_expected_from_cold() -> None:
    world = World(config(profile("llama_0", 0, sleep=True)))
    world.fleet.engines["llama_0"].learned = Learned(start=80.0, wake=2.0)
    assert world.fleet.forecast(["llama_0"]) == 80


@pytest.mark.parametrize("seconds", [0, 30])
def test_every_clock_tells_the_same_of_one_on_its_way(seconds: float) -> None:
    world = slow(start=100.0)
    world.ask("llama")
    world.wait(seconds)
    engine = world.fleet.engines["llama_0"]
    (told,) = why.explain(world.fleet, "llama_0")["profiles"]
    left = outlook.seconds_left(world.fleet, engine)
    assert left == engine.seconds_left(world.now) == world.fleet.forecast(["llama_0"]) == told["serves_in"]
    assert left == 100 - seconds
