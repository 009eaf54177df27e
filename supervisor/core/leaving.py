"""Engines on their way out: drain, the stop ladder, and settling, which is over when the memory is back."""

from __future__ import annotations

from supervisor.core import orders, restarts
from supervisor.core.devices import HOST
from supervisor.core.engine import Engine
from supervisor.core.failures import Failure
from supervisor.core.fleet import Fleet, taken
from supervisor.core.lifecycle import PROFILING, State, Step
from supervisor.errors import EngineFailed, NotAvailable

SECOND_TERM = 3.0
"""vLLM swallows a SIGTERM while it loads; a second one works (measured: five of five)."""

SETTLED_SHARE = 0.9
SETTLED_SLACK = 256 << 20


def retire(fleet: Fleet, engine: Engine, why: str, *, at_once: bool = False) -> None:
    """Take an engine down in order; `at_once` cuts requests in flight."""
    engine.retired = True
    if engine.state is State.RESERVED:
        engine.step(Step.RELEASE, fleet.now)
        engine.clear()
        answer_stopped(fleet, engine)
    elif engine.state is State.READY:
        engine.step(Step.DRAIN, fleet.now)
        engine.deadline = fleet.now + (0 if at_once else fleet.config.server.drain)
        fleet.note("engine_draining", engine, f"{engine.name} drains: {why}")
    elif engine.state is State.DRAINING and at_once:
        engine.deadline = fleet.now
    elif engine.state in (State.STARTING, State.ADOPTING):
        terminate(fleet, engine)
    go_on_draining(fleet, engine)


def go_on_draining(fleet: Fleet, engine: Engine) -> None:
    """Stop a drained engine, unless memory freed now would abort a start on the same GPU."""
    if engine.state is not State.DRAINING:
        return
    overdue = engine.deadline is not None and engine.deadline <= fleet.now
    if engine.leases and not overdue:
        return
    if would_disturb(fleet, engine):
        engine.deadline = fleet.now + 1.0 if overdue else engine.deadline
        return
    terminate(fleet, engine)


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


def fail(fleet: Fleet, engine: Engine, failure: Failure) -> None:
    """A live engine is no use any more: kill it whole."""
    engine.was_loading = engine.state in (State.STARTING, State.ADOPTING)
    remember_before(fleet, engine)
    engine.failure = failure
    engine.step(Step.STOP, fleet.now)
    fleet.order(orders.Kill(engine.incarnation or ""))


def remember_before(fleet: Fleet, engine: Engine) -> None:
    for device, measured in engine.measured.items():
        if found := fleet.ledger.reading(device):
            engine.before[device] = (found.used, measured, found.unattributed)


def ended(fleet: Fleet, engine: Engine, failure: Failure | None, *, tree_gone: bool = False) -> None:
    """The leader is gone, wanted or not. Its memory is ours until the device shows otherwise."""
    stopping = engine.state is State.STOPPING
    was_ready = engine.state in (State.READY, State.DRAINING) or (stopping and not engine.was_loading)
    if not stopping:
        remember_before(fleet, engine)
    engine.step(Step.EXIT, fleet.now)
    engine.failure, engine.gone_at = failure, None
    engine.leases.clear()
    engine.deadline = fleet.now + fleet.config.engine.settle_timeout
    if not tree_gone:
        fleet.order(orders.Kill(engine.incarnation or ""))
    if failure:
        engine.last_failure = failure
        engine.wanted = engine.wanted or (was_ready and not engine.retired)
        fleet.note("engine_failed", engine, str(failure), level="ERROR", log=failure.tail)
        if not was_ready:
            tell_waiters(fleet, engine, failure)
    if tree_gone:
        tree_is_gone(fleet, engine)


def tree_is_gone(fleet: Fleet, engine: Engine) -> None:
    """Host memory is back with its processes; of a GPU only a reading taken from now on is proof."""
    engine.gone_at = fleet.now
    if set(engine.devices) <= {HOST}:
        settle(fleet, engine)
    else:
        fleet.order(orders.Survey())


def tell_waiters(fleet: Fleet, engine: Engine, failure: Failure) -> None:
    """It never came up: those who waited for it try their other candidates, or hear why."""
    message = f"{engine.name} failed to start: {failure}"
    for ticket in taken(engine.start_tickets):
        error = EngineFailed(message, log=failure.tail)
        fleet.order(orders.Answer(ticket, message, error))
    engine.wanted = False
    for waiter in fleet.queues:
        if engine.name in waiter.profiles:
            waiter.failed.add(engine.name)
            if not waiter.profiles:
                fleet.queues.remove(waiter.lease)
                fleet.refuse(
                    waiter.lease, NotAvailable(f"{message}\n" + "\n".join(failure.tail), retry_after=30)
                )


def settle(fleet: Fleet, engine: Engine) -> None:
    """Over once the tree is empty and every device shows the memory back."""
    gone_at = engine.gone_at
    if gone_at is None or not all(is_back(fleet, engine, device, gone_at) for device in engine.devices):
        return
    for device in engine.devices:
        fleet.ledger.quarantined.pop(device, None)
    incarnation, failure = engine.incarnation or "", engine.failure
    fleet.order(orders.Forget(incarnation))
    engine.clear()
    if failure is None:
        engine.step(Step.SETTLE, fleet.now)
        fleet.note("engine_stopped", engine, f"{engine.name} stopped, its memory is back")
    else:
        follow_up(fleet, engine, failure)
    answer_stopped(fleet, engine)


def is_back(fleet: Fleet, engine: Engine, device: str, gone_at: float) -> bool:
    """Whether the device shows the memory back, held against `before`."""
    if device == HOST:
        return True
    reading = fleet.ledger.reading(device)
    if reading is None or reading.trouble or reading.at < gone_at:
        return False
    used, measured, orphaned = engine.before.get(device, (reading.total, 0, reading.total))
    named = fleet.ledger.survey.holders_known
    return (measured > 0 and reading.used <= used - SETTLED_SHARE * measured) or (
        reading.unattributed <= orphaned + SETTLED_SLACK if named else reading.used <= used
    )


def quarantine(fleet: Fleet, engine: Engine) -> None:
    """The deadline passed and the memory did not come back: never proceed in hope."""
    pids = ", ".join(map(str, engine.survivors)) or "none left, the driver holds it"
    why = f"memory of {engine.name} did not come back (processes: {pids})"
    for device in engine.devices:
        fleet.ledger.quarantined[device] = why
    fleet.note("device_quarantined", engine, why, level="ERROR", devices=engine.devices)


def follow_up(fleet: Fleet, engine: Engine, failure: Failure) -> None:
    if engine.failures and engine.failures[-1] <= fleet.now - fleet.config.restarts.reset_after:
        engine.failures.clear()
    engine.failures.append(fleet.now)
    engine.failure = None
    verdict = restarts.decide(fleet.config.restarts, engine.failures, failure, fleet.rng)
    engine.last_reason = verdict.reason
    engine.step(Step.GIVE_UP if verdict.delay is None else Step.BACK_OFF, fleet.now)
    if verdict.delay is not None:
        engine.deadline = fleet.now + verdict.delay
    else:
        engine.wanted = False
    fleet.note("engine_restart_policy", engine, verdict.reason, level="WARNING")


def answer_stopped(fleet: Fleet, engine: Engine) -> None:
    for ticket in taken(engine.stop_tickets):
        fleet.order(orders.Answer(ticket, f"{engine.name} stopped"))
