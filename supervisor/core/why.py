"""Why a model is, or is not, loaded: what it needs, who holds that, who would give way and when. Reads, changes
nothing."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from supervisor.config import Config
from supervisor.core import ailing, calendar, placement
from supervisor.core.devices import HOST, Reading
from supervisor.core.engine import Engine
from supervisor.core.fleet import Fleet
from supervisor.core.ledger import Claim, name_of
from supervisor.core.lifecycle import COMING, LEAVING, State
from supervisor.core.placement import Blocked, Way
from supervisor.core.queueing import Pressure
from supervisor.errors import ModelNotFound

Json = dict[str, Any]

MOVING = COMING | LEAVING


@dataclass(frozen=True, slots=True)
class Chance:
    """When it could begin to come up, monotonic seconds, and who would make room for it then."""

    at: float
    way: Way = field(default_factory=Way)


def profiles_called(name: str, config: Config) -> tuple[str, ...]:
    """The profile of that name, or all that serve the model or the adapter of that name. Raises ModelNotFound."""
    if called := config.named.get(name):
        return tuple(profile.name for profile in called)
    models = (profile.model for profile in config.profiles.values())
    names = ", ".join(dict.fromkeys((*models, *config.profiles))) or "none"
    raise ModelNotFound(f"no model or profile is called {name!r}; there are: {names}")


def explain(fleet: Fleet, name: str) -> Json:
    """Sizes are bytes, durations seconds from now, unknown or never is None. Raises ModelNotFound."""
    peers = [peer.describe() for peer in fleet.peers.values() if name == peer.name or peer.offer(name)]
    engines = [] if peers and name not in fleet.config.named else _called(fleet, name)
    devices = dict.fromkeys(device for engine in engines for device in _touched(fleet, engine))
    readings = [reading for device in devices if (reading := fleet.ledger.reading(device))]
    return {
        "name": name,
        "mode": fleet.mode.name,
        "profiles": [_profile(fleet, engine) for engine in engines],
        "devices": [_device(fleet, reading) for reading in readings],
        "peers": peers,
    }


def _called(fleet: Fleet, name: str) -> list[Engine]:
    return [fleet.engines[profile] for profile in profiles_called(name, fleet.config)]


def devices_of(fleet: Fleet, engine: Engine) -> tuple[str, ...]:
    return engine.devices or fleet.ledger.devices_of(engine.profile) or ()


def _touched(fleet: Fleet, engine: Engine) -> tuple[str, ...]:
    """With host memory where it keeps its weights there, asleep."""
    kept = (device for device, claim in engine.claims().items() if claim.held)
    return tuple(dict.fromkeys((*devices_of(fleet, engine), *kept)))


def _profile(fleet: Fleet, engine: Engine) -> Json:
    chance = _chance(fleet, engine)
    return {
        "profile": engine.name,
        "model": engine.profile.model,
        "state": engine.state.value,
        "loaded": engine.state is State.READY,
        "why": _why(fleet, engine),
        "failure": _failure(engine),
        "in_flight": len(engine.leases),
        "slots": engine.slots,
        "queued": fleet.queues.for_profile(engine.name),
        "idle": engine.idle_seconds(fleet.now),
        "needs": [
            _need(fleet, engine, device)
            for device in _touched(fleet, engine)
            if not fleet.ledger.shares_host(device)
        ],
        "stands_in_the_way": _obstacle(fleet, engine),
        "makes_room": list(chance.way.victims) if chance else [],
        "by_sleeping": chance.way.asleep if chance else False,
        "serves_in": _serves_in(fleet, engine, chance),
        "refused_now": _is_refused(fleet, engine),
        "learned": _learned(engine),
    }


# Why it is as it is


def _why(fleet: Fleet, engine: Engine) -> str:
    if engine.name not in fleet.available and engine.state not in MOVING:
        back = f"; it comes back {fleet.mode.back}" if fleet.mode.next_mode and _comes(fleet, engine) else ""
        return f"mode {fleet.mode.name} does not have it{back}"
    if engine.state is State.READY:
        return f"it is ready, but {engine.squeezed}" if engine.squeezed else "it is ready"
    if engine.state in COMING:
        stage = f": {engine.progress.stage}, {engine.progress.percent:.0f} %" if engine.progress else ""
        return f"it is {engine.state}{stage}"
    return _why_not(fleet, engine)


def _why_not(fleet: Fleet, engine: Engine) -> str:
    if engine.state is State.BACKOFF and engine.deadline is not None:
        return f"it failed and is tried again in {engine.deadline - fleet.now:.0f} s"
    if engine.state is State.IMPOSSIBLE:
        return f"it cannot start: {engine.last_reason}"
    last = engine.left_because or ("it failed" if engine.last_failure else "nobody has asked for it yet")
    if engine.wanted or fleet.queues.for_profile(engine.name):
        who = f"mode {fleet.mode.name} wants it" if engine.patient_until > fleet.now else "it was asked for"
        last = f"{who}, and it waits for its place"
    if engine.state is State.SLEEPING:
        return f"it sleeps at level {engine.asleep}: {last}"
    return f"it is {engine.state}: {last}" if engine.state in LEAVING else f"it is not loaded: {last}"


def _is_refused(fleet: Fleet, engine: Engine) -> bool:
    """Whether a request that came now would be told to come back, as no mode has it while one may wait."""
    return engine.name not in fleet.available | calendar.soon(fleet, fleet.config.server.max_wait)


def _comes(fleet: Fleet, engine: Engine) -> bool:
    return fleet.mode.next_mode is not None and engine.name in fleet.config.profiles_in(fleet.mode.next_mode)


def _failure(engine: Engine) -> Json | None:
    last = engine.last_failure
    return {"kind": last.kind.value, "message": last.message, "log": list(last.tail)} if last else None


# What it needs, and who holds that


def _need(fleet: Fleet, engine: Engine, device: str) -> Json:
    reading, claims = fleet.ledger.reading(device), fleet.claims(without=engine.name)
    return {
        "device": device,
        "name": name_of(reading) if reading else device,
        "need": fleet.ledger.needs(engine.profile, devices_of(fleet, engine)).get(device),
        "available": fleet.ledger.room(device, claims, engine.measured.get(device, 0)),
        "holds": engine.claims()[device].held if device in engine.claims() else 0,
    }


def _device(fleet: Fleet, reading: Reading) -> Json:
    strangers = () if reading.device == HOST else fleet.ledger.strangers(reading)
    return {
        "device": reading.device,
        "name": name_of(reading),
        "total": reading.total,
        "cuda_total": reading.cuda_total,
        "free": reading.free,
        "ours": [_holder(fleet, claim) for claim in fleet.claims().get(reading.device, [])],
        "foreign": [asdict(holder) for holder in strangers],
        "foreign_total": fleet.ledger.foreign(reading.device),
        "trouble": reading.trouble or fleet.ledger.barred(reading.device),
        "xids": ailing.describe(fleet, reading.device),
    }


def _holder(fleet: Fleet, claim: Claim) -> Json:
    """An engine, or a loan, which has no state; where nobody knows who borrowed, its user is told as foreign too."""
    engine = fleet.engines.get(claim.profile)
    known = {"state": engine.state.value, "in_flight": len(engine.leases), "pinned": engine.pinned,
             "idle": engine.idle_seconds(fleet.now)} if engine else {"measured": claim.measured is not None}  # fmt: skip
    return {"profile": claim.profile, "held": claim.held, **known}


# When it could run


def _obstacle(fleet: Fleet, engine: Engine) -> str | None:
    """What keeps it from coming up this moment, in words."""
    if engine.state is State.READY or engine.state in MOVING:
        return None
    way = placement.way_for(fleet, engine)
    return way.message if isinstance(way, Blocked) else None


def _chance(fleet: Fleet, engine: Engine) -> Chance | None:
    """For a request that came now; None where it has come up, is on its way, or nothing foreseeable helps."""
    if engine.state is State.READY or engine.state in MOVING or engine.state is State.IMPOSSIBLE:
        return None
    begins = max(fleet.now + engine.put_off(fleet.now), _open_from(fleet, engine))
    if math.isinf(begins):
        return None
    if placement.verdict_without(fleet, engine, ()).admitted:
        return Chance(begins)
    times = _giving_way(fleet, engine)
    for at in sorted(set(times.values())):
        gone = [fleet.engines[name] for name, leaves in times.items() if leaves <= at]
        if not math.isinf(at) and placement.verdict_without(fleet, engine, gone).admitted:
            return Chance(max(begins, at), placement.cheapest(fleet, engine, gone) or Way())
    return None


def _open_from(fleet: Fleet, engine: Engine) -> float:
    """When a mode has it, monotonic seconds."""
    if engine.name in fleet.available:
        return fleet.now
    return fleet.mode.next_at if _comes(fleet, engine) and fleet.mode.next_at is not None else math.inf


def _giving_way(fleet: Fleet, engine: Engine) -> dict[str, float]:
    """Profile -> when it may be made to go for a request that came now, if nobody waits already."""
    patience = fleet.config.scheduling.patience_interactive
    imagined = Pressure(fleet.now, fleet.now + patience, 1.0, fleet.now)
    pressure = fleet.queues.pressure(engine.name) or imagined
    wanted = set(devices_of(fleet, engine))
    return {
        other.name: max(fleet.now, fleet.policy.free_from(fleet, other, engine, pressure))
        for other in fleet.engines.values()
        if other is not engine and not other.pinned and wanted & other.claims().keys()
    }


def _serves_in(fleet: Fleet, engine: Engine, chance: Chance | None) -> float | None:
    if engine.has_room:
        return 0.0
    if engine.state in MOVING or engine.is_serving:
        return round(fleet.forecast([engine.name]), 1)
    return None if chance is None else round(chance.at - fleet.now + engine.seconds_left(fleet.now), 1)


# What it has shown


def _learned(engine: Engine) -> Json:
    known = engine.expected
    per_letter, fixed = known.tokens.line()
    return {
        "version": known.version,
        "start": known.start,
        "wake": known.wake,
        "reload": known.reload,
        "weights": known.weights,
        "peak": dict(known.peak),
        "residue": dict(known.residue),
        "letters_per_token": round(1 / per_letter, 2) if known.tokens.seen and per_letter else None,
        "template_tokens": round(fixed) if known.tokens.seen else None,
        "requests_counted": known.tokens.seen,
    }
