"""The fleet as JSON: what `llmd status`, `/health`, the metrics and the dashboard show. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from supervisor.core import ailing, lending
from supervisor.core.devices import HOST, Reading
from supervisor.core.engine import Engine
from supervisor.core.fleet import Fleet
from supervisor.core.ledger import Claims
from supervisor.core.lifecycle import State


@dataclass(frozen=True, slots=True)
class Stray:
    """Something of an earlier daemon that could not be proven ours: reported, never touched."""

    incarnation: str
    profile: str | None
    pid: int | None
    reason: str


def describe(
    fleet: Fleet,
    pids: Mapping[str, int | None],
    strays: Sequence[Stray],
    log_path: Callable[[str], Path],
    now: float,
) -> dict[str, Any]:
    """Sizes are bytes, durations seconds, unknown is None."""
    engines, claims = fleet.engines.values(), fleet.claims()
    return {
        "devices": [_device(fleet, reading, claims, now) for reading in fleet.ledger.survey.readings],
        "gpu_trouble": fleet.ledger.survey.trouble,
        "engines": [_engine(fleet, e, pids.get(e.incarnation or ""), log_path(e.name), now) for e in engines],
        "waiting": len(fleet.queues),
        "loans": lending.describe(fleet),
        "peers": [peer.describe() for peer in fleet.peers.values()],
        "strays": [asdict(stray) for stray in strays],
    }


def _device(fleet: Fleet, reading: Reading, claims: Claims, now: float) -> dict[str, Any]:
    strangers = () if reading.device == HOST else fleet.ledger.strangers(reading)
    return {
        "device": reading.device,
        "index": reading.index,
        "name": reading.name,
        "total": reading.total,
        "cuda_total": reading.cuda_total,
        "used": reading.used,
        "free": reading.free,
        "ours": {claim.profile: claim.held for claim in claims.get(reading.device, ())},
        "foreign": [asdict(holder) for holder in strangers],
        "others": min(fleet.ledger.foreign_now(reading.device), reading.used),
        "trouble": reading.trouble,
        "quarantined": fleet.ledger.barred(reading.device),
        "xids": ailing.describe(fleet, reading.device),
        "age_s": round(now - reading.at, 1),
        "utilization": reading.utilization,
        "temperature": reading.temperature,
        "power": reading.power,
    }


def _engine(fleet: Fleet, engine: Engine, pid: int | None, log: Path, now: float) -> dict[str, Any]:
    resting = engine.settled if engine.state is State.SLEEPING else engine.state is State.READY
    idle = resting and not engine.leases and engine.deadline is not None
    return {
        "profile": engine.name,
        "model": engine.profile.model,
        "task": engine.profile.task,
        "state": engine.state.value,
        "stage": engine.progress.stage if engine.progress else None,
        "percent": round(engine.progress.percent, 1) if engine.progress else None,
        "pid": pid,
        "incarnation": engine.incarnation,
        "in_flight": len(engine.leases),
        "max_concurrent": engine.profile.max_concurrent,
        "slots": engine.slots,
        "rung": engine.learned.rung,
        "pinned": engine.pinned,
        "asleep": engine.asleep,
        "residue": {d: s for d, s in engine.residue.items() if d != HOST and engine.settled},
        "queued": fleet.queues.for_profile(engine.name),
        "ttl_left_s": round((engine.deadline or now) - now, 1) if idle else None,
        "since_s": round(now - engine.since, 1),
        "eta_s": engine.eta,
        "reserved": dict(engine.reserved),
        "measured": {d: s for d, s in engine.measured.items() if d in engine.reserved},
        "devices": list(engine.devices),
        "starts": engine.starts,
        "failure": str(engine.last_failure) if engine.last_failure else None,
        "failure_log": list(engine.last_failure.tail) if engine.last_failure else [],
        "reason": engine.last_reason,
        "reason_age_s": None if engine.reasoned_at is None else round(now - engine.reasoned_at, 1),
        "log": str(log),
        "available": engine.name in fleet.available,
        "max_model_len": engine.profile.max_model_len,
    }
