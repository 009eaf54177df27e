"""What each fact changes: one entry an event, everything else follows from `decide`."""

from __future__ import annotations

from functools import singledispatch

from supervisor.core import coming, dispatch, events, leaving, orders
from supervisor.core.events import Event
from supervisor.core.failures import Failure, FailureClass, classify
from supervisor.core.fit import need
from supervisor.core.fleet import Fleet, Mode, taken
from supervisor.core.lifecycle import LIVE, State, Step
from supervisor.core.queueing import Waiter
from supervisor.core.routing import candidates
from supervisor.errors import LlmdError, NotAvailable


@singledispatch
def on(event: Event, fleet: Fleet) -> None:
    """Take in one fact. What follows for those who wait is decided afterwards."""
    raise TypeError(f"unknown event {event!r}")


@on.register
def _(event: events.Ticked, fleet: Fleet) -> None:
    """Deadlines are looked at after every event."""


@on.register
def _(event: events.Arrived, fleet: Fleet) -> None:
    if fleet.closing:
        fleet.refuse(event.lease, NotAvailable("llmd is shutting down", retry_after=10))
        return
    try:
        found = candidates(event.ask, fleet.config, fleet.available, back=fleet.mode.back)
    except LlmdError as error:
        fleet.refuse(event.lease, error)
        return
    waiter = Waiter(event.lease, event.ask, found, fleet.now, fleet.now + event.patience)
    bound = sum(fleet.engines[name].room for name in waiter.profiles)
    ahead = sum(other.ask.model == event.ask.model for other in fleet.queues)
    fleet.queues.add(waiter)
    if ahead >= bound:
        dispatch.place(fleet, waiter)
        if event.lease in fleet.queues:
            fleet.queues.remove(event.lease)
            fleet.refuse(event.lease, dispatch.overloaded(fleet, waiter, ahead))


@on.register
def _(event: events.Left, fleet: Fleet) -> None:
    if fleet.queues.remove(event.lease):
        return
    profile, incarnation = fleet.leases.pop(event.lease)
    engine = fleet.engines[profile]
    if engine.incarnation == incarnation:
        engine.leases.discard(event.lease)
        engine.last_used = fleet.now
        if not engine.leases:
            coming.rest(fleet, engine)


@on.register
def _(event: events.DevicesRead, fleet: Fleet) -> None:
    for engine in fleet.engines.values():
        engine.measured = dict(event.measured.get(engine.incarnation or "", {}))
    fleet.ledger.take(event.survey, event.ours, fleet.claims())
    for engine in fleet.engines.values():
        if engine.state is State.RESERVED:
            coming.spawn_if_still_fits(fleet, engine)
        elif engine.state is State.SETTLING:
            leaving.settle(fleet, engine)


@on.register
def _(event: events.SpawnFailed, fleet: Fleet) -> None:
    if engine := fleet.current(event.incarnation):
        leaving.ended(fleet, engine, Failure(FailureClass.IMPOSSIBLE, event.reason), tree_gone=True)


@on.register
def _(event: events.Progressed, fleet: Fleet) -> None:
    engine = fleet.current(event.incarnation)
    if engine and engine.state in (State.STARTING, State.ADOPTING):
        engine.progress = event.progress or engine.progress
        engine.deadline = fleet.now + fleet.config.engine.start_timeout


@on.register
def _(event: events.ProbePassed, fleet: Fleet) -> None:
    engine = fleet.current(event.incarnation)
    if engine is None or engine.state not in (State.STARTING, State.ADOPTING):
        return
    if engine.loading_since is not None:
        engine.load_seconds = fleet.now - engine.loading_since
    engine.step(Step.SERVE, fleet.now)
    engine.last_used, engine.progress, engine.last_failure = fleet.now, None, None
    engine.wanted = False
    coming.rest(fleet, engine)
    fleet.note("engine_ready", engine, f"{engine.name} is ready", seconds=engine.load_seconds)
    fleet.order(orders.Survey())
    for ticket in taken(engine.start_tickets):
        fleet.order(orders.Answer(ticket, f"{engine.name} is ready"))


