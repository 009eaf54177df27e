"""Engines on their way out: drain, the stop ladder, and settling, which is over when the memory is back."""

from __future__ import annotations

from dataclasses import replace

from supervisor.core import coming, landing, learning, orders, quarantine, restarts
from supervisor.core.devices import HOST
from supervisor.core.engine import Before, Engine
from supervisor.core.failures import Failure, FailureClass
from supervisor.core.fit import need
from supervisor.core.fleet import Fleet, taken
from supervisor.core.ledger import Claims, name_of
from supervisor.core.lifecycle import PROFILING, Reason, State, Step
from supervisor.errors import EngineFailed, NotAvailable

SECOND_TERM = 3.0
"""vLLM swallows a SIGTERM while it loads; a second one works (measured: five of five)."""

AWAKE = frozenset({State.READY, State.DRAINING})

SETTLED_SHARE = 0.9
SETTLED_SLACK = 256 << 20
"""Bytes that count for nothing: readings of the parts are not of one moment."""


def retire(
    fleet: Fleet,
    engine: Engine,
    reason: Reason,
    why: str,
    *,
    drain: float | None = None,
    asleep: bool = False,
    patient: bool = False,
) -> None:
    """Take an engine down in order, to sleep if `asleep`. `why`: the reason in words.

    Requests in flight have `drain` seconds (None: server.drain) before they are cut; `patient` cuts none.
    """
    at_once = drain == 0
    engine.retired, engine.going_to_sleep = True, asleep and engine.state is not State.SLEEPING
    if engine.claims():
        engine.left_because = why
    if engine.state is State.RESERVED:
        withdraw(fleet, engine, why)
        answer_stopped(fleet, engine)
    elif engine.state is State.READY:
        forgive(fleet, engine)
        engine.step(Step.DRAIN, fleet.now)
        if not patient:
            engine.deadline = fleet.now + (fleet.config.server.drain if drain is None else drain)
        told, busy = f"{engine.name} drains: {why}", len(engine.leases)
        fleet.note("engine_draining", engine, told, reason=reason.value, why=why, busy=busy)
    elif engine.state is State.DRAINING and at_once:
        engine.deadline = fleet.now
    elif engine.state in (State.STARTING, State.ADOPTING, State.SLEEPING, State.WAKING):
        told = f"{engine.name} stops while {engine.state}: {why}"
        fleet.note("engine_stopping", engine, told, reason=reason.value, why=why)
        if engine.is_to_stop:
            engine.deadline = None
        else:
            terminate(fleet, engine)
    go_on_leaving(fleet, engine)


def go_on_leaving(fleet: Fleet, engine: Engine) -> None:
    """Whoever may go, goes: no start on the same GPU is disturbed for it."""
    if engine.state is State.DRAINING:
        go_on_draining(fleet, engine)
    elif engine.is_to_stop and not would_disturb(fleet, engine):
        terminate(fleet, engine)


def give_up_abandoned(fleet: Fleet) -> None:
    """Starts for which nobody is left, where the profile does not want them finished all the same."""
    for engine in fleet.engines.values():
        starting = engine.state in (State.RESERVED, State.STARTING)
        asked_for = engine.wanted or engine.pinned or fleet.queues.for_profile(engine.name)
        if starting and not asked_for and not engine.profile.finish_start:
            retire(fleet, engine, Reason.ABANDONED, "nobody waits for it any more")


def withdraw(fleet: Fleet, engine: Engine, why: str) -> None:
    """Its place is promised to others again before anything was spawned."""
    engine.step(Step.RELEASE, fleet.now)
    engine.clear()
    fleet.note("start_withdrawn", engine, f"{engine.name} does not start after all: {why}")


def go_on_draining(fleet: Fleet, engine: Engine) -> None:
    """Stop a drained engine, unless memory freed now would abort a start on the same GPU."""
    overdue = engine.deadline is not None and engine.deadline <= fleet.now
    if engine.leases and not overdue:
        return
    if would_disturb(fleet, engine):
        engine.deadline = fleet.now + 1.0 if overdue else engine.deadline
        return
    level = sleep_level(fleet, engine, fleet.claims(without=engine.name)) if engine.going_to_sleep else 0
    if level and not engine.leases:
        fall_asleep(fleet, engine, level)
    else:
        terminate(fleet, engine)


