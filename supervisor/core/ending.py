"""The end of an incarnation: why it ended, when its memory is back, and what follows."""

from __future__ import annotations

from dataclasses import replace

from supervisor.core import landing, learning, leaving, orders, quarantine, restarts
from supervisor.core.devices import HOST, MIB, Reading
from supervisor.core.engine import Before, Engine
from supervisor.core.failures import Failure, FailureClass
from supervisor.core.fleet import Fleet, taken
from supervisor.core.ledger import name_of
from supervisor.core.lifecycle import SERVING, State, Step
from supervisor.errors import EngineFailed, NotAvailable

SETTLED_SHARE = 0.9
SETTLED_SLACK = 256 << 20
"""Bytes that count for nothing: readings of the parts are not of one moment."""

KEPT = 640 * MIB
"""Bytes that a driver is taken to keep of a card of which no engine has told: those seen were at most this."""


def fail(fleet: Fleet, engine: Engine, failure: Failure) -> None:
    """A live engine is no use any more: kill it whole."""
    forgive(fleet, engine)
    engine.was_loading = engine.state in (State.STARTING, State.ADOPTING)
    remember_before(fleet, engine)
    engine.failure = failure
    engine.step(Step.STOP, fleet.now)
    fleet.order(orders.Kill(engine.incarnation or ""))


def ended(fleet: Fleet, engine: Engine, failure: Failure | None, *, tree_gone: bool = False) -> None:
    """The leader is gone, wanted or not. Its memory is ours until the device shows otherwise."""
    stopping, was_serving = engine.state is State.STOPPING, engine.state in SERVING
    was_ready = was_serving or (stopping and not engine.was_loading and not engine.asleep)
    if not stopping:
        forgive(fleet, engine)
        remember_before(fleet, engine)
    engine.step(Step.EXIT, fleet.now)
    engine.failure, engine.gone_at = failure, None
    engine.drop_all()
    engine.deadline = fleet.now + fleet.config.engine.settle_timeout
    if not tree_gone:
        fleet.order(orders.Kill(engine.incarnation or ""))
    if failure:
        failed(fleet, engine, with_holders(fleet, engine, failure), was_ready=was_ready)
    if tree_gone:
        tree_is_gone(fleet, engine)


def failed(fleet: Fleet, engine: Engine, failure: Failure, *, was_ready: bool) -> None:
    """Nobody asked for its end: what that means for its next start, its GPUs and those who wait for it."""
    engine.failure = engine.last_failure = failure
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


def cause(engine: Engine, told: Failure) -> Failure | None:
    """Why it ended, None where it was stopped in order. `told`: what its exit and log say.

    An engine that knows what it died of may fail its probes before it is gone: then it tells more than they do.
    """
    killed = engine.failure
    if killed is None:
        return None if engine.state is State.STOPPING else told
    return told if told.serving and told.kind is not FailureClass.TRANSIENT else killed


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
    if engine.patient_until < fleet.now:  # else the calendar waits on, and restarts go on
        engine.give_up_wanting()
    for waiter in fleet.queues:
        if engine.name in waiter.profiles:
            fleet.queues.give_up(waiter, engine.name)
            if not waiter.profiles:
                said = f"model {waiter.ask.model!r} is not ready: {message}"
                refusal = NotAvailable("\n".join((said, *failure.tail)), retry_after=again)
                fleet.refuse(waiter.lease, refusal, waiter.ask)


def settle(fleet: Fleet, engine: Engine) -> None:
    """Over once the tree is empty and every device shows the memory back."""
    gone_at = engine.gone_at
    if gone_at is None or not all(is_back(fleet, engine, device, gone_at) for device in engine.places):
        return
    over(fleet, engine, f"the memory of {engine.name} is back")


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
    rest = measured + uncounted(reading) if rest is None else rest
    left = max(SETTLED_SLACK, (1 - SETTLED_SHARE) * measured)
    return fleet.rest_of(reading, engine) <= rest - measured + left


def uncounted(reading: Reading) -> int:
    """What its driver keeps of a card: in use, by NVML, and by nobody."""
    return KEPT if reading.cuda_total is None else reading.total - reading.cuda_total


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
    leaving.answer_stopped(fleet, engine)


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


def forgive(fleet: Fleet, engine: Engine) -> None:
    """After a long time ready, which ends now, its earlier failures count no more."""
    if engine.state is State.READY and fleet.now - engine.ready_since >= fleet.config.restarts.reset_after:
        engine.failures.clear()


def remember_before(fleet: Fleet, engine: Engine) -> None:
    """What to hold its end against: what the devices show now, or, of one that cannot be read, what it took."""
    for device in {*engine.devices, *engine.measured}:
        measured, found = engine.measured.get(device), fleet.ledger.reading(device)
        if device not in engine.devices and (measured or 0) < landing.MUCH:
            continue
        if found is None or found.trouble:
            presume(engine, device)
        elif measured is not None:
            rest = fleet.rest_of(found, engine)
            engine.before[device] = Before(rest if rest >= measured else None, measured)


def presume(engine: Engine, device: str) -> None:
    """It holds what it was seen to hold, or was promised, on top of what was there before it."""
    rest, measured = engine.before.get(device, (None, 0))
    if not measured:
        promised = engine.reserved.get(device, 0)
        taken = promised if engine.asleep else engine.expected.peak.get(device, promised)
        engine.before[device] = Before(None if rest is None else rest + taken, taken)