@on.register
def _(event: events.Unhealthy, fleet: Fleet) -> None:
    engine = fleet.current(event.incarnation)
    if engine and engine.state in (State.READY, State.DRAINING):
        leaving.fail(fleet, engine, Failure(FailureClass.TRANSIENT, event.reason))


@on.register
def _(event: events.Exited, fleet: Fleet) -> None:
    engine = fleet.current(event.incarnation)
    if engine is None or engine.state not in LIVE:
        return
    failure = engine.failure
    if failure is None and engine.state is not State.STOPPING:
        ready = engine.state not in (State.STARTING, State.ADOPTING)
        failure = classify(event.code, event.tail, was_ready=ready)
    leaving.ended(fleet, engine, failure)


@on.register
def _(event: events.TreeGone, fleet: Fleet) -> None:
    engine = fleet.current(event.incarnation)
    if engine and engine.state is State.SETTLING:
        engine.survivors = ()
        leaving.tree_is_gone(fleet, engine)


@on.register
def _(event: events.Unkillable, fleet: Fleet) -> None:
    if engine := fleet.current(event.incarnation):
        engine.survivors = event.pids


@on.register
def _(event: events.Found, fleet: Fleet) -> None:
    engine = fleet.engines[event.profile]
    engine.step(Step.ADOPT, fleet.now)
    engine.incarnation, engine.devices = event.incarnation, event.devices
    fleet.ledger.unlearn_foreign(event.devices)
    engine.reserved = {
        device: need(engine.profile, reading)
        for device in event.devices
        if (reading := fleet.ledger.reading(device))
    }
    engine.deadline = fleet.now + fleet.config.engine.start_timeout
    if event.alive:
        fleet.order(orders.Prove(event.incarnation))
    else:
        leaving.ended(fleet, engine, Failure(FailureClass.TRANSIENT, "the engine ended while llmd was down"))


@on.register
def _(event: events.AdoptionFailed, fleet: Fleet) -> None:
    engine = fleet.current(event.incarnation)
    if engine and engine.state is State.ADOPTING:
        engine.step(Step.RELEASE, fleet.now)
        engine.clear()
        fleet.note("adoption_failed", engine, event.reason, level="WARNING")


@on.register
def _(event: events.StartAsked, fleet: Fleet) -> None:
    engine = fleet.engines[event.profile]
    if engine.state is State.READY:
        fleet.order(orders.Answer(event.ticket, f"{engine.name} is ready already"))
        return
    if engine.state in (State.BACKOFF, State.IMPOSSIBLE):
        engine.step(Step.RELEASE, fleet.now)
        engine.failures.clear()
    engine.wanted = True
    engine.start_tickets.append(event.ticket)


@on.register
def _(event: events.StopAsked, fleet: Fleet) -> None:
    engine = fleet.engines[event.profile]
    engine.wanted = False
    if engine.state in (State.COLD, State.BACKOFF, State.IMPOSSIBLE):
        if engine.state is not State.COLD:
            engine.step(Step.RELEASE, fleet.now)
        fleet.order(orders.Answer(event.ticket, f"{engine.name} does not run"))
        return
    engine.stop_tickets.append(event.ticket)
    leaving.retire(fleet, engine, "asked by an operator", at_once=event.at_once)


@on.register
def _(event: events.TicketDropped, fleet: Fleet) -> None:
    for engine in fleet.engines.values():
        for tickets in (engine.start_tickets, engine.stop_tickets):
            if event.ticket in tickets:
                tickets.remove(event.ticket)


@on.register
def _(event: events.ModeChanged, fleet: Fleet) -> None:
    fleet.mode = Mode(event.mode, event.next_mode, event.until)


@on.register
def _(event: events.ShutdownAsked, fleet: Fleet) -> None:
    fleet.closing = True
    for waiter in fleet.queues:
        fleet.queues.remove(waiter.lease)
        fleet.refuse(waiter.lease, NotAvailable("llmd is shutting down", retry_after=10))
    for engine in fleet.engines.values():
        engine.wanted = False
        if not event.keep_engines:
            leaving.retire(fleet, engine, "llmd is shutting down")
