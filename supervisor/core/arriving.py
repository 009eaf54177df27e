"""A request arrives: where it may go, whether it can be served in its time, and whether there is room to wait."""

from __future__ import annotations

from collections import Counter

from supervisor.core import calendar, dispatch, kinds, learning, orders, outlook
from supervisor.core.events import Arrived
from supervisor.core.fleet import Fleet
from supervisor.core.queueing import Waiter
from supervisor.core.routing import Ask, Route
from supervisor.errors import LlmdError, ModelNotFound, NotAvailable, Overloaded


def arrive(event: Arrived, fleet: Fleet) -> None:
    """It has its lease, waits, or is refused."""
    if fleet.closing:
        fleet.refuse(event.lease, NotAvailable("llmd is shutting down", retry_after=10))
        return
    try:
        ask = learning.estimate(fleet, event.ask)
        kind = kinds.find(fleet, ask, event.patience)
    except LlmdError as error:
        if not event.at_once and not isinstance(error, ModelNotFound):  # else anyone could have anything kept
            tell(fleet, event.lease, event.ask, Route())
        fleet.refuse(event.lease, error)
        return
    if kind.route.candidates:
        admit(fleet, event, kind.waiter(event.lease, ask, fleet.now, fleet.now + event.patience))
    elif event.at_once:  # it comes again, and is told then
        fleet.refuse(event.lease, calendar.closed(fleet, ask.model))
    else:
        tell(fleet, event.lease, ask, kind.route)
        fleet.refuse(event.lease, calendar.closed(fleet, ask.model), ask)


def tell(fleet: Fleet, lease: str, ask: Ask, found: Route) -> None:
    """Those who may ask why."""
    if ask.request:
        fleet.order(orders.Routed(lease, ask, found))


def admit(fleet: Fleet, event: Arrived, waiter: Waiter) -> None:
    """It has its lease at once where something is free and nobody waits for that; else it waits, if it may."""
    source = waiter.ask.source
    ahead = fleet.queues.ahead_of(frozenset(waiter.profiles)) if fleet.queues.groups else 0
    if not fleet.is_active(source):
        fleet.fairness.arrive(source, fleet.active_sources())
    if not ahead and dispatch.give(fleet, waiter, here=event.at_once):
        return
    if event.at_once:
        fleet.order(orders.Refuse(event.lease, Overloaded("nothing is free at once", retry_after=1)))
    else:
        wait(fleet, waiter, ahead)


def wait(fleet: Fleet, waiter: Waiter, ahead: int) -> None:
    """Who cannot wait so long is told at once, and finds the model loading when it comes again."""
    tell(fleet, waiter.lease, waiter.ask, waiter.route)
    waiter.told = True
    if late := outlook.out_of_reach(fleet, waiter):
        engine, refusal = late
        dispatch.bring_up_for_later(fleet, engine)
        fleet.refuse(waiter.lease, refusal, waiter.ask)
    else:
        line_up(fleet, waiter, ahead)


def line_up(fleet: Fleet, waiter: Waiter, ahead: int) -> None:
    """Beyond the bound of its queue only who is served at once, or has less than its share of it: then somebody leaves
    who has more. `ahead`: who waits there already."""
    bound = sum(fleet.place(name).room for name in waiter.profiles)
    fleet.queues.add(waiter)
    fleet.unsettle(waiter.profiles)
    if ahead >= bound:
        dispatch.place(fleet, waiter)
        if waiter.lease in fleet.queues:
            last = surplus(fleet, waiter) if ahead == bound else waiter
            fleet.queues.remove(last.lease)
            fleet.refuse(last.lease, dispatch.overloaded(fleet, last, ahead), last.ask)


def surplus(fleet: Fleet, waiter: Waiter) -> Waiter:
    """Who leaves a full queue that `waiter` has joined: the newest of the person who has most waiting, of the key that
    has; of batch before others. `waiter`, where nobody has more."""
    own = waiter.ask
    beside = fleet.queues.beside(frozenset(waiter.profiles))
    keys = Counter(one.ask.source for one in beside)
    key = max(keys, key=lambda key: (fleet.is_batch(key), keys[key], key == own.source))
    people = Counter(one.ask.person for one in beside if one.ask.source == key)
    person = max(people, key=lambda person: (people[person], person == own.person))
    theirs = [one for one in beside if (one.ask.source, one.ask.person) == (key, person)]
    return max(reversed(theirs), key=lambda one: (one.arrived, one is waiter))
