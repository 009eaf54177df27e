"""Where a request goes now, and whether an engine can start now: reads the fleet, changes nothing.

Candidates are tried in their order of preference, in rounds: a free slot or a start that fits without
hurting anyone; then a queue before a running engine; then a start that costs idle engines their place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from supervisor.core import eviction
from supervisor.core.engine import Engine
from supervisor.core.fleet import Fleet
from supervisor.core.lifecycle import COMING, LEAVING, STARTABLE, State
from supervisor.core.queueing import Waiter
from supervisor.errors import LlmdError, NotAvailable


@dataclass(frozen=True, slots=True)
class Way:
    """It can start, once these engines have gone (none: at once)."""

    victims: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Blocked:
    """It cannot start now. `transient`: a start or stop under way will tell. `ours`: busy engines of ours
    are all that stands in the way, so a request may wait for them."""

    message: str
    transient: bool = False
    ours: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    profile: str
    reason: str
    victims: tuple[str, ...] = ()


def way_to_start(fleet: Fleet, engine: Engine) -> Way | Blocked:
    """Whether and at whose cost a cold engine could start now."""
    if engine.state not in STARTABLE:
        return Blocked(f"{engine.name} is {engine.state}", transient=True)
    claims = fleet.claims(without=engine.name)

    def fits(victims: frozenset[str]) -> bool:
        return fleet.ledger.judge(engine.profile, claims, fleet.now, without=victims).admitted

    verdict = fleet.ledger.judge(engine.profile, claims, fleet.now)
    if verdict.admitted:
        return Way()
    if not verdict.passing:
        return Blocked(str(verdict))
    devices = {shortage.device for shortage in verdict.shortages}
    moving = [e for e in _on(fleet, engine, devices) if e.state in COMING | LEAVING]
    if moving:
        names = ", ".join(f"{e.name} ({e.state})" for e in moving)
        return Blocked(f"waits for {names}; {verdict}", transient=True)
    idle = [e for e in _on(fleet, engine, devices) if e.state is State.READY and not _is_needed(fleet, e)]
    chosen = eviction.choose([eviction.Victim(e.name, e.last_used) for e in idle], fits)
    if chosen is not None:
        return Way(chosen)
    busy = [e for e in _on(fleet, engine, devices) if e not in idle]
    ours = bool(busy) and fits(frozenset(e.name for e in (*idle, *busy)))
    said = "".join(f"; {e.name} is busy ({len(e.leases)} in flight)" for e in busy if e.leases)
    return Blocked(f"{verdict}{said}", ours=ours)


def _on(fleet: Fleet, engine: Engine, devices: set[str]) -> list[Engine]:
    """The other engines that hold memory on these devices."""
    others = (other for other in fleet.engines.values() if other is not engine)
    return [other for other in others if other.claims() and devices & set(other.devices)]


def _is_needed(fleet: Fleet, engine: Engine) -> bool:
    """In use, or the best hope of somebody who waits."""
    return bool(engine.leases) or any(waiter.profiles[:1] == (engine.name,) for waiter in fleet.queues)


def choose(fleet: Fleet, waiter: Waiter) -> Choice | LlmdError | None:
    """Where the waiter goes: a profile, a final refusal, or None while it must wait."""
    reasons = {candidate.profile: candidate.reason for candidate in waiter.candidates}
    ways: dict[str, Way | Blocked] = {}
    for engine in _engines(fleet, waiter):
        if engine.free_slots > 0:
            return Choice(engine.name, reasons[engine.name])
        if engine.is_coming and fleet.queues.for_profile(engine.name) <= engine.profile.max_concurrent:
            return None
        ways[engine.name] = _way(fleet, engine)
        if ways[engine.name] == Way():
            return Choice(engine.name, reasons[engine.name])
    if any(engine.state is State.READY or engine.is_coming for engine in _engines(fleet, waiter)):
        return None
    for name, way in ways.items():
        if isinstance(way, Way):
            return Choice(name, reasons[name], way.victims)
    blocks = [way for way in ways.values() if isinstance(way, Blocked)]
    if any(block.transient or block.ours for block in blocks):
        return None
    return NotAvailable("; ".join(dict.fromkeys(block.message for block in blocks)), retry_after=30)


def _way(fleet: Fleet, engine: Engine) -> Way | Blocked:
    if engine.state is State.IMPOSSIBLE:
        return Blocked(f"{engine.name} cannot start: {engine.last_reason}")
    if engine.state is State.BACKOFF and engine.deadline is not None:
        return Blocked(f"{engine.name} failed and waits to be restarted", transient=True)
    return way_to_start(fleet, engine)


def _engines(fleet: Fleet, waiter: Waiter) -> Iterator[Engine]:
    return (fleet.engines[name] for name in waiter.profiles)


def too_late(fleet: Fleet, waiter: Waiter) -> NotAvailable:
    """The refusal of a request whose patience ran out, with what it waited for."""
    told = []
    for engine in _engines(fleet, waiter):
        way = _way(fleet, engine)
        detail = way.message if isinstance(way, Blocked) else f"{engine.name} is {engine.state}"
        told.append(f"{detail} ({len(engine.leases)}/{engine.profile.max_concurrent} in flight)")
    waited = fleet.now - waiter.arrived
    return NotAvailable(
        f"model {waiter.ask.model!r} was not ready after {waited:.0f} s: {'; '.join(told)}", retry_after=30
    )
