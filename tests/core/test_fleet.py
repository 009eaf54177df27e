"""Histories of the core: what happened, and what must follow."""

from __future__ import annotations

import random

import pytest

from supervisor.config import Restarts
from supervisor.core import events, orders
from supervisor.core.devices import GIB, Holder
from supervisor.core.failures import FailureClass
from supervisor.core.lifecycle import State
from supervisor.errors import EngineFailed, ModelNotFound, NotAvailable, Overloaded
from tests.core.world import World, config, profile

LLAMA_0 = profile("llama_0", 0, max_concurrent=2, max_queue=2)
LLAMA_1 = profile("llama_1", 1, max_concurrent=2, max_queue=2)
CODER_1 = profile("coder_1", 1)
BIG = profile("big_dual", 0, 1, gib=22)


def test_a_request_starts_its_model_and_is_served_by_it():
    world = World(config(CODER_1))
    lease = world.ask("coder")
    assert world.state("coder_1") is State.STARTING
    assert lease not in world.granted
    world.ready("coder_1")
    assert world.granted[lease] == "coder_1"


def test_simultaneous_cold_requests_share_one_start():
    world = World(config(CODER_1))
    leases = [world.ask("coder") for _ in range(4)]
    world.ready("coder_1")
    assert all(lease in world.granted for lease in leases)
    assert sum(isinstance(order, orders.Spawn) for order in world.log) == 1


def test_one_waiter_leaving_does_not_cancel_a_load_that_others_await():
    world = World(config(CODER_1))
    first, second = world.ask("coder"), world.ask("coder")
    world.leave(first)
    world.ready("coder_1")
    assert second in world.granted
    assert first not in world.granted


def test_no_more_in_flight_than_the_profile_allows_and_a_bounded_queue():
    world = World(config(LLAMA_0))
    world.up("llama_0")
    held = [world.ask("llama") for _ in range(2)]
    queued = [world.ask("llama") for _ in range(2)]
    over = world.ask("llama")
    assert set(held) == set(world.granted)
    error = world.refused[over]
    assert isinstance(error, Overloaded)
    assert error.retry_after
    assert "llama_0 2/2" in error.message
    world.leave(held[0])
    assert queued[0] in world.granted
    assert queued[1] not in world.granted


def test_the_bound_of_a_queue_holds_under_whichever_name_it_is_asked_for():
    world = World(config(LLAMA_0))
    world.up("llama_0")
    leases = [world.ask(name) for name in ("llama", "llama_0") * 4]
    assert sum(lease in world.refused for lease in leases) == len(leases) - 2 - 2  # two served, two wait


def test_a_full_profile_spills_over_to_its_sibling():
    world = World(config(LLAMA_0, LLAMA_1))
    world.up("llama_0")
    world.up("llama_1")
    for _ in range(3):
        world.ask("llama")
    assert sorted(world.granted.values()) == ["llama_0", "llama_0", "llama_1"]


def test_foreign_memory_refuses_a_start_with_numbers_and_the_pid_before_anything_is_spawned():
    world = World(config(profile("llama_0", 0, gib=21.67)))
    world.foreign[0] = (Holder(4242, 4 * GIB, "blender", "alice"),)
    world.read()
    world.send(events.StartAsked("t", "llama_0"))
    answer = world.answers["t"]
    assert answer.error
    assert "needs 21.67 GiB on GPU 0" in answer.message
    assert "19.75 GiB is available" in answer.message
    assert "PID 4242 blender (alice) 4.00 GiB" in answer.message
    assert not any(isinstance(order, orders.Spawn) for order in world.log)


def test_a_request_that_foreign_memory_makes_hopeless_is_refused_at_once():
    world = World(config(CODER_1))
    world.foreign[1] = (Holder(4242, 8 * GIB, "train", "bob"),)
    world.read()
    lease = world.ask("coder")
    assert isinstance(world.refused[lease], NotAvailable)
    assert "PID 4242" in str(world.refused[lease])


def test_foreign_memory_counts_at_its_highest_of_the_last_minute():
    world = World(config(CODER_1))
    world.foreign[1] = (Holder(7, 8 * GIB),)
    world.read()
    world.foreign[1] = ()
    world.wait(30)
    assert world.ask("coder") in world.refused
    world.wait(61)
    assert world.ask("coder") not in world.refused


