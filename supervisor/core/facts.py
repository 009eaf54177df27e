"""What each fact changes: one entry an event, everything else follows from `decide`."""

from __future__ import annotations

from functools import singledispatch

from supervisor.core import (
    ailing,
    arriving,
    calendar,
    coming,
    ending,
    events,
    landing,
    learning,
    leaving,
    lending,
    neighbours,
    orders,
    peering,
    quarantine,
    reconfiguring,
    release,
    sleeping,
)
from supervisor.core.events import Event
from supervisor.core.failures import Failure, FailureClass, classify
from supervisor.core.fleet import Fleet
from supervisor.core.lifecycle import LIVE, Reason, State, Step
from supervisor.core.progress import read_totals
from supervisor.errors import DaemonRefused, NotAvailable


@singledispatch
def on(event: Event, fleet: Fleet) -> None:
    """Take in one fact. What follows for those who wait is decided afterwards."""
    raise TypeError(f"unknown event {event!r}")


@on.register
def _(event: events.Ticked, fleet: Fleet) -> None:
    """Deadlines are looked at after every event."""


for change in (
    ailing.reported,
    arriving.arrive,
    calendar.change,
    lending.ask,
    peering.heard,
    peering.lost,
    reconfiguring.reconfigure,
    release.release,
):
    on.register(change)


@on.register
def _(event: events.Left, fleet: Fleet) -> None:
    if fleet.queues.groups and fleet.queues.remove(event.lease):
        return
    granted = fleet.leases.pop(event.lease)
    prompt = granted.prompt if event.prompt is None else event.prompt
    output = granted.output if event.output is None else event.output
    fleet.fairness.charge(granted.source, prompt - granted.prompt, output)
    if not granted.incarnation:
        peering.left(fleet, event.lease, granted)
        return
    engine = fleet.engines.get(granted.profile)
    if engine is None:
        return  # its profile went, and then it died
    if event.output is not None:
        engine.replies.add(event.output)
    if event.prompt is not None:
        learning.counted(fleet, engine, granted.letters, event.prompt)
    engine.served(fleet.now - granted.at)
    if engine.incarnation == granted.incarnation:
        engine.drop(event.lease)
        engine.last_used = fleet.now
        if not engine.leases:
            coming.rest(fleet, engine)
            fleet.await_until(engine.deadline)


@on.register
def _(event: events.DevicesRead, fleet: Fleet) -> None:
    if event.survey.at < fleet.ledger.survey.at:
        return  # two readings crossed: what the older one shows would be taken for a neighbour's
    fleet.ledger.take(event.survey, event.ours)
    for engine in fleet.engines.values():
        engine.measured = dict(event.measured.get(engine.incarnation or "", {}))
        coming.promise_what_was_unread(fleet, engine)
    lending.measure(fleet, event.measured)
    fleet.ledger.look_for_foreign(fleet.claims())
    fleet.stuck.clear()
    quarantine.look_after(fleet)
    neighbours.notice(fleet)
    ailing.look(fleet)
    for engine in fleet.engines.values():
        learning.looked_at(fleet, engine)
        if stray := landing.strayed(fleet, engine):
            ending.fail(fleet, engine, stray)
        elif engine.state is State.RESERVED:
            coming.spawn_if_still_fits(fleet, engine)
        elif engine.state is State.WAKING:
            coming.wake_if_still_fits(fleet, engine)
        elif engine.state is State.SETTLING:
            ending.settle(fleet, engine)
        elif engine.state is State.SLEEPING and not engine.settled:
            sleeping.settle_asleep(fleet, engine)
        elif engine.state is State.READY:
            neighbours.squeeze(fleet, engine)


@on.register
def _(event: events.Told, fleet: Fleet) -> None:
    if engine := fleet.current(event.incarnation):
        if event.weights:
            learning.weighed(fleet, engine, event.weights)
        if event.version:
            learning.told_version(fleet, engine, event.version)
        engine.kv_tokens = event.kv_tokens or engine.kv_tokens
        learning.told_totals(fleet, engine, event.totals)


@on.register
def _(event: events.Slept, fleet: Fleet) -> None:
    engine = fleet.current(event.incarnation)
    if engine and engine.state is State.ADOPTING:
        sleeping.lie_down(fleet, engine, engine.asleep)
    if engine and engine.state is State.SLEEPING:
        engine.slept_at = fleet.now
        fleet.order(orders.Survey())


@on.register
def _(event: events.SleepFailed, fleet: Fleet) -> None:
    engine = fleet.current(event.incarnation, State.SLEEPING)
    if engine and not engine.settled:
        sleeping.sleep_failed(fleet, engine, event.reason)


@on.register
def _(event: events.WakeFailed, fleet: Fleet) -> None:
    if engine := fleet.current(event.incarnation, State.WAKING, State.ADOPTING):
        sleeping.wake_failed(fleet, engine, event.reason)


@on.register
def _(event: events.SpawnFailed, fleet: Fleet) -> None:
    if engine := fleet.current(event.incarnation):
        ending.ended(fleet, engine, Failure(FailureClass.IMPOSSIBLE, event.reason), tree_gone=True)


@on.register
def _(event: events.Progressed, fleet: Fleet) -> None:
    if engine := fleet.current(event.incarnation, State.STARTING, State.ADOPTING):
        engine.progress = event.progress or engine.progress
        engine.deadline = fleet.now + fleet.config.engine.start_timeout


