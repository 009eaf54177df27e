"""The one door into the core: `handle(fleet, event, now) -> orders`. No clock, no OS, no asyncio.

Every event changes the engines it is about, and ends in a look at the deadlines and one dispatch: waiting
requests are placed, engines that are wanted are started. Where nobody waits for anything there is nothing to look
at: a request that comes and goes meanwhile costs no more than its own lease.
"""

from __future__ import annotations

import math

from supervisor.core import calendar, ending, leaving, lending, placement, reconfiguring, sleeping
from supervisor.core.dispatch import dispatch
from supervisor.core.engine import Engine
from supervisor.core.events import Arrived, Event, Left
from supervisor.core.facts import on
from supervisor.core.failures import Failure, FailureClass
from supervisor.core.fleet import Fleet
from supervisor.core.lifecycle import Reason, State, Step
from supervisor.core.orders import Order

_CHANGES = dict(on.registry)
"""What each event changes, by its type, in one look."""


def handle(fleet: Fleet, event: Event, now: float) -> list[Order]:
    """Take in one fact, decide, and return what to do, in order. `now`: monotonic seconds."""
    fleet.now, fleet.orders = now, []
    _CHANGES.get(type(event), on)(event, fleet)
    if not is_passing(fleet, event):
        settle(fleet)
    return fleet.orders


def is_passing(fleet: Fleet, event: Event) -> bool:
    """Whether no more happened than that a lease was given or ended, while nobody waits for anything."""
    if fleet.now >= fleet.calm_until or fleet.queues.groups:
        return False
    if isinstance(event, Arrived):
        return event.at_once or event.lease in fleet.leases
    return isinstance(event, Left)


def settle(fleet: Fleet) -> None:
    """What follows for those who wait, and for engines whose time has come."""
    fleet.kinds.clear()
    look_at_deadlines(fleet)
    reconfiguring.renew(fleet)
    leaving.give_up_abandoned(fleet)
    calendar.go_on(fleet)
    dispatch(fleet)
    lending.pursue(fleet)
    fleet.due = fleet.next_deadline()
    fleet.calm_until = -math.inf if is_restless(fleet) else math.inf if fleet.due is None else fleet.due


def is_restless(fleet: Fleet) -> bool:
    """Whether a request that comes or goes may change something for somebody else."""
    waited_for = any(engine.wanted or engine.state is State.DRAINING for engine in fleet.engines.values())
    asked = any(loan.until is None for loan in fleet.loans.values())
    return waited_for or asked or fleet.closing or fleet.transition is not None or len(fleet.queues) > 0


def look_at_deadlines(fleet: Fleet) -> None:
    for engine in fleet.engines.values():
        if engine.state is State.DRAINING or engine.is_to_stop:
            leaving.go_on_leaving(fleet, engine)
        elif engine.deadline is not None and engine.deadline <= fleet.now:
            deadline_of(fleet, engine)
    lending.expire(fleet)
    for waiter in fleet.queues.overdue(fleet.now):
        fleet.queues.remove(waiter.lease)
        fleet.refuse(waiter.lease, placement.too_late(fleet, waiter), waiter.ask)


def deadline_of(fleet: Fleet, engine: Engine) -> None:
    engine.deadline = None
    if engine.state is State.WAKING:
        sleeping.wake_failed(fleet, engine, f"not within {fleet.config.engine.wake_timeout:g} s")
    elif engine.state in (State.STARTING, State.ADOPTING):
        minutes = fleet.config.engine.start_timeout / 60
        stage = engine.progress.stage if engine.progress else "before its first stage"
        text = f"no progress for {minutes:g} min while loading ({stage})"
        ending.fail(fleet, engine, Failure(FailureClass.TRANSIENT, text))
    elif engine.state is State.READY and not engine.leases:
        leaving.retire(fleet, engine, Reason.IDLE, "idle", asleep=engine.profile.sleep_after is not None)
    elif engine.state is State.SLEEPING:
        if engine.settled:
            leaving.retire(fleet, engine, Reason.IDLE, "asleep and idle")
        else:
            sleeping.sleep_failed(fleet, engine, "its memory did not come back")
    elif engine.state is State.STOPPING:
        leaving.climb(fleet, engine)
    elif engine.state is State.SETTLING:
        ending.stay_away(fleet, engine)
    elif engine.state is State.BACKOFF and not engine.wanted:
        engine.step(Step.RELEASE, fleet.now)
