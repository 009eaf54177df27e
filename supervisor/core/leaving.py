"""Engines on their way out: drain, sleep or the stop ladder."""

from __future__ import annotations

from supervisor.core import ending, orders, sleeping
from supervisor.core.devices import HOST
from supervisor.core.engine import Engine
from supervisor.core.fleet import Fleet, taken
from supervisor.core.lifecycle import PROFILING, Reason, State, Step

SECOND_TERM = 3.0
"""vLLM swallows a SIGTERM while it loads; a second one works (measured: five of five)."""


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
        ending.forgive(fleet, engine)
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
    level = (
        sleeping.sleep_level(fleet, engine, fleet.claims(without=engine.name)) if engine.going_to_sleep else 0
    )
    if level and not engine.leases:
        sleeping.fall_asleep(fleet, engine, level)
    else:
        terminate(fleet, engine)


def would_disturb(fleet: Fleet, engine: Engine) -> bool:
    cards = set(engine.devices) - {HOST}
    return any(other.state in PROFILING and cards & set(other.devices) for other in fleet.engines.values())


def terminate(fleet: Fleet, engine: Engine) -> None:
    engine.was_loading = engine.state in (State.STARTING, State.ADOPTING)
    ending.remember_before(fleet, engine)
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


def answer_stopped(fleet: Fleet, engine: Engine) -> None:
    for ticket in taken(engine.stop_tickets):
        fleet.order(orders.Answer(ticket, f"{engine.name} stopped"))
