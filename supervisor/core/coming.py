"""Engines on their way up: reserve, look again, spawn; and ready, where the idle clock begins."""

from __future__ import annotations

from supervisor.core import learning, leaving, orders
from supervisor.core.engine import Before, Engine
from supervisor.core.fit import utilization
from supervisor.core.fleet import Fleet, taken
from supervisor.core.lifecycle import STARTABLE, State, Step

WAKE_SLACK = 5.0
"""Seconds after which the shell, which keeps the same limit, is taken to have nothing more to say."""

FORESEEN = 600.0
"""Seconds that what was read ahead is taken to stay in the page cache."""


def foresee(fleet: Fleet, engine: Engine) -> None:
    """It will start, but cannot yet: meanwhile its weights are read into the page cache, once for each wait."""
    recent = engine.foreseen_at is not None and fleet.now - engine.foreseen_at < FORESEEN
    if engine.state in STARTABLE and not recent:
        engine.foreseen_at = fleet.now
        fleet.order(orders.ReadAhead(engine.name))


def bring_up(fleet: Fleet, engine: Engine) -> None:
    """Start what is cold, wake what sleeps."""
    if engine.state is State.SLEEPING:
        wake(fleet, engine)
    else:
        start(fleet, engine)


def wake(fleet: Fleet, engine: Engine) -> None:
    """Admitted like a start: all of its memory is promised to it again, and a reading taken then must agree."""
    engine.step(Step.WAKE, fleet.now)
    engine.lain = engine.reserved
    engine.reserved = fleet.ledger.needs(engine.profile, engine.devices)
    engine.settled = engine.retired = False
    fleet.order(orders.Survey())


def wake_if_still_fits(fleet: Fleet, engine: Engine) -> None:
    if not engine.lain or was_read_before(fleet, engine):
        return
    claims = fleet.claims(without=engine.name)
    if not fleet.ledger.judge(engine.profile, claims, fleet.now, own=engine.residue).admitted:
        engine.step(Step.RELEASE, fleet.now)
        engine.reserved, engine.lain, engine.settled = engine.lain, {}, True
        engine.deadline = bedtime_asleep(fleet, engine)
        return
    engine.lain, engine.loading_since = {}, fleet.now
    engine.deadline = fleet.now + fleet.config.engine.wake_timeout + WAKE_SLACK
    fleet.order(orders.Wake(engine.incarnation or "", engine.asleep))
    fleet.note("engine_waking", engine, f"{engine.name} wakes from level {engine.asleep}")


def serve(fleet: Fleet, engine: Engine) -> None:
    """It answered: note how long it took, let the idle clock run, tell who asked."""
    took = None if engine.loading_since is None else fleet.now - engine.loading_since
    learning.came_up(fleet, engine, took)
    adopted = engine.state is State.ADOPTING
    engine.step(Step.SERVE, fleet.now)
    engine.last_used = engine.ready_since = fleet.now
    engine.progress = engine.last_failure = engine.loading_since = None
    engine.asleep, engine.slept_at, engine.proven = 0, None, True
    engine.give_up_wanting()
    if adopted:
        promise_all(fleet, engine)
    rest(fleet, engine)
    assert engine.incarnation is not None
    fleet.order(orders.Watch(engine.incarnation))
    fleet.note("engine_ready", engine, f"{engine.name} is ready", seconds=took)
    fleet.order(orders.Survey())
    for ticket in taken(engine.start_tickets):
        fleet.order(orders.Answer(ticket, f"{engine.name} is ready"))


def start(fleet: Fleet, engine: Engine) -> None:
    """Reserve; the spawn follows once a reading taken after the reservation agrees."""
    devices = fleet.ledger.devices_of(engine.profile)
    assert devices is not None
    engine.step(Step.RESERVE, fleet.now)
    engine.give_reason(None, fleet.now)  # a newer decision: what kept it from starting is over
    engine.incarnation, engine.devices = fleet.name_incarnation(), devices
    engine.reserved = fleet.ledger.needs(engine.profile, devices)
    fleet.order(orders.Survey())


def was_read_before(fleet: Fleet, engine: Engine) -> bool:
    """The last reading of one of its devices is older than the promise."""
    return any(fleet.reading(device).at < engine.since for device in engine.devices)