def test_a_dual_profile_is_refused_while_one_card_serves_and_evicts_once_it_is_idle():
    world = World(config(LLAMA_1, BIG))
    world.up("llama_1")
    lease = world.ask("llama")
    world.send(events.StartAsked("t", "big_dual"))
    assert world.answers["t"].error
    assert "llama_1 is busy (1 in flight)" in world.answers["t"].message
    world.leave(lease)
    world.send(events.StartAsked("t2", "big_dual"))
    assert world.state("llama_1") is State.COLD
    assert world.state("big_dual") is State.STARTING
    world.ready("big_dual")
    assert world.answers["t2"].error is None


def test_a_request_for_a_blocked_model_waits_for_busy_engines_of_ours():
    world = World(config(LLAMA_1, CODER_1))
    world.up("llama_1")
    held = world.ask("llama")
    waiting = world.ask("coder")
    assert waiting not in world.refused
    world.leave(held)
    assert world.state("coder_1") is State.STARTING
    world.ready("coder_1")
    assert waiting in world.granted


def test_an_engine_is_not_evicted_between_becoming_ready_and_serving_its_waiter():
    world = World(config(LLAMA_1, CODER_1))
    first = world.ask("llama")
    second = world.ask("coder")
    world.ready("llama_1")
    assert first in world.granted
    assert world.state("llama_1") is State.READY
    assert second not in world.granted


def test_the_least_recently_used_goes_first_and_nobody_who_need_not_go():
    a, b, c = (profile(name, 0, gib=10) for name in ("a_0", "b_0", "c_0"))
    world = World(config(a, b, c))
    world.up("a_0")
    world.wait(5)
    world.up("b_0")
    world.wait(5)
    world.leave(world.ask("a"))
    world.up("c_0")
    assert world.state("b_0") is State.COLD
    assert world.state("a_0") is State.READY


def test_idle_ttl_counts_from_the_last_request_and_never_with_one_in_flight():
    world = World(config(profile("llama_0", 0, idle_ttl=100.0)))
    lease = world.ask("llama")
    world.wait(200)
    world.ready("llama_0")
    world.wait(500)
    assert world.state("llama_0") is State.READY
    world.leave(lease)
    world.wait(99)
    assert world.state("llama_0") is State.READY
    world.wait(2)
    assert world.state("llama_0") is State.COLD


def test_two_starts_on_one_card_go_one_after_the_other():
    world = World(config(profile("a_0", 0, gib=8), profile("b_0", 0, gib=8)))
    world.ask("a")
    world.ask("b")
    assert world.state("a_0") is State.STARTING
    assert world.state("b_0") is State.COLD
    world.ready("a_0")
    assert world.state("b_0") is State.STARTING


def test_a_stop_waits_while_another_engine_profiles_the_card():
    world = World(config(profile("a_0", 0, gib=8), profile("b_0", 0, gib=8)))
    world.up("a_0")
    world.ask("b")
    world.send(events.StopAsked("t", "a_0"))
    assert world.state("a_0") is State.DRAINING
    world.ready("b_0")
    assert world.state("a_0") is State.COLD
    assert world.answers["t"].error is None


def test_a_crash_while_serving_is_followed_by_a_restart_after_its_back_off():
    world = World(config(CODER_1, restarts=Restarts(jitter=0)))
    world.up("coder_1")
    world.crash("coder_1", code=0)
    assert world.state("coder_1") is State.BACKOFF
    waiting = world.ask("coder")
    world.wait(9.9)
    assert world.state("coder_1") is State.BACKOFF
    world.wait(0.2)
    assert world.state("coder_1") is State.STARTING
    world.ready("coder_1")
    assert waiting in world.granted


def test_a_request_that_comes_while_an_unhealthy_engine_ends_gets_the_next_one():
    """vLLM is unhealthy for a while before it exits, when its engine core has died."""
    world = World(config(CODER_1))
    world.up("coder_1")
    ending = world.incarnation("coder_1")
    world.alive.discard(ending)
    world.send(events.Unhealthy(ending, "3 health probes in a row failed"))
    assert world.state("coder_1") is State.STOPPING
    waiting = world.ask("coder")
    world.send(events.Exited(ending, 0))
    world.wait(20)
    world.ready("coder_1")
    assert waiting in world.granted