def sleep_level(fleet: Fleet, engine: Engine, claims: Claims) -> int:
    """1 where host memory takes its weights, 2 where it does not, 0 where it cannot sleep."""
    if not engine.sleeps or engine.state not in AWAKE:
        return 0
    return 1 if fleet.ledger.room(HOST, claims) >= engine.host_need else 2


def cannot_sleep(engine: Engine) -> str | None:
    """Why it cannot be put to sleep now, in words; None where it can."""
    if not engine.profile.sleep:
        return f"{engine.name} does not sleep: its profile has no sleep = true"
    if not engine.sleeps:
        return f"{engine.name} did not sleep properly before; it can be stopped"
    return (
        None
        if engine.state is State.READY
        else f"{engine.name} is {engine.state}: only a ready engine sleeps"
    )


def fall_asleep(fleet: Fleet, engine: Engine, level: int) -> None:
    """Its memory stays promised to it until the devices show that it came back; its weights' place is taken now."""
    remember_before(fleet, engine)
    lie_down(fleet, engine, level)
    fleet.order(orders.Sleep(engine.incarnation or "", level))


def lie_down(fleet: Fleet, engine: Engine, level: int) -> None:
    limits = fleet.config.engine
    engine.step(Step.SLEEP, fleet.now)
    engine.asleep, engine.settled, engine.slept_at, engine.proven = level, False, None, True
    if level == 1:
        engine.reserved[HOST] = engine.host_need
    engine.deadline = fleet.now + limits.sleep_timeout + limits.settle_timeout


def settle_asleep(fleet: Fleet, engine: Engine) -> None:
    """Over once the devices show that most of the memory came back: an answer of 200 proves nothing.

    Held against the most that it was seen to hold awake, not the last: it may have woken since.
    """
    if engine.slept_at is None:
        return
    fallen = {device: engine.measured.get(device) for device in fleet.cards_of(engine)}
    for device, now_held in fallen.items():
        reading = fleet.ledger.reading(device)
        if reading is None or reading.trouble or now_held is None or reading.at < engine.slept_at:
            return
        whole = need(engine.profile, reading)
        if now_held > min(whole, engine.expected.peak.get(device, whole)) / 2:
            return
    engine.settled, engine.deadline = True, coming.bedtime_asleep(fleet, engine)
    kept = {device: held for device, held in fallen.items() if held is not None}
    engine.reserved |= kept
    residue = sum(kept.values())
    learning.fell_asleep(fleet, engine, kept)
    fleet.note("engine_asleep", engine, f"{engine.name} sleeps at level {engine.asleep}", residue=residue)


def sleep_failed(fleet: Fleet, engine: Engine, reason: str) -> None:
    """It answered, or showed, that it does not sleep: stop it, and do not try that again."""
    learning.sleepless(fleet, engine)
    fleet.note("sleep_failed", engine, f"{engine.name} did not fall asleep: {reason}", level="WARNING")
    terminate(fleet, engine)


def wake_failed(fleet: Fleet, engine: Engine, reason: str) -> None:
    """Replace it by a fresh start, which those who wait for it await; the next one is not put to sleep."""
    learning.sleepless(fleet, engine)
    engine.proven = True
    fail(fleet, engine, Failure(FailureClass.TRANSIENT, f"did not wake: {reason}"))


def would_disturb(fleet: Fleet, engine: Engine) -> bool:
    cards = set(engine.devices) - {HOST}
    return any(other.state in PROFILING and cards & set(other.devices) for other in fleet.engines.values())


def terminate(fleet: Fleet, engine: Engine) -> None:
    engine.was_loading = engine.state in (State.STARTING, State.ADOPTING)
    remember_before(fleet, engine)
    engine.step(Step.STOP, fleet.now)
    engine.terminated = 1
    fleet.order(orders.Terminate(engine.incarnation or ""))
    engine.deadline = fleet.now + (SECOND_TERM if engine.was_loading else fleet.config.engine.stop_grace)


def climb(fleet: Fleet, engine: Engine) -> None:
    """The next rung of the stop ladder: a second SIGTERM for one that loaded, then SIGKILL for all."""
    if engine.was_loading and engine.terminated == 1:
        engine.terminated = 2
        engine.deadline = fleet.now + fleet.config.engine.stop_grace
        fleet.order(orders.Terminate(engine.incarnation or ""))
    else:
        engine.deadline = None
        fleet.order(orders.Kill(engine.incarnation or ""))


