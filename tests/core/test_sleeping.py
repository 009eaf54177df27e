"""Histories of sleep: what the core does when an engine sleeps, does not, wakes, does not, or is found asleep."""

from __future__ import annotations

import pytest

from supervisor.config import EngineDefaults
from supervisor.core import events, orders
from supervisor.core.devices import GIB, HOST
from supervisor.core.lifecycle import State
from supervisor.core.orders import Order
from tests.core.world import World, config, profile

RESIDUE = 3 * GIB // 2
ALPHA = profile("alpha_0", 0, sleep=True)
BETA = profile("beta_0", 0, sleep=True)
CARD = "GPU-0"


class Sleepers(World):
    """Engines here sleep and wake as they are told, at once, unless told otherwise."""

    frees = replies = wakes = True

    def obey(self, order: Order) -> None:
        if isinstance(order, orders.Sleep):
            if self.frees:
                self.held[order.incarnation] = {CARD: RESIDUE}
            if self.replies:
                self.send(events.Slept(order.incarnation))
        elif isinstance(order, orders.Wake):
            if self.wakes:
                self.held[order.incarnation] = {CARD: 20 * GIB}
                self.send(events.ProbePassed(order.incarnation))
        else:
            super().obey(order)

    def asleep(self, name: str) -> bool:
        return self.state(name) is State.SLEEPING and self.fleet.engines[name].settled

    def sent(self, kind: type[Order]) -> list[Order]:
        return [order for order in self.log if isinstance(order, kind)]


def beta_after_alpha(world: Sleepers) -> str:
    """Alpha serves once; then beta is asked for."""
    lease = world.ask("alpha")
    world.ready("alpha_0")
    world.leave(lease)
    return world.ask("beta")


def test_one_sleeps_for_the_other_and_wakes_without_a_start() -> None:
    world = Sleepers(config(ALPHA, BETA))
    lease = beta_after_alpha(world)
    assert world.asleep("alpha_0")
    world.ready("beta_0")
    assert world.granted[lease] == "beta_0"
    world.leave(lease)
    assert world.granted[world.ask("alpha")] == "alpha_0"
    assert world.fleet.engines["alpha_0"].starts == 1
    assert world.asleep("beta_0")


def test_memory_shown_before_the_engine_answered_proves_no_sleep() -> None:
    """The weights are still on their way out: a start there now would not fit."""
    world = Sleepers(config(ALPHA, BETA))
    world.replies = False
    beta_after_alpha(world)
    world.read()
    assert world.state("alpha_0") is State.SLEEPING
    assert not world.asleep("alpha_0")
    assert world.state("beta_0") is State.COLD
    world.send(events.Slept(world.incarnation("alpha_0")))
    assert world.asleep("alpha_0")
    assert world.state("beta_0") is State.STARTING


@pytest.mark.parametrize("replies", [True, False])
def test_a_sleep_that_gives_nothing_back_becomes_a_stop(replies: bool) -> None:
    limits = EngineDefaults(sleep_timeout=20.0, settle_timeout=10.0)
    world = Sleepers(config(ALPHA, BETA, engine=limits))
    world.frees, world.replies = False, replies
    beta_after_alpha(world)
    world.wait(29)
    assert world.state("alpha_0") is State.SLEEPING
    world.wait(2)
    assert world.state("alpha_0") is State.COLD
    assert world.state("beta_0") is State.STARTING
    assert any(note.event == "sleep_failed" for note in world.sent(orders.Note))


@pytest.mark.parametrize("told", [True, False])
def test_an_engine_that_does_not_wake_is_started_afresh_for_its_waiter(told: bool) -> None:
    world = Sleepers(config(ALPHA, BETA))
    world.leave(beta_after_alpha(world))
    world.ready("beta_0")
    world.wakes = False
    lease = world.ask("alpha", patience=900)
    assert world.state("alpha_0") is State.WAKING
    if told:
        world.send(events.WakeFailed(world.incarnation("alpha_0"), "500"))
    else:
        world.wait(world.fleet.config.engine.wake_timeout + 10)
    assert lease not in world.refused
    world.wait(15)
    world.ready("alpha_0")
    assert world.granted[lease] == "alpha_0"
    assert world.fleet.engines["alpha_0"].starts == 2
    world.leave(lease)
    world.ask("beta")
    assert world.state("alpha_0") is State.COLD, "it was put to sleep again"


def test_one_that_dies_in_its_sleep_is_not_brought_back_unasked() -> None:
    world = Sleepers(config(ALPHA, BETA))
    beta_after_alpha(world)
    world.crash("alpha_0", code=-9)
    assert world.state("alpha_0") is State.BACKOFF
    world.wait(60)
    assert world.state("alpha_0") is State.COLD
    assert world.fleet.engines["alpha_0"].starts == 1


