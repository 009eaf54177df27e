"""Where a request goes now, and whether an engine can come up now: reads the fleet, changes nothing.

Candidates are tried in their order of preference, in rounds: a free slot or a start that fits without hurting
anyone; then a queue before a running engine; then a start that costs others their place. Who is idle gives it up
once it has had its minimum residency; who is busy, or waited for, only when those who wait for the newcomer have
waited longer, summed, than the swap takes, or one of them has lost patience; and never before its quantum is over.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from supervisor.core import eviction, learning, sleeping
from supervisor.core.devices import HOST
from supervisor.core.engine import Engine
from supervisor.core.fleet import Fleet
from supervisor.core.ledger import Claim, Claims, Verdict
from supervisor.core.lifecycle import COMING, LEAVING, STARTABLE, State
from supervisor.core.peer import Peer
from supervisor.core.queueing import Waiter
from supervisor.errors import LlmdError, NotAvailable


@dataclass(frozen=True, slots=True)
class Way:
    """It can come up, once these engines have made room (none: at once). `asleep`: they need not stop for it."""

    victims: tuple[str, ...] = ()
    asleep: bool = False


class Hope(Enum):
    """What may yet make room, and so who waits for it."""

    MOVING = auto()
    """A start or a stop is under way: everybody waits for what comes of it."""
    OURS = auto()
    """Engines of ours are all that stands in the way: requests and borrowers wait, a person hears so at once."""
    OTHERS = auto()
    """A neighbour, or devices that cannot be trusted now: nobody can tell how long, so only the calendar waits."""
    NONE = auto()
    """Not before a person changes something."""


@dataclass(frozen=True, slots=True)
class Blocked:
    """It cannot come up now. `until`: when that is to be looked at again."""

    message: str
    hope: Hope
    until: float | None = None
    log: tuple[str, ...] = ()
    """The last lines of an engine that failed."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Who is to come up for a request, and how."""

    profile: str
    way: Way = Way()


# Can it come up?


def way_up(fleet: Fleet, engine: Engine) -> Way | Blocked:
    """Whether, and at whose cost, an engine that is cold or asleep could serve."""
    if why := _shut(fleet, engine):
        return Blocked(f"{engine.name} is {engine.state}: {why}", Hope.OTHERS)
    if not can_come(engine):
        return Blocked(f"{engine.name} is {engine.state}", Hope.MOVING)
    if fleet.queues.for_profile(engine.name) and engine.name not in fleet.available:
        return Blocked(f"{engine.name} comes {fleet.mode.back}", Hope.MOVING)
    claims = _claims_beside(fleet, engine)
    verdict = fleet.ledger.judge(engine.profile, claims, fleet.now, own=engine.residue)
    if verdict.admitted:
        return Way()
    if not verdict.passing:
        return Blocked(str(verdict), Hope.NONE if verdict.final else Hope.OTHERS)
    short = {shortage.device for shortage in verdict.shortages}
    where = short if fleet.policy.knows_cards else None
    there = [other for other in fleet.engines.values() if other is not engine and other.holds(where)]
    moving = [e for e in there if is_moving(e)]
    if moving:
        names = ", ".join(f"{e.name} ({e.state})" for e in moving)
        return Blocked(f"waits for {names}; {verdict}", Hope.MOVING)
    return _at_the_cost_of(fleet, engine, [e for e in there if not e.pinned], claims, verdict)


def _shut(fleet: Fleet, engine: Engine) -> str | None:
    """Why it is not known when the memory that it left will be back."""
    if engine.state is not State.SETTLING:
        return None
    return next((why for device in engine.devices if (why := fleet.ledger.barred(device))), None)


def _claims_beside(fleet: Fleet, engine: Engine) -> Claims:
    """What the others hold where this one would be, and of host memory, which sleepers take."""
    devices = fleet.ledger.devices_of(engine.profile)
    return fleet.claims(without=engine.name, on={*(devices or ()), HOST})


def can_come(engine: Engine) -> bool:
    asleep = engine.state is State.SLEEPING and engine.settled and not engine.is_to_stop
    return asleep or engine.state in STARTABLE


