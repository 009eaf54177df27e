"""Those who wait get their lease, and engines that are wanted their start. What `placement` decides is done here."""

from __future__ import annotations

import heapq

from supervisor.core import coming, leaving, orders, peering, placement
from supervisor.core.engine import Engine, Granted
from supervisor.core.fleet import Fleet, taken
from supervisor.core.lifecycle import STARTABLE, Reason, State, Step
from supervisor.core.peer import Peer
from supervisor.core.placement import Blocked, Hope, Way
from supervisor.core.policy import is_needed
from supervisor.core.queueing import Waiter
from supervisor.errors import DaemonRefused, LlmdError, Overloaded


def dispatch(fleet: Fleet) -> None:
    """Give what can be given; only then see who could come up, and at whose cost."""
    fleet.reconsider = None
    if fleet.closing:
        return
    give_all(fleet)
    place_all(fleet)
    for engine in fleet.engines.values():
        if engine.wanted and engine.state in STARTABLE | {State.SLEEPING} and not restarting(engine):
            pursue(fleet, engine)


def give_all(fleet: Fleet) -> None:
    """Free slots go to the first in rank of those whom they could serve."""
    fleet.kept_for.clear()
    places: list[Engine | Peer] = [*fleet.engines.values(), *fleet.peers.values()]
    free = {place.name for place in places if place.has_room}
    if not free or not len(fleet.queues):
        return
    ranked = [(rank(fleet, head), head.lease, head) for head in fleet.queues.heads(free)]
    heapq.heapify(ranked)
    while ranked:
        seen, _, waiter = heapq.heappop(ranked)
        following: Waiter | None = waiter
        if seen == rank(fleet, waiter):  # a grant since may have made others come before its source
            following = fleet.queues.following(waiter) if give(fleet, waiter) else None
            if following is None:
                keep_space(fleet, waiter)
        if following:
            heapq.heappush(ranked, (rank(fleet, following), following.lease, following))


def keep_space(fleet: Fleet, waiter: Waiter) -> None:
    """Where only KV cache is short for it nobody behind it is let past: small requests would take every space that
    is freed, and a long prompt would never see enough of it at once."""
    if waiter.lease not in fleet.queues:
        return
    engines = (fleet.engines[name] for name in waiter.profiles if name in fleet.engines)
    if engine := next((e for e in engines if e.has_room and not e.admits(waiter.ask)), None):
        fleet.kept_for.setdefault(engine.name, waiter.lease)


def place_all(fleet: Fleet) -> None:
    """See what would bring those who wait nearer to a lease.

    All who could go to the same profiles get the same answer. Where it is that nothing can be done, it stands until
    something is different, so that most events cost no thought about placement.
    """
    fleet.unsettle(different(fleet))
    groups = fleet.queues.groups
    fleet.stuck = {
        profiles: until
        for profiles, until in fleet.stuck.items()
        if profiles in groups and (until is None or until > fleet.now)
    }
    firsts = [first(fleet, profiles) for profiles in groups if profiles not in fleet.stuck]
    for waiter in sorted(filter(None, firsts), key=lambda waiter: rank(fleet, waiter)):
        following: Waiter | None = waiter
        while following and place(fleet, following):
            following = first(fleet, waiter.profiles)


def different(fleet: Fleet) -> set[str]:
    """The profiles whose engine, or a neighbour of it, is not what it was when this was last asked.

    An answer of `placement` also rests on the mode, on loans and on the devices' readings, whose facts unsettle
    everyone, on the line itself and on the clock.
    """
    seen = {
        name: (e.state, e.since, e.settled, e.squeezed, e.deadline is None, not e.leases, is_needed(fleet, e))
        for name, e in fleet.engines.items()
    }
    changed = [name for name, aspect in seen.items() if fleet.scene.get(name) != aspect]
    fleet.scene = seen
    return {other for name in changed for other in fleet.beside[name]}


def first(fleet: Fleet, profiles: tuple[str, ...]) -> Waiter | None:
    """Of all who could go to just these profiles."""
    heads = fleet.queues.groups.get(profiles, {}).values()
    return min((line.head for line in heads), key=lambda head: rank(fleet, head), default=None)


def restarting(engine: Engine) -> bool:
    return engine.state is State.BACKOFF and engine.deadline is not None


def rank(fleet: Fleet, waiter: Waiter) -> tuple[bool, float, float]:
    """The lowest goes first: interactive or aged, then who was served least, then who came first."""
    since = fleet.queues.since(waiter)
    aged = fleet.now - since >= fleet.config.scheduling.ageing
    batch = fleet.is_batch(waiter.ask.source) and not aged
    return batch, fleet.fairness.counter(waiter.ask.source), since


def give(fleet: Fleet, waiter: Waiter, *, here: bool = False) -> bool:
    """Give a waiter its lease where a candidate can take it now. `here`: unless that is a peer."""
    lease = waiter.lease
    for candidate in waiter.route.candidates:
        name = candidate.profile
        if name not in waiter.profiles:
            continue
        place = fleet.peers.get(name) or fleet.engines[name]
        if place.admits(waiter.ask) and fleet.kept_for.get(name, lease) == lease:
            if here and isinstance(place, Peer):
                return False
            if fleet.queues.groups:
                fleet.queues.remove(lease)
            if isinstance(place, Peer):
                peering.grant(fleet, waiter, place, candidate.reason)
            else:
                grant(fleet, waiter, place, candidate.reason)
            return True
        if lingers(fleet, waiter):
            return False
    return False


