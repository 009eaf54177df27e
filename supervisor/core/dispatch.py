"""Those who wait get their lease, and engines that are wanted their start. What `placement` decides is done here."""

from __future__ import annotations

from supervisor.core import coming, leaving, orders, placement
from supervisor.core.engine import Engine
from supervisor.core.fleet import Fleet, taken
from supervisor.core.lifecycle import STARTABLE, State, Step
from supervisor.core.queueing import Waiter
from supervisor.errors import DaemonRefused, LlmdError, Overloaded


def dispatch(fleet: Fleet) -> None:
    if fleet.closing:
        return
    hopeless: set[tuple[str, ...]] = set()
    for waiter in fleet.queues:
        if waiter.profiles not in hopeless and not place(fleet, waiter):
            hopeless.add(waiter.profiles)
    for engine in fleet.engines.values():
        if engine.wanted and engine.state in STARTABLE and engine.deadline is None:
            pursue(fleet, engine)


def place(fleet: Fleet, waiter: Waiter) -> bool:
    """Try to give a waiter its lease, or its refusal. False while it goes on waiting."""
    choice = placement.choose(fleet, waiter)
    if isinstance(choice, LlmdError):
        fleet.queues.remove(waiter.lease)
        fleet.refuse(waiter.lease, choice)
        return True
    if choice is None:
        return False
    engine, reason = fleet.engines[choice.profile], choice.reason
    if engine.state is State.READY:
        fleet.queues.remove(waiter.lease)
        grant(fleet, waiter, engine, reason)
        return True
    make_way(fleet, engine, choice.victims)
    return False


def grant(fleet: Fleet, waiter: Waiter, engine: Engine, reason: str) -> None:
    incarnation = engine.incarnation or ""
    engine.leases.add(waiter.lease)
    engine.idle_since = engine.deadline = None
    engine.last_used = fleet.now
    fleet.leases[waiter.lease] = (engine.name, incarnation)
    fleet.order(orders.Grant(waiter.lease, engine.name, incarnation, reason))


def make_way(fleet: Fleet, engine: Engine, victims: tuple[str, ...]) -> None:
    """Start it, or first stop who stands in its way."""
    if engine.state not in STARTABLE:
        return
    for name in victims:
        fleet.note("evict", fleet.engines[name], f"{name} makes room for {engine.name}")
        leaving.retire(fleet, fleet.engines[name], f"{engine.name} needs its memory")
    if not victims:
        coming.start(fleet, engine)


def pursue(fleet: Fleet, engine: Engine) -> None:
    """Start an engine that an operator or the restart policy wants, or say why not."""
    way = placement.way_to_start(fleet, engine)
    if isinstance(way, placement.Way):
        make_way(fleet, engine, way.victims)
    elif not way.transient:
        engine.wanted = False
        if engine.state is State.BACKOFF:
            engine.step(Step.RELEASE, fleet.now)
        engine.last_reason = way.message
        for ticket in taken(engine.start_tickets):
            fleet.order(orders.Answer(ticket, way.message, DaemonRefused(way.message)))
        fleet.note("start_refused", engine, way.message, level="WARNING")


def overloaded(fleet: Fleet, waiter: Waiter, ahead: int) -> Overloaded:
    limits = ", ".join(
        f"{name} {len(fleet.engines[name].leases)}/{fleet.config.profiles[name].max_concurrent}"
        for name in waiter.profiles
    )
    return Overloaded(
        f"model {waiter.ask.model!r} is at its limit: in flight {limits}, {ahead} waiting", retry_after=5
    )