def forgive(fleet: Fleet, engine: Engine) -> None:
    """After a long time ready, which ends now, its earlier failures count no more."""
    if engine.state is State.READY and fleet.now - engine.ready_since >= fleet.config.restarts.reset_after:
        engine.failures.clear()


def fail(fleet: Fleet, engine: Engine, failure: Failure) -> None:
    """A live engine is no use any more: kill it whole."""
    forgive(fleet, engine)
    engine.was_loading = engine.state in (State.STARTING, State.ADOPTING)
    remember_before(fleet, engine)
    engine.failure = failure
    engine.step(Step.STOP, fleet.now)
    fleet.order(orders.Kill(engine.incarnation or ""))


def remember_before(fleet: Fleet, engine: Engine) -> None:
    for device, measured in engine.measured.items():
        if device not in engine.devices and measured < landing.MUCH:
            continue
        found = fleet.ledger.reading(device)
        if found and not found.trouble:
            engine.before[device] = Before(fleet.rest_of(found, engine), measured)


def cause(engine: Engine, told: Failure) -> Failure | None:
    """Why it ended, None where it was stopped in order. `told`: what its exit and log say.

    An engine that knows what it died of may fail its probes before it is gone: then it tells more than they do.
    """
    killed = engine.failure
    if killed is None:
        return None if engine.state is State.STOPPING else told
    return told if told.serving and told.kind is not FailureClass.TRANSIENT else killed


def ended(fleet: Fleet, engine: Engine, failure: Failure | None, *, tree_gone: bool = False) -> None:
    """The leader is gone, wanted or not. Its memory is ours until the device shows otherwise."""
    stopping, was_serving = engine.state is State.STOPPING, engine.state in AWAKE
    was_ready = was_serving or (stopping and not engine.was_loading and not engine.asleep)
    if not stopping:
        forgive(fleet, engine)
        remember_before(fleet, engine)
    engine.step(Step.EXIT, fleet.now)
    engine.failure, engine.gone_at = failure, None
    engine.leases.clear()
    engine.deadline = fleet.now + fleet.config.engine.settle_timeout
    if not tree_gone:
        fleet.order(orders.Kill(engine.incarnation or ""))
    if failure:
        engine.failure = engine.last_failure = failure = with_holders(fleet, engine, failure)
        engine.wanted = engine.wanted or (was_ready and not engine.retired)
        fleet.note("engine_failed", engine, str(failure), level="ERROR", log=failure.tail)
        if failure.serving and failure.kind is FailureClass.OUT_OF_MEMORY and not engine.asleep:
            ease(fleet, engine)
        if failure.kind is FailureClass.GPU_SICK:
            engine.wanted = False  # it would have to be started where nothing starts now
            quarantine.isolate(fleet, set(engine.devices) - {HOST}, str(failure))
        if failure.kind in restarts.NOT_COUNTED:
            engine.wanted = engine.wanted and is_awaited(fleet, engine)
        elif not (engine.proven or engine.outdated):
            tell_waiters(fleet, engine, failure)
    if tree_gone:
        tree_is_gone(fleet, engine)


def with_holders(fleet: Fleet, engine: Engine, failure: Failure) -> Failure:
    """Where memory was short at its start, who else holds it is what a person needs to know."""
    if failure.serving or failure.kind not in (FailureClass.OUT_OF_MEMORY, FailureClass.CONTENTION):
        return failure
    beside, told = fleet.claims(without=engine.name), [failure.message]
    for device in engine.devices:
        if reading := fleet.ledger.reading(device):
            holders = fleet.ledger.holders(reading, beside.get(device, ()))
            told.append(f"{name_of(reading)} is held by: {holders or 'nobody else'}")
    return replace(failure, message="; ".join(told))


def is_awaited(fleet: Fleet, engine: Engine) -> bool:
    """Whether somebody still waits for its start, be it the calendar."""
    waits = bool(engine.start_tickets) or engine.patient_until >= fleet.now
    return waits or fleet.queues.for_profile(engine.name) > 0


