"""Out of memory while serving: who is believed, and what follows."""

from __future__ import annotations

import pytest

from supervisor.core import events, orders
from supervisor.core.failures import FailureClass, classify
from supervisor.core.lifecycle import State
from tests.core.world import World, config, profile

HEAD = "(EngineCore pid=95) ERROR 11-23 09:45:24 [core.py:1310] "
OOM = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.64 GiB"


@pytest.mark.parametrize(
    "line",
    [
        f"{HEAD}torch.OutOfMemoryError: {OOM}",
        f"(EngineCore_DP0 pid=95) ERROR 10-06 20:26:58 [core.py:710] torch.cuda.OutOfMemoryError: {OOM}",
        f"(Worker_TP1 pid=96) ERROR 10-06 20:26:58 [multiproc_executor.py:671] torch.OutOfMemoryError: {OOM}",
        f"{HEAD}RuntimeError: Worker failed with error '{OOM}', please check the stack trace above",
    ],
)
def test_the_engine_cores_own_account_is_believed(line: str) -> None:
    failure = classify(0, ("before", line, *["(APIServer pid=1) ERROR x"] * 90), was_ready=True)
    assert (failure.kind, failure.serving) == (FailureClass.OUT_OF_MEMORY, True)
    assert "CUDA out of memory" in failure.message


@pytest.mark.parametrize(
    "line",
    [
        f"torch.OutOfMemoryError: {OOM}",
        f"(APIServer pid=1) ERROR 11-23 09:45:24 [serving.py:1] torch.OutOfMemoryError: {OOM}",
        f"(APIServer pid=1) INFO 11-23 09:45:24 [logger.py:1] Received request: prompt: '{HEAD}{OOM}'",
        f"{HEAD}Dumping scheduler output: NewRequestData(req_id='torch.OutOfMemoryError: {OOM}')",
        f"(EngineCore pid=95) INFO 11-23 09:45:24 [core.py:1] torch.OutOfMemoryError: {OOM}",
        f"  {HEAD}torch.OutOfMemoryError: {OOM}",
    ],
)
def test_what_a_request_can_put_into_the_log_has_no_effect(line: str) -> None:
    assert classify(0, (line,), was_ready=True).kind is FailureClass.TRANSIENT


def test_host_memory_that_others_hold_is_contention() -> None:
    words = (
        "Available memory on node 0 (3.20/24.00 GiB) on startup is less than desired CPU memory utilization"
    )
    failure = classify(
        1,
        (f"{HEAD}ValueError: {words} (0.5, 12.0 GiB).", "Engine core initialization failed."),
        was_ready=False,
    )
    assert failure.kind is FailureClass.CONTENTION
    assert words in failure.message


def test_each_time_half_as_many_down_to_one_and_soon_again() -> None:
    world = World(config(profile("llama_0", 0, max_concurrent=5)))
    world.up("llama_0")
    for slots in (2, 1, 1):
        world.ask("llama")
        world.crash("llama_0", f"{HEAD}torch.OutOfMemoryError: {OOM}", code=0)
        engine = world.fleet.engines["llama_0"]
        assert (engine.slots, engine.learned.rung) == (slots, slots)
        world.wait(45)
        assert world.state("llama_0") is State.STARTING, "it waits as after running out at its start"
        world.ready("llama_0")
    spawned = [order.slots for order in world.log if isinstance(order, orders.Spawn)]
    assert spawned == [5, 2, 1, 1]
    for _ in range(3):
        world.ask("llama")
    assert len(world.fleet.engines["llama_0"].leases) == 1


def test_probes_that_failed_first_do_not_hide_it() -> None:
    world = World(config(profile("llama_0", 0, max_concurrent=4)))
    world.up("llama_0")
    dying = world.incarnation("llama_0")
    world.alive.discard(dying)
    world.send(events.Unhealthy(dying, "3 health probes in a row failed"))
    world.send(events.Exited(dying, 0, (f"{HEAD}torch.OutOfMemoryError: {OOM}",)))
    assert world.fleet.engines["llama_0"].learned.rung == 2


def test_it_is_kept_through_a_stop() -> None:
    world = World(config(profile("llama_0", 0, max_concurrent=4, idle_ttl=60.0)))
    world.up("llama_0")
    world.crash("llama_0", f"{HEAD}torch.OutOfMemoryError: {OOM}", code=0)
    world.wait(15)
    world.ready("llama_0")
    world.wait(70)
    assert world.state("llama_0") is State.COLD
    world.up("llama_0")
    assert world.fleet.engines["llama_0"].slots == 2


def test_it_is_kept_for_the_next_daemon_and_the_next_version_of_vllm() -> None:
    world = World(config(profile("llama_0", 0, max_concurrent=4)))
    world.up("llama_0")
    world.crash("llama_0", f"{HEAD}torch.OutOfMemoryError: {OOM}", code=0)
    kept = [order.learned for order in world.log if isinstance(order, orders.Remember)][-1]
    assert kept.rung == 2

    later = World(config(profile("llama_0", 0, max_concurrent=4)))
    later.fleet.recall({"llama_0": [kept.of_version("0.99")]})
    later.up("llama_0")
    later.send(events.Told(later.incarnation("llama_0"), version="1.0"))
    assert later.fleet.engines["llama_0"].slots == 2
    assert [order.slots for order in later.log if isinstance(order, orders.Spawn)] == [2]


def test_running_out_at_the_start_lowers_nothing() -> None:
    world = World(config(profile("llama_0", 0, max_concurrent=4)))
    world.ask("llama")
    world.crash("llama_0", f"{HEAD}torch.OutOfMemoryError: {OOM}")
    assert world.fleet.engines["llama_0"].learned.rung is None