def spawn_if_still_fits(fleet: Fleet, engine: Engine) -> None:
    if was_read_before(fleet, engine):
        return
    verdict = fleet.ledger.judge(engine.profile, fleet.claims(without=engine.name), fleet.now)
    if verdict.admitted:
        spawn(fleet, engine)
    else:
        leaving.withdraw(fleet, engine, str(verdict))


def spawn(fleet: Fleet, engine: Engine) -> None:
    """Its process, on the devices that were promised to it; what is there now is held against its end."""
    for device in engine.devices:
        reading = fleet.reading(device)
        engine.before[device] = Before(fleet.rest_of(reading, engine), 0)
    cards = [card for ref in engine.profile.gpus if (card := fleet.ledger.gpu(ref))]
    engine.step(Step.SPAWN, fleet.now)
    engine.loading_since, engine.failure = fleet.now, None
    engine.starts += 1
    engine.deadline = fleet.now + fleet.config.engine.start_timeout
    indices = tuple(card.index for card in cards if card.index is not None)
    share = utilization(engine.profile, *map(fleet.reading, engine.devices))
    terms = indices, share, engine.slots, engine.pinned_by_hand
    fleet.order(orders.Spawn(engine.name, engine.incarnation or "", engine.devices, *terms))
    free = {device: fleet.reading(device).free for device in engine.devices}
    fleet.note(
        "engine_starting",
        engine,
        f"{engine.name} starts",
        reserved=dict(engine.reserved),
        free=free,
        waiting=fleet.queues.for_profile(engine.name),
        expected_s=round(engine.eta, 1),
    )


def rest(fleet: Fleet, engine: Engine) -> None:
    """Nothing in flight: the idle clock runs, or a drain is over."""
    engine.idle_since = fleet.now
    if engine.state is State.READY:
        engine.deadline = bedtime(fleet, engine)


def bedtime(fleet: Fleet, engine: Engine) -> float | None:
    """When an idle engine is put to sleep or stopped; None: never."""
    if engine.pinned:
        return None
    profile = engine.profile
    waits = [profile.idle_ttl, profile.sleep_after if engine.sleeps else None]
    since = fleet.now if engine.idle_since is None else engine.idle_since
    return min((since + wait for wait in waits if wait is not None), default=None)


def bedtime_asleep(fleet: Fleet, engine: Engine) -> float | None:
    """When a sleeping engine is stopped for good: its idle time counts from its last request."""
    ttl = engine.profile.idle_ttl
    return None if ttl is None or engine.pinned else (engine.idle_since or fleet.now) + ttl


def pin(fleet: Fleet, engine: Engine, pinned: bool) -> None:
    """By a person's word."""
    if pinned == engine.pinned_by_hand:
        return
    engine.pinned_by_hand = pinned
    if engine.incarnation and engine.state is not State.RESERVED:  # else its spawn tells
        fleet.order(orders.Pin(engine.incarnation, pinned))
    if engine.state is State.READY and not engine.leases:
        rest(fleet, engine)
    words = f"{engine.name} is pinned" if pinned else f"{engine.name} is no longer pinned"
    fleet.note("engine_pinned" if pinned else "engine_unpinned", engine, words)


# What an earlier daemon left


def promise_to_found(fleet: Fleet, engine: Engine) -> None:
    """Where it sleeps others may have been let in beside it: no more is promised to it than it keeps asleep. One that
    was being woken had its place already, and may take it any moment."""
    if engine.settled:
        engine.reserved = dict.fromkeys(engine.devices, 0) | learning.usual_residue(fleet, engine)
    else:
        promise_all(fleet, engine)


def promise_all(fleet: Fleet, engine: Engine) -> None:
    """What it needs on every device; where none was read yet, once it is. Until then nothing starts there anyway."""
    engine.reserved = dict.fromkeys(engine.devices, 0)
    promise_what_was_unread(fleet, engine)


def promise_what_was_unread(fleet: Fleet, engine: Engine) -> None:
    unread = {device for device in engine.devices if engine.reserved.get(device) == 0}
    if not unread or engine.settled:
        return
    for device, size in fleet.ledger.needs(engine.profile, engine.devices).items():
        if device in unread and not fleet.reading(device).trouble:
            engine.reserved[device] = size
