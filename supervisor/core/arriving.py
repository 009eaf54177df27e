"""A request arrives: where it may go, whether it can be served in its time, and whether there is room to wait."""

from __future__ import annotations

from supervisor.core import calendar, dispatch, learning, orders, outlook
from supervisor.core.events import Arrived
from supervisor.core.fleet import Fleet
from supervisor.core.queueing import Waiter
from supervisor.core.routing import Ask, Route
from supervisor.errors import LlmdError, NotAvailable

BATCH_WEIGHT = 0.2
"""What a second of a batch request's waiting counts for, against an interactive one's."""


def arrive(fleet: Fleet, event: Arrived) -> None:
    """It is refused, or waits; whether it gets its lease at once is dispatch's."""
    if fleet.closing:
        fleet.refuse(event.lease, NotAvailable("llmd is shutting down", retry_after=10))
        return
    try:
        ask = learning.estimate(fleet, event.ask)
        found = dispatch.route(fleet, ask, event.patience)
    except LlmdError as error:
        fleet.refuse(event.lease, error)
        return
    if ask.request:
        fleet.order(orders.Routed(event.lease, ask, found))
    if found.candidates:
        admit(fleet, waiter(fleet, event, ask, found))
    else:
        fleet.refuse(event.lease, calendar.closed(fleet, ask.model), ask)


def waiter(fleet: Fleet, event: Arrived, ask: Ask, found: Route) -> Waiter:
    batch, policy = fleet.is_batch(ask.source), fleet.config.scheduling
    return Waiter(
        event.lease,
        ask,
        found.candidates,
        arrived=fleet.now,
        deadline=fleet.now + event.patience,
        patience=policy.patience_batch if batch else policy.patience_interactive,
        weight=BATCH_WEIGHT if batch else 1.0,
        sticky=found.sticky,
    )


def admit(fleet: Fleet, waiter: Waiter) -> None:
    """Who cannot wait so long is told at once, and finds the model loading when it comes again."""
    if late := outlook.out_of_reach(fleet, waiter):
        engine, refusal = late
        dispatch.bring_up_for_later(fleet, engine)
        fleet.refuse(waiter.lease, refusal, waiter.ask)
    else:
        line_up(fleet, waiter)


def line_up(fleet: Fleet, waiter: Waiter) -> None:
    """Beyond the bound of its queue only who is served at once."""
    bound = sum(fleet.place(name).room for name in waiter.profiles)
    ahead = fleet.queues.ahead_of(frozenset(waiter.profiles))
    fleet.fairness.arrive(waiter.ask.source, fleet.active_sources())
    fleet.queues.add(waiter)
    fleet.unsettle(waiter.profiles)
    if ahead >= bound:
        dispatch.place(fleet, waiter)
        if fleet.queues.remove(waiter.lease):
            fleet.refuse(waiter.lease, dispatch.overloaded(fleet, waiter, ahead), waiter.ask)