def is_moving(engine: Engine) -> bool:
    """It comes or goes, or falls asleep: what it holds will be different soon."""
    falling = engine.asleep and not engine.settled
    return bool(falling) or engine.is_to_stop or engine.state in COMING | LEAVING


def _at_the_cost_of(
    fleet: Fleet, engine: Engine, others: Sequence[Engine], claims: Claims, verdict: Verdict
) -> Way | Blocked:
    pressure = fleet.queues.pressure(engine.name)
    free_from = {other.name: fleet.policy.free_from(fleet, other, engine, pressure) for other in others}
    open_now = [other for other in others if free_from[other.name] <= fleet.now]
    way = cheapest(fleet, engine, open_now, claims)
    if way is not None:
        return way
    ours = bool(others) and verdict_without(fleet, engine, others, claims).admitted
    later = [at for at in free_from.values() if fleet.now < at < float("inf")]
    said = "".join(f"; {e.name} is busy ({len(e.leases)} in flight)" for e in others if e.leases)
    if not ours:
        return Blocked(f"{verdict}{said}", Hope.OTHERS)
    return Blocked(f"{verdict}{said}", Hope.OURS, min(later, default=None))


def cheapest(
    fleet: Fleet, engine: Engine, others: Sequence[Engine], claims: Claims | None = None
) -> Way | None:
    """Who costs least: asleep if that frees enough, else stopped. `claims`: what all but `engine` hold, if known."""
    beside = _claims_beside(fleet, engine) if claims is None else claims
    for sleep in (True, False) if any(e.profile.sleep for e in others) else (False,):

        def fits(names: frozenset[str], sleep: bool = sleep) -> bool:
            chosen = [e for e in others if e.name in names]
            return verdict_without(fleet, engine, chosen, beside, sleep=sleep).admitted

        victims = [eviction.Victim(e.name, worth(fleet, e, engine, sleep), e.last_used) for e in others]
        if (chosen := fleet.policy.choose(victims, fits)) is not None:
            return Way(chosen, sleep)
    return None


def worth(fleet: Fleet, victim: Engine, engine: Engine, sleep: bool) -> float:
    """What it costs that `victim` makes room for `engine`, put to sleep or stopped."""
    level = sleeping.sleep_level(fleet, victim, fleet.claims(without=victim.name)) if sleep else 0
    kept = learning.usual_residue(fleet, victim) if level else {}
    needed = fleet.ledger.devices_of(engine.profile) or ()
    held = {device: claim.held for device, claim in victim.claims().items() if device in needed}
    freed = sum(max(0, size - kept.get(device, 0)) for device, size in held.items())
    return fleet.policy.worth(fleet, victim, freed, victim.seconds_from(level))


def verdict_without(
    fleet: Fleet,
    engine: Engine,
    victims: Sequence[Engine],
    claims: Claims | None = None,
    *,
    sleep: bool = False,
) -> Verdict:
    """Whether `engine` fits once `victims` have made room, asleep or stopped. `claims` as for `cheapest`."""
    names = {victim.name for victim in victims}
    beside = _claims_beside(fleet, engine) if claims is None else claims
    staying: dict[str, list[Claim]] = {
        device: [claim for claim in claimed if claim.profile not in names]
        for device, claimed in beside.items()
    }
    freed: dict[str, int] = {}
    for victim in victims:
        after = held_asleep(fleet, victim, staying) if sleep else {}
        for device, claim in victim.claims().items():
            kept = after.get(device)
            held = claim.reserved if claim.measured is None else claim.measured
            freed[device] = freed.get(device, 0) + max(0, held - (kept.held if kept else 0))
        for device, claim in after.items():
            staying.setdefault(device, []).append(claim)
    return fleet.ledger.judge(engine.profile, staying, fleet.now, freed=freed, own=engine.residue)


# Can it sleep?


def held_asleep(fleet: Fleet, engine: Engine, claims: Claims) -> dict[str, Claim]:
    """What an engine would hold asleep; nothing where it cannot sleep and would be stopped."""
    level = sleeping.sleep_level(fleet, engine, claims)
    if not level:
        return {}
    held = {d: Claim(engine.name, left, None) for d, left in learning.usual_residue(fleet, engine).items()}
    if level == 1:
        held[HOST] = Claim(engine.name, engine.host_need, 0)
    return held