def lingers(fleet: Fleet, waiter: Waiter) -> bool:
    """Whether it rather waits a little for its first choice than goes to another that is free.

    For the cache of its conversation, where nobody else waits; for an engine that will have loaded by then.
    """
    until = waiter.arrived + fleet.config.routing.linger
    if until <= fleet.now or len(waiter.profiles) < 2:
        return False
    first = fleet.place(waiter.profiles[0])
    if isinstance(first, Engine) and first.is_coming:
        worth = 0 <= first.seconds_left(fleet.now) <= until - fleet.now
    else:
        serves = first.trouble is None if isinstance(first, Peer) else first.is_serving
        worth = waiter.route.sticky and serves and fleet.queues.hopes_for(first.name) <= 1
    if worth and waiter.lease in fleet.queues:  # else it asks at once, and comes again
        fleet.look_again(until)
    return worth


def place(fleet: Fleet, waiter: Waiter) -> bool:
    """See what would bring a waiter nearer to its lease, or refuse it. False while it goes on waiting."""
    if give(fleet, waiter):
        return True
    if lingers(fleet, waiter):
        return False
    choice = placement.choose(fleet, waiter)
    if isinstance(choice, LlmdError):
        fleet.queues.remove(waiter.lease)
        fleet.refuse(waiter.lease, choice, waiter.ask)
        return True
    if isinstance(choice, Blocked):
        fleet.stuck[waiter.profiles] = choice.until
    else:
        make_way(fleet, fleet.engines[choice.profile], choice.way)
    return False


def grant(fleet: Fleet, waiter: Waiter, engine: Engine, reason: str) -> None:
    lease, ask, now = waiter.lease, waiter.ask, fleet.now
    name, incarnation = engine.profile.name, engine.incarnation or ""
    output, held = engine.needs(ask)
    engine.take(lease, held)
    engine.idle_since = engine.deadline = None
    engine.last_used, engine.ageing = now, fleet.ageing
    engine.rate.hit(now, waiter.weight)
    if ask.conversation is not None:
        fleet.homes.settle(ask.conversation, name, incarnation, now)
    fleet.leases[lease] = Granted(name, incarnation, ask.source, ask.tokens, output, now, ask.letters)
    fleet.fairness.charge(ask.source, ask.tokens, 0)
    fleet.orders.append(
        orders.Grant(lease, name, incarnation, reason, ask, None if waiter.told else waiter.route)
    )


def make_way(fleet: Fleet, engine: Engine, way: Way) -> None:
    """Bring it up, or first move who stands in its way."""
    if not placement.can_come(engine):
        return
    for name in way.victims:
        evict(fleet, fleet.engines[name], engine, asleep=way.asleep)
    if way.victims:
        coming.foresee(fleet, engine)
    else:
        coming.bring_up(fleet, engine)


def evict(fleet: Fleet, victim: Engine, engine: Engine, *, asleep: bool) -> None:
    worth = placement.worth(fleet, victim, engine, asleep)
    fleet.ageing = max(fleet.ageing, worth)
    if swap := is_needed(fleet, victim):
        count_swap(fleet, victim)
    why = f"{victim.name} makes room for {engine.name}{waited(fleet, engine)}"
    fleet.note(
        "evict",
        victim,
        why,
        by=engine.name,
        swap=swap,
        busy=len(victim.leases),
        idle_s=victim.idle_seconds(fleet.now),
        worth=round(worth, 6),
        waiting=fleet.queues.for_profile(engine.name),
    )
    needed = f"{engine.name} needs its place"
    leaving.retire(fleet, victim, Reason.ROOM, needed, asleep=asleep, patient=True)


def count_swap(fleet: Fleet, victim: Engine) -> None:
    """Engines in use that change places all the time serve nobody: at the limit it is held, and said."""
    fleet.count_swap(victim.devices)
    if fleet.swapped_too_often(victim.devices):
        limit = fleet.config.scheduling.swaps_per_hour
        message = f"{limit} swaps within the hour where {victim.name} is: only lost patience swaps there now"
        fleet.note("swap_limit", victim, message, level="WARNING")


def bring_up_for_later(fleet: Fleet, engine: Engine) -> None:
    """For one who cannot wait so long, and comes again: else a slow model would never be there for it."""
    engine.wanted = engine.wanted or engine.name in fleet.available


def waited(fleet: Fleet, engine: Engine) -> str:
    pressure = fleet.queues.pressure(engine.name)
    return f", waited for since {fleet.now - pressure.oldest:.0f} s" if pressure else ""


def pursue(fleet: Fleet, engine: Engine) -> None:
    """Bring up an engine that an operator, the calendar or the restart policy wants, or say why not."""
    way = placement.way_up(fleet, engine)
    if isinstance(way, placement.Way):
        make_way(fleet, engine, way)
    elif way.hope is Hope.NONE or (way.hope is not Hope.MOVING and engine.patient_until < fleet.now):
        engine.give_up_wanting()
        if engine.state is State.BACKOFF:
            engine.step(Step.RELEASE, fleet.now)
        engine.give_reason(way.message, fleet.now)
        for ticket in taken(engine.start_tickets):
            fleet.order(orders.Answer(ticket, way.message, DaemonRefused(way.message)))
        fleet.note("start_refused", engine, way.message, level="WARNING")


def overloaded(fleet: Fleet, waiter: Waiter, ahead: int) -> Overloaded:
    limits = ", ".join(
        f"{name} {len(fleet.place(name).leases)}/{fleet.place(name).slots}" for name in waiter.profiles
    )
    own = sum(one.ask.source == waiter.ask.source for one in fleet.queues.beside(frozenset(waiter.profiles)))
    return Overloaded(
        f"model {waiter.ask.model!r} is at its limit: in flight {limits}, {ahead} waiting, {own} of them with this key",
        retry_after=fleet.forecast(waiter.profiles),
    )