def test_a_crash_on_the_way_out_starts_nothing_again():
    world = World(config(CODER_1))
    world.up("coder_1")
    world.ask("coder")
    world.send(events.StopAsked("t", "coder_1"))
    assert world.state("coder_1") is State.DRAINING
    world.crash("coder_1")
    world.wait(60)
    assert world.state("coder_1") is State.COLD


def test_a_crash_while_loading_tells_waiters_the_last_lines_of_the_log():
    world = World(config(CODER_1))
    lease = world.ask("coder")
    world.crash("coder_1", "RuntimeError: the weights are torn")
    assert isinstance(world.refused[lease], NotAvailable)
    assert "the weights are torn" in str(world.refused[lease])


def test_whoever_is_refused_hears_the_name_that_was_asked_for():
    """Of a profile's name most people know nothing."""
    for befalls in ("fails", "hopeless", "given up", "full", "late"):
        world = World(config(profile("coder_1", 1, max_concurrent=1, max_queue=0)))
        first = world.ask("coder", patience=5) if befalls in ("fails", "late") else ""
        if befalls == "fails":
            world.crash("coder_1", "RuntimeError: the weights are torn")
        elif befalls == "late":
            world.wait(6)
        elif befalls == "hopeless":
            world.foreign[1] = (Holder(77, 20 * GIB, "comfy"),)
            world.read()
        elif befalls == "given up":
            world.send(events.StartAsked("t", "coder_1"))
            world.crash("coder_1", "error: argument --x: invalid", code=2)
        else:
            world.up("coder_1")
            world.ask("coder")
        assert "model 'coder'" in str(world.refused[first or world.ask("coder")]), befalls