def found(world: Sleepers, level: int) -> str:
    """An engine of an earlier daemon, recorded as asleep, holding a residue of its card."""
    world.alive.add("old")
    world.held["old"] = {CARD: RESIDUE}
    world.read()
    world.send(events.Found("alpha_0", "old", (CARD,), alive=True, asleep=level))
    assert world.state("alpha_0") is State.ADOPTING
    return "old"


@pytest.mark.parametrize("level", [1, 2])
def test_an_engine_found_asleep_sleeps_on_and_is_woken_from_its_level(level: int) -> None:
    world = Sleepers(config(ALPHA, BETA))
    world.send(events.Slept(found(world, level)))
    assert world.asleep("alpha_0")
    assert world.fleet.engines["alpha_0"].residue[CARD] == RESIDUE
    world.leave(world.ask("beta"))
    world.ready("beta_0")
    assert world.granted[world.ask("alpha")] == "alpha_0"
    assert orders.Wake("old", level) in world.log
    assert world.fleet.engines["alpha_0"].starts == 0


def test_an_engine_found_asleep_that_does_not_answer_is_replaced_when_asked_for() -> None:
    world = Sleepers(config(ALPHA))
    world.send(events.WakeFailed(found(world, 2), "no answer to /is_sleeping in time"))
    assert orders.Kill("old") in world.log
    lease = world.ask("alpha")
    world.wait(15)
    world.ready("alpha_0")
    assert world.granted[lease] == "alpha_0"


@pytest.mark.parametrize("awake", [True, False])
def test_an_engine_found_while_it_was_being_woken_has_its_whole_place_until_proven(awake: bool) -> None:
    """It may take its memory any moment: nobody is let in there meanwhile."""
    world = Sleepers(config(ALPHA, BETA))
    world.alive.add("old")
    world.held["old"] = {CARD: RESIDUE}
    world.send(events.Found("alpha_0", "old", (CARD,), alive=True, asleep=1, waking=True))
    lease = world.ask("beta")
    world.read()
    assert world.fleet.engines["alpha_0"].reserved == {CARD: 20 * GIB}
    assert world.state("beta_0") is State.COLD
    if awake:
        world.held["old"] = {CARD: 20 * GIB}
        world.ready("alpha_0")  # and asleep again, before a reading showed it awake
    else:
        world.send(events.Slept("old"))
    assert world.fleet.engines["alpha_0"].reserved[CARD] == RESIDUE, "it sleeps, proven"
    assert world.state("beta_0") is State.STARTING
    world.ready("beta_0")
    assert world.granted[lease] == "beta_0"


def test_one_found_waking_while_nvml_is_silent_is_promised_its_memory_once_that_speaks() -> None:
    world = Sleepers(config(ALPHA))
    seen = world.fleet.ledger.survey
    world.fleet.ledger.survey = type(seen)(seen.readings[-1:], seen.at, "driver not loaded")
    world.send(events.Found("alpha_0", "old", (CARD,), alive=True, asleep=1, waking=True))
    assert world.fleet.engines["alpha_0"].reserved == {CARD: 0}
    world.held["old"] = {CARD: RESIDUE}
    world.read()
    assert world.fleet.engines["alpha_0"].reserved == {CARD: 20 * GIB}


def test_sleep_that_failed_is_not_tried_again_by_a_later_daemon() -> None:
    first = Sleepers(config(ALPHA, BETA))
    first.frees = False
    beta_after_alpha(first)
    first.send(events.SleepFailed(first.incarnation("alpha_0"), "500"))
    kept = [order for order in first.log if isinstance(order, orders.Remember)][-1]
    assert kept.profile == "alpha_0"
    assert kept.learned.sleepless

    later = Sleepers(config(ALPHA, BETA))
    later.fleet.recall({"alpha_0": [kept.learned]})
    beta_after_alpha(later)
    assert not later.sent(orders.Sleep)
    assert later.state("beta_0") is State.STARTING
    later.send(events.Told(later.incarnation("beta_0"), version="1"))
    assert not kept.learned.of_version("another").sleepless, "another version of vLLM is tried anew"


def test_sleep_comes_before_the_stop_on_an_idle_engine() -> None:
    resting = profile("alpha_0", 0, sleep=True, sleep_after=60.0, idle_ttl=600.0)
    world = Sleepers(config(resting))
    lease = world.ask("alpha")
    world.ready("alpha_0")
    world.leave(lease)
    world.wait(59)
    assert world.state("alpha_0") is State.READY
    world.wait(5)
    assert world.asleep("alpha_0")
    world.wait(530)
    assert world.asleep("alpha_0")
    world.wait(10)
    assert world.state("alpha_0") is State.COLD


def test_an_operator_puts_an_idle_engine_to_sleep_and_wakes_it() -> None:
    world = Sleepers(config(ALPHA))
    world.leave(world.ask("alpha"))
    world.ready("alpha_0")
    (answer,) = [o for o in world.send(events.SleepAsked("t", "alpha_0")) if isinstance(o, orders.Answer)]
    assert (answer.error, answer.message) == (None, "alpha_0 goes to sleep")
    world.read()
    assert world.asleep("alpha_0")
    world.send(events.StartAsked("u", "alpha_0"))
    assert world.state("alpha_0") is State.READY