def ease(fleet: Fleet, engine: Engine) -> None:
    """It ran out of memory while serving: from now on half as many requests at a time, until its profile changes."""
    before, rung = engine.slots, max(1, engine.slots // 2)
    learning.eased(fleet, engine, rung)
    why = f"{engine.name} ran out of memory serving; it is started again for {rung} requests at a time"
    fleet.note("engine_eased", engine, why, level="WARNING", slots=rung, before=before)


def tree_is_gone(fleet: Fleet, engine: Engine) -> None:
    """Host memory is back with its processes; of a GPU only a reading taken from now on is proof."""
    engine.gone_at = fleet.now
    if set(engine.devices) <= {HOST}:
        settle(fleet, engine)
    else:
        fleet.order(orders.Survey())


def tell_waiters(fleet: Fleet, engine: Engine, failure: Failure) -> None:
    """It never came up: those who waited for it try their other candidates, or hear why, and when it may be there."""
    message = f"{engine.name} failed to start: {failure}"
    failures = [*engine.failures, fleet.now]
    put_off = restarts.decide(fleet.config.restarts, failures, failure, luck=0.0).delay
    again = None if put_off is None else put_off + engine.eta
    for ticket in taken(engine.start_tickets):
        error = EngineFailed(message, log=failure.tail)
        fleet.order(orders.Answer(ticket, message, error))
    engine.give_up_wanting()
    for waiter in fleet.queues:
        if engine.name in waiter.profiles:
            fleet.queues.give_up(waiter, engine.name)
            if not waiter.profiles:
                refusal = NotAvailable("\n".join((message, *failure.tail)), retry_after=again)
                fleet.refuse(waiter.lease, refusal, waiter.ask)


def settle(fleet: Fleet, engine: Engine) -> None:
    """Over once the tree is empty and every device shows the memory back."""
    gone_at = engine.gone_at
    if gone_at is None or not all(is_back(fleet, engine, device, gone_at) for device in engine.places):
        return
    over(fleet, engine, f"the memory of {engine.name} is back")


def over(fleet: Fleet, engine: Engine, proof: str) -> None:
    """An incarnation has come to its end, and holds nothing any more."""
    quarantine.lift(fleet, engine.places, engine.name, proof)
    incarnation, failure = engine.incarnation or "", engine.failure
    fleet.order(orders.Forget(incarnation))
    engine.clear()
    if failure is None or engine.outdated or failure.kind is FailureClass.GPU_SICK:
        engine.failure = None
        engine.step(Step.SETTLE, fleet.now)
        fleet.note("engine_stopped", engine, f"{engine.name} stopped: {proof}")
    else:
        follow_up(fleet, engine, failure)
    answer_stopped(fleet, engine)


def is_back(fleet: Fleet, engine: Engine, device: str, gone_at: float) -> bool:
    """Whether the device shows the memory back: what others took or returned meanwhile proves nothing."""
    if device == HOST:
        return True
    reading = fleet.ledger.reading(device)
    if reading is None or reading.trouble or reading.at < gone_at:
        return False
    if reading.unified:  # its memory is the host's, which too many others share to prove anything
        return True
    rest, measured = engine.before.get(device, (reading.total, 0))
    left = max(SETTLED_SLACK, (1 - SETTLED_SHARE) * measured)
    return fleet.rest_of(reading, engine) <= rest - measured + left


def stay_away(fleet: Fleet, engine: Engine) -> None:
    """The deadline passed and the memory did not come back: never proceed in hope."""
    pids = ", ".join(map(str, engine.survivors)) or "none left, the driver holds it"
    why = f"memory of {engine.name} did not come back (processes: {pids})"
    quarantine.impose(fleet, engine.places - {HOST}, engine.name, why)


def follow_up(fleet: Fleet, engine: Engine, failure: Failure) -> None:
    if failure.kind not in restarts.NOT_COUNTED:
        engine.failures.append(fleet.now)
    engine.failure = None
    verdict = restarts.decide(fleet.config.restarts, engine.failures, failure, fleet.rng.random())
    engine.give_reason(verdict.reason, fleet.now)
    if verdict.delay is None:
        engine.step(Step.GIVE_UP, fleet.now)
        engine.give_up_wanting()
    elif verdict.delay:
        engine.step(Step.BACK_OFF, fleet.now)
        engine.deadline = fleet.now + verdict.delay
    else:
        engine.step(Step.SETTLE, fleet.now)
    inputs = {"kind": failure.kind.value, "failures": len(engine.failures), "delay_s": verdict.delay}
    fleet.note("engine_restart_policy", engine, verdict.reason, level="WARNING", **inputs)


def answer_stopped(fleet: Fleet, engine: Engine) -> None:
    for ticket in taken(engine.stop_tickets):
        fleet.order(orders.Answer(ticket, f"{engine.name} stopped"))