def test_out_of_memory_at_start_is_classified_and_not_retried_blindly():
    world = World(config(CODER_1))
    world.send(events.StartAsked("t", "coder_1"))
    world.crash("coder_1", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB")
    assert isinstance(world.answers["t"].error, EngineFailed)
    failure = world.fleet.engines["coder_1"].last_failure
    assert failure
    assert failure.kind is FailureClass.OUT_OF_MEMORY
    world.wait(200)
    assert sum(isinstance(order, orders.Spawn) for order in world.log) == 1


def test_out_of_memory_text_of_a_serving_engine_has_no_effect():
    world = World(config(CODER_1))
    world.up("coder_1")
    world.crash("coder_1", "CUDA out of memory", code=1)
    failure = world.fleet.engines["coder_1"].last_failure
    assert failure
    assert failure.kind is FailureClass.TRANSIENT


def test_a_refusal_names_the_class_of_what_failed_and_ends_with_its_last_lines():
    world = World(config(CODER_1))
    world.up("coder_1")
    world.crash("coder_1", "a first line", "ValueError: the weights are torn")
    late = world.ask("coder", patience=5)
    world.wait(6)
    said, *log = str(world.refused[late]).split("\n")
    assert "coder_1 failed (transient) and waits to be restarted" in said
    assert log == ["a first line", "ValueError: the weights are torn"]
    world.wait(10)
    world.send(events.StartAsked("t", "coder_1"))
    world.crash("coder_1", "error: argument --x: invalid", code=2)
    said, *log = str(world.refused[world.ask("coder")]).split("\n")
    assert "coder_1 cannot start (impossible): not tried again until its configuration changes" in said
    assert log == ["error: argument --x: invalid"]


def test_a_crash_loop_is_given_up_after_five_failures_and_says_so():
    world = World(config(CODER_1))
    world.up("coder_1")
    for _ in range(5):
        world.crash("coder_1")
        world.wait(301)
        if world.state("coder_1") is State.STARTING:
            world.ready("coder_1")
    assert world.state("coder_1") is State.IMPOSSIBLE
    lease = world.ask("coder")
    assert "coder_1 cannot start (transient): failed 5 times in 30 min" in str(world.refused[lease])
    world.send(events.StartAsked("t", "coder_1"))
    assert world.state("coder_1") is State.STARTING


def test_an_engine_that_hangs_while_loading_is_killed_when_progress_stops():
    world = World(config(CODER_1))
    world.ask("coder")
    world.wait(599)
    world.send(events.Progressed(world.incarnation("coder_1"), None))
    world.wait(599)
    assert world.state("coder_1") is State.STARTING
    world.wait(2)
    assert world.state("coder_1") is State.BACKOFF


def test_memory_that_does_not_come_back_quarantines_the_card_until_it_does():
    world = World(config(LLAMA_1, CODER_1))
    world.up("llama_1")
    world.sticky = True
    world.send(events.StopAsked("t", "llama_1"))
    assert world.state("llama_1") is State.SETTLING
    world.wait(61)
    lease = world.ask("coder")
    assert "quarantined" in str(world.refused[lease])
    world.held.clear()
    world.read()
    assert world.state("llama_1") is State.COLD
    assert world.ask("coder") not in world.refused


def test_a_person_writes_off_what_did_not_come_back_and_it_counts_as_foreign():
    world = World(config(LLAMA_1, profile("small_1", 1, gib=3)))
    world.up("llama_1")
    world.sticky = True
    world.send(events.StopAsked("t", "llama_1"))
    world.send(events.ReleaseAsked("early", 1))
    assert str(world.answers["early"].error) == "GPU 1 (RTX 3090) is not quarantined"
    world.wait(61)
    world.send(events.ReleaseAsked("r", 1))
    assert "counts as foreign" in world.answers["r"].message
    assert world.answers["r"].error is None
    assert (world.state("llama_1"), world.fleet.ledger.quarantined) == (State.COLD, {})
    assert world.fleet.ledger.foreign("GPU-1") == 20 * GIB
    assert "is available" in str(world.refused[world.ask("llama")])
    assert world.ask("small") not in world.refused


def test_a_card_is_not_released_while_processes_of_ours_may_hold_it():
    class Unkillable(World):
        def obey(self, order):
            if isinstance(order, orders.Kill):
                self.send(events.Unkillable(order.incarnation, (4711,)))
            else:
                super().obey(order)

    world = Unkillable(config(LLAMA_1))
    world.up("llama_1")
    world.crash("llama_1")
    world.wait(61)
    world.send(events.ReleaseAsked("r", 1))
    assert str(world.answers["r"].error) == "processes of llama_1 are still there (4711): end them first"
    assert world.fleet.ledger.quarantined


def test_a_lost_gpu_and_a_stale_reading_admit_no_start():
    world = World(config(LLAMA_0, CODER_1))
    world.trouble[0] = "GPU is lost"
    world.read()
    lost = world.refused[world.ask("llama")]
    assert "GPU is lost" in str(lost)
    world.now += 16  # and no reading meanwhile: NVML hangs
    stale = world.refused[world.ask("coder")]
    assert "was last read 16 s ago" in str(stale)
    assert [getattr(error, "retry_after", None) for error in (lost, stale)] == [60, 60]


def test_while_nvml_is_silent_what_runs_serves_on():
    world = World(config(LLAMA_0, CODER_1))
    world.up("llama_0")
    world.now += 300  # and no reading meanwhile
    world.send(events.Ticked())
    assert world.ask("llama") in world.granted
    assert "was last read 300 s ago" in str(world.refused[world.ask("coder")])


def test_a_stop_that_is_ignored_ends_in_a_kill():
    world = World(config(CODER_1))
    world.up("coder_1")
    incarnation = world.incarnation("coder_1")
    world.alive.clear()  # SIGTERM has no effect
    world.send(events.StopAsked("t", "coder_1"))
    assert world.state("coder_1") is State.STOPPING
    world.wait(14)
    assert orders.Kill(incarnation) not in world.log
    world.wait(2)
    assert orders.Kill(incarnation) in world.log


def test_a_loading_engine_gets_a_second_sigterm_after_three_seconds():
    world = World(config(CODER_1))
    world.ask("coder")
    world.alive.clear()
    world.send(events.StopAsked("t", "coder_1"))
    world.wait(3.1)
    assert sum(isinstance(order, orders.Terminate) for order in world.log) == 2


def test_facts_about_an_older_incarnation_are_ignored():
    world = World(config(CODER_1, restarts=Restarts(jitter=0)))
    world.up("coder_1")
    old = world.incarnation("coder_1")
    world.crash("coder_1")
    world.wait(11)
    world.ready("coder_1")
    for event in (events.Exited(old, 1), events.TreeGone(old), events.Unhealthy(old, "x")):
        world.send(event)
    assert world.state("coder_1") is State.READY


def test_an_adopted_engine_serves_without_a_start():
    world = World(config(CODER_1))
    world.held["old"] = {"GPU-1": 20 * GIB}
    world.alive.add("old")
    world.send(events.Found("coder_1", "old", ("GPU-1",), alive=True))
    lease = world.ask("coder")
    world.ready("coder_1")
    assert lease in world.granted
    assert not any(isinstance(order, orders.Spawn) for order in world.log)


def test_the_memory_of_an_adopted_engine_was_never_foreign():
    world = World(config(CODER_1))
    world.held["old"] = {"GPU-1": 20 * GIB}
    world.alive.add("old")
    world.read()  # a daemon reads the devices before it looks for engines
    world.send(events.Found("coder_1", "old", ("GPU-1",), alive=True))
    world.ready("coder_1")
    world.send(events.StopAsked("stop", "coder_1"))
    assert world.answers["stop"].error is None
    world.send(events.StartAsked("start", "coder_1"))
    assert world.state("coder_1") is State.STARTING, world.answers


def test_what_an_engine_left_behind_while_the_daemon_was_down_is_swept():
    world = World(config(CODER_1))
    world.send(events.Found("coder_1", "old", ("GPU-1",), alive=False))
    assert orders.Kill("old") in world.log
    assert orders.Forget("old") in world.log


def test_shutdown_refuses_waiters_drains_and_stops_or_keeps():
    for keep in (False, True):
        world = World(config(LLAMA_0, CODER_1))
        world.up("llama_0")
        held, waiting = world.ask("llama"), world.ask("coder")
        world.send(events.ShutdownAsked(keep))
        assert "shutting down" in str(world.refused[waiting])
        assert "shutting down" in str(world.refused[world.ask("llama")])
        world.leave(held)
        assert world.state("llama_0") is (State.READY if keep else State.COLD)


def test_patience_runs_out_with_the_reason():
    world = World(config(LLAMA_1, CODER_1))
    world.up("llama_1")
    world.ask("llama")
    lease = world.ask("coder", patience=60)
    world.wait(61)
    assert "was not ready after 60 s" in str(world.refused[lease])
    assert "llama_1 is busy" in str(world.refused[lease])


def test_unknown_models_are_named():
    world = World(config(CODER_1))
    assert isinstance(world.refused[world.ask("gpt")], ModelNotFound)


@pytest.mark.parametrize("seed", range(40))
def test_random_histories_keep_every_invariant_and_end_at_rest(seed: int):
    rng = random.Random(seed)
    world = World(
        config(
            LLAMA_0, LLAMA_1, CODER_1, BIG, profile("emb_1", 1, gib=2), restarts=Restarts(give_up_after=999)
        )
    )
    inside: set[str] = set()
    for _ in range(300):
        inside = {lease for lease in inside if lease not in world.refused}
        live = [e for e in world.fleet.engines.values() if e.incarnation in world.alive]
        match rng.choice(
            ("ask", "ask", "ask", "leave", "leave", "ready", "ready", "wait", "crash", "stop", "foreign")
        ):
            case "ask":
                inside.add(world.ask(rng.choice(("llama", "coder", "big", "emb", "llama_0"))))
            case "leave" if inside:
                lease = rng.choice(sorted(inside))
                inside.discard(lease)
                world.leave(lease)
            case "ready":
                for engine in live:
                    if engine.state is State.STARTING:
                        world.ready(engine.name)
            case "wait":
                world.wait(rng.choice((0.5, 5, 40)))
            case "crash" if live and rng.random() < 0.5:
                world.crash(rng.choice(live).name)
            case "stop":
                world.send(events.StopAsked("t", rng.choice(sorted(world.fleet.engines))))
            case "foreign":
                size = rng.choice((0, 0, 1, 6)) * GIB
                free = world.card(0).free + sum(h.used or 0 for h in world.foreign[0])
                world.foreign[0] = (Holder(99, size),) if 0 < size <= free else ()
                world.read()
    inside = {lease for lease in inside if lease not in world.refused}
    for lease in sorted(inside):
        world.leave(lease)
    world.foreign[0] = ()
    for _ in range(8):
        for engine in list(world.fleet.engines.values()):
            if engine.state is State.STARTING:
                world.ready(engine.name)
        world.wait(700)
    assert world.fleet.is_empty
    assert not world.fleet.leases
    assert not world.fleet.queues