@on.register
def _(event: events.ProbePassed, fleet: Fleet) -> None:
    if engine := fleet.current(event.incarnation, State.STARTING, State.ADOPTING, State.WAKING):
        coming.serve(fleet, engine)


@on.register
def _(event: events.Unhealthy, fleet: Fleet) -> None:
    if engine := fleet.current(event.incarnation, State.READY, State.DRAINING):
        ending.fail(fleet, engine, Failure(FailureClass.TRANSIENT, event.reason))


@on.register
def _(event: events.Exited, fleet: Fleet) -> None:
    engine = fleet.current(event.incarnation, *LIVE)
    if engine is None:
        return
    if engine.state is State.STARTING:  # later its log may hold whatever a request contained
        learning.told_totals(fleet, engine, read_totals(event.tail))
    ending.ended(
        fleet, engine, ending.cause(engine, classify(event.code, event.tail, was_ready=engine.proven))
    )


@on.register
def _(event: events.TreeGone, fleet: Fleet) -> None:
    if engine := fleet.current(event.incarnation, State.SETTLING):
        engine.survivors = ()
        ending.tree_is_gone(fleet, engine)


@on.register
def _(event: events.Unkillable, fleet: Fleet) -> None:
    if engine := fleet.current(event.incarnation):
        engine.survivors = event.pids


@on.register
def _(event: events.Found, fleet: Fleet) -> None:
    engine = fleet.engines[event.profile]
    engine.step(Step.ADOPT, fleet.now)
    engine.incarnation, engine.devices = event.incarnation, event.devices
    engine.asleep, engine.settled = event.asleep, bool(event.asleep) and not event.waking
    engine.pinned_by_hand = event.pinned
    fleet.ledger.unlearn_foreign(event.devices)
    coming.promise_to_found(fleet, engine)
    engine.deadline = fleet.now + fleet.config.engine.start_timeout
    if event.alive:
        fleet.order(orders.Prove(event.incarnation))
    else:
        ending.ended(fleet, engine, Failure(FailureClass.TRANSIENT, "the engine ended while llmd was down"))


@on.register
def _(event: events.AdoptionFailed, fleet: Fleet) -> None:
    if engine := fleet.current(event.incarnation, State.ADOPTING):
        engine.step(Step.RELEASE, fleet.now)
        engine.clear()
        fleet.order(orders.LetGo(event.incarnation, event.reason))
        fleet.note("adoption_failed", engine, event.reason, level="WARNING")


@on.register
def _(event: events.StartAsked, fleet: Fleet) -> None:
    engine = fleet.engines[event.profile]
    if event.pin is False and engine.profile.pin:
        why = f"{engine.name} is pinned by its profile: take `pin = true` out of it"
        fleet.order(orders.Answer(event.ticket, why, DaemonRefused(why)))
        return
    quarantine.vouch(fleet, engine)
    if event.pin is not None:
        coming.pin(fleet, engine, event.pin)
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
    engine.give_up_wanting()
    engine.pinned_by_hand = False
    if engine.state in (State.COLD, State.BACKOFF, State.IMPOSSIBLE):
        if engine.state is not State.COLD:
            engine.step(Step.RELEASE, fleet.now)
        fleet.order(orders.Answer(event.ticket, f"{engine.name} does not run"))
        return
    engine.stop_tickets.append(event.ticket)
    leaving.retire(fleet, engine, Reason.OPERATOR, "asked by an operator", drain=0 if event.at_once else None)


@on.register
def _(event: events.SleepAsked, fleet: Fleet) -> None:
    engine = fleet.engines[event.profile]
    if why := sleeping.cannot_sleep(engine):
        fleet.order(orders.Answer(event.ticket, why, DaemonRefused(why)))
        return
    engine.give_up_wanting()
    leaving.retire(fleet, engine, Reason.OPERATOR, "put to sleep by an operator", asleep=True)
    fleet.order(orders.Answer(event.ticket, f"{engine.name} goes to sleep"))


@on.register
def _(event: events.LoanEnded, fleet: Fleet) -> None:
    lending.end(fleet, event.name, event.reason)


@on.register
def _(event: events.TicketDropped, fleet: Fleet) -> None:
    if (loan := fleet.loans.get(event.ticket)) and loan.until is None:
        lending.end(fleet, event.ticket, "nobody waits for it any more")
    for engine in fleet.engines.values():
        for tickets in (engine.start_tickets, engine.stop_tickets):
            if event.ticket in tickets:
                tickets.remove(event.ticket)


@on.register
def _(event: events.WarmAsked, fleet: Fleet) -> None:
    calendar.warm(fleet, event.profile)


@on.register
def _(event: events.ShutdownAsked, fleet: Fleet) -> None:
    fleet.closing = True
    fleet.stuck.clear()
    for waiter in fleet.queues:
        fleet.queues.remove(waiter.lease)
        fleet.refuse(waiter.lease, NotAvailable("llmd is shutting down", retry_after=10))
    for engine in fleet.engines.values():
        engine.give_up_wanting()
        if not event.keep_engines:
            leaving.retire(fleet, engine, Reason.SHUTDOWN, "llmd is shutting down")