# Where does a request go?


def choose(fleet: Fleet, waiter: Waiter) -> Choice | LlmdError | Blocked:
    """Who should come up for a waiter whom nobody can take now, a final refusal, or what it waits for."""
    ways: dict[str, Way | Blocked] = {}
    for engine in _engines(fleet, waiter):
        if engine.is_coming and fleet.queues.for_profile(engine.name) <= engine.slots:
            return Blocked(f"{engine.name} is {engine.state}", Hope.MOVING)
        ways[engine.name] = way_for(fleet, engine)
        if ways[engine.name] == Way():
            return Choice(engine.name)
    blocks = [way for way in ways.values() if isinstance(way, Blocked)]
    until = min((block.until for block in blocks if block.until is not None), default=None)
    serving: list[Engine | Peer] = [e for e in _engines(fleet, waiter) if e.is_coming or e.is_serving]
    serving += [peer for peer in _peers(fleet, waiter) if peer.trouble is None]
    if serving:
        return Blocked(f"waits for a slot of {', '.join(e.name for e in serving)}", Hope.OURS, until)
    for name, way in ways.items():
        if isinstance(way, Way):
            return Choice(name, way)
    down = [f"peer {peer.name} is down: {peer.trouble}" for peer in _peers(fleet, waiter)]
    said = "; ".join(dict.fromkeys([*(block.message for block in blocks), *down]))
    message = "\n".join((said, *(line for block in blocks for line in block.log)))
    if any(block.hope in (Hope.MOVING, Hope.OURS) for block in blocks):
        return Blocked(message, Hope.OURS, until)
    final = all(block.hope is Hope.NONE for block in blocks)
    message = f"model {waiter.ask.model!r} cannot be ready: {message}"
    return NotAvailable(message, retry_after=None if final else fleet.forecast(waiter.profiles))


def way_for(fleet: Fleet, engine: Engine) -> Way | Blocked:
    """As `way_up`, with the words for those that failed or are squeezed."""
    last = engine.last_failure
    kind, log = (f" ({last.kind})", last.tail) if last else ("", ())
    if engine.state is State.IMPOSSIBLE:
        return Blocked(f"{engine.name} cannot start{kind}: {engine.last_reason}", Hope.NONE, log=log)
    if engine.state is State.BACKOFF and engine.deadline is not None:
        return Blocked(f"{engine.name} failed{kind} and waits to be restarted", Hope.MOVING, log=log)
    if engine.state is State.READY and engine.squeezed:
        return Blocked(f"{engine.name} is ready, but {engine.squeezed}", Hope.OURS)
    return way_up(fleet, engine)


def _engines(fleet: Fleet, waiter: Waiter) -> Iterator[Engine]:
    return (fleet.engines[name] for name in waiter.profiles if name in fleet.engines)


def _peers(fleet: Fleet, waiter: Waiter) -> Iterator[Peer]:
    return (fleet.peers[name] for name in waiter.profiles if name in fleet.peers)


def too_late(fleet: Fleet, waiter: Waiter) -> NotAvailable:
    """The refusal of a request whose patience ran out, with what it waited for."""
    told: list[str] = []
    log: list[str] = []
    for engine in _engines(fleet, waiter):
        way = way_for(fleet, engine)
        detail = way.message if isinstance(way, Blocked) else f"{engine.name} is {engine.state}"
        told.append(f"{detail} ({len(engine.leases)}/{engine.slots} in flight)")
        log += way.log if isinstance(way, Blocked) else ()
    told += [f"peer {p.name} ({len(p.leases)}/{p.slots} in flight)" for p in _peers(fleet, waiter)]
    waited = fleet.now - waiter.arrived
    said = f"model {waiter.ask.model!r} was not ready after {waited:.0f} s: {'; '.join(told)}"
    return NotAvailable(
        "\n".join((said, *log)),
        retry_after=fleet.forecast(waiter.profiles),
    )