@pytest.mark.parametrize(
    ("sleeps", "up", "says"), [(False, True, "no sleep = true"), (True, False, "only a ready engine sleeps")]
)
def test_an_operator_is_told_why_an_engine_does_not_sleep(sleeps: bool, up: bool, says: str) -> None:
    world = Sleepers(config(profile("alpha_0", 0, sleep=sleeps)))
    if up:
        world.ask("alpha")
        world.ready("alpha_0")
    before = world.state("alpha_0")
    (answer,) = [o for o in world.send(events.SleepAsked("t", "alpha_0")) if isinstance(o, orders.Answer)]
    assert says in str(answer.error)
    assert world.state("alpha_0") is before


@pytest.mark.parametrize("how", ["idle", "stopped"])
def test_a_sleeper_is_not_stopped_while_a_neighbour_starts(how: str) -> None:
    """What it keeps is freed as well, and memory freed while vLLM measures the card aborts that start."""
    limits = {"sleep_after": 10.0, "idle_ttl": 60.0} if how == "idle" else {}
    world = Sleepers(config(profile("alpha_0", 0, gib=8, sleep=True, **limits), profile("beta_0", 0, gib=8)))
    world.up("alpha_0")
    world.wait(11)
    if how == "stopped":
        world.send(events.SleepAsked("s", "alpha_0"))
        world.wait(6)
    assert world.asleep("alpha_0")
    world.send(events.StartAsked("t", "beta_0"))
    if how == "stopped":
        world.send(events.StopAsked("u", "alpha_0"))
    world.wait(60)
    assert (world.state("alpha_0"), world.state("beta_0")) == (State.SLEEPING, State.STARTING)
    late = world.ask("alpha")
    world.ready("beta_0")
    assert world.answers["t"].error is None
    assert not world.sent(orders.Wake), "its stop was decided before somebody asked"
    assert (world.state("alpha_0"), world.fleet.engines["alpha_0"].starts) == (State.STARTING, 2)
    world.ready("alpha_0")
    assert late in world.granted


def test_a_sleeper_alone_on_its_card_is_stopped_at_once() -> None:
    world = Sleepers(config(ALPHA))
    world.up("alpha_0")
    world.send(events.SleepAsked("s", "alpha_0"))
    world.wait(6)
    assert world.asleep("alpha_0")
    world.send(events.StopAsked("u", "alpha_0"))
    assert world.state("alpha_0") is State.COLD


def test_what_a_sleeper_held_awake_is_not_counted_as_what_it_returns() -> None:
    """Its card could not be read as both ended: what it had kept asleep comes back, not what it once had."""
    world = Sleepers(config(ALPHA, BETA))
    lease = beta_after_alpha(world)
    world.ready("beta_0")
    world.leave(lease)
    alpha, beta = world.incarnation("alpha_0"), world.incarnation("beta_0")
    world.sticky = True
    world.trouble[0] = "GPU is lost"
    world.read()
    for name in ("alpha_0", "beta_0"):
        world.send(events.StopAsked(f"stop-{name}", name))
    world.wait(1)
    world.trouble.clear()
    world.read()
    assert (world.state("alpha_0"), world.state("beta_0")) == (State.SETTLING, State.SETTLING), (
        "nothing is back"
    )
    world.held[alpha] = {}
    world.read()
    assert world.state("beta_0") is State.SETTLING, "its 20 GiB are still out"
    world.held[beta] = {}
    world.read()
    assert (world.state("alpha_0"), world.state("beta_0")) == (State.COLD, State.COLD)


@pytest.mark.parametrize(("weights", "level"), [(15, 1), (61, 2)])
def test_weights_are_kept_in_host_memory_where_that_has_room_and_dropped_where_not(
    weights: int, level: int
) -> None:
    """60 GiB of it are free, 2 of which stay so. What is kept there has to go for who needs that room."""
    world = Sleepers(config(ALPHA, profile("emb_cpu", gib=0, device="cpu", memory=44 * GIB)))
    world.up("alpha_0")
    world.send(events.Told(world.incarnation("alpha_0"), weights=weights * GIB))
    world.send(events.SleepAsked("s", "alpha_0"))
    assert world.sent(orders.Sleep) == [orders.Sleep(world.incarnation("alpha_0"), level)]
    kept = world.fleet.claims().get(HOST, [])
    assert [claim.held for claim in kept] == ([15 * GIB] if level == 1 else [])
    world.send(events.StartAsked("t", "emb_cpu"))
    assert world.state("emb_cpu") is State.STARTING
    assert (world.state("alpha_0") is State.SLEEPING) == (level == 2)
