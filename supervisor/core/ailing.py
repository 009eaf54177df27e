"""GPUs whose driver reported an error: each told once, some put out of use until they were reset.

A GPU out of use comes back when it has been lost to the readings, as a reset makes it, and reads well again; or with
the next daemon, which a reset needs too, since it asks that no program has the GPU open.
"""

from __future__ import annotations

from typing import Any

from supervisor.core import ending, leaving, orders
from supervisor.core.engine import Engine
from supervisor.core.events import XidReported
from supervisor.core.failures import Failure, FailureClass
from supervisor.core.fleet import Fleet, Sighting
from supervisor.core.ledger import Sickness, name_of
from supervisor.core.lifecycle import LIVE, Reason, State
from supervisor.core.xid import Policy, judge

QUIET = 3600.0
"""Seconds without it after which the same error of the same GPU is told again."""

LEVELS = {Policy.QUARANTINE: "ERROR", Policy.APPLICATION: "WARNING", Policy.NOTE: "WARNING"}


def reported(event: XidReported, fleet: Fleet) -> None:
    known = judge(event.xid)
    reading = fleet.ledger.reading(event.device)
    where = name_of(reading) if reading else event.device
    why = f"{where} reported XID {event.xid}: {known.meaning}"
    if _is_news(fleet, event):
        there = [engine.name for engine in fleet.engines.values() if _stands_on(fleet, engine, event.device)]
        facts = {"device": event.device, "xid": event.xid, "policy": known.policy.value, "engines": there}
        fleet.order(orders.Note("gpu_xid", None, why, LEVELS[known.policy], facts))
    if known.policy is Policy.QUARANTINE:
        _put_out_of_use(fleet, event.device, why)


def _is_news(fleet: Fleet, event: XidReported) -> bool:
    seen = fleet.xids.setdefault((event.device, event.xid), Sighting())
    news = not seen.count or fleet.now - seen.at >= QUIET
    seen.count, seen.at = seen.count + 1, fleet.now
    return news


def _put_out_of_use(fleet: Fleet, device: str, why: str) -> None:
    if device not in fleet.ledger.sick:
        fleet.ledger.sick[device] = Sickness(why)
        fleet.order(orders.Note("device_quarantined", None, why, "ERROR", {"devices": (device,)}))
    fleet.stuck.clear()
    for engine in fleet.engines.values():
        if not _stands_on(fleet, engine, device):
            continue
        if engine.state is State.RESERVED:
            leaving.retire(fleet, engine, Reason.SICK, why)
        elif engine.state in LIVE - {State.STOPPING}:
            ending.fail(fleet, engine, Failure(FailureClass.GPU_SICK, why))


def _stands_on(fleet: Fleet, engine: Engine, device: str) -> bool:
    """An engine on a GPU without memory of its own is budgeted on the host's."""
    cards = (fleet.ledger.gpu(ref) for ref in engine.profile.gpus)
    return engine.holds() and (device in engine.devices or device in {c.device for c in cards if c})


def look(fleet: Fleet) -> None:
    """After a reading: who was lost and reads well again has been reset."""
    for reading in fleet.ledger.survey.readings:
        sick = fleet.ledger.sick.get(reading.device)
        if sick is None:
            continue
        if reading.trouble:
            sick.was_lost = True
        elif sick.was_lost:
            del fleet.ledger.sick[reading.device]
            message = f"{name_of(reading)} was reset and reads well again"
            fleet.order(orders.Note("device_released", None, message, facts={"devices": (reading.device,)}))


def describe(fleet: Fleet, device: str) -> list[dict[str, Any]]:
    """What was reported of it, as JSON; durations are seconds."""
    return [
        {
            "xid": number,
            "meaning": judge(number).meaning,
            "policy": judge(number).policy.value,
            "count": seen.count,
            "ago_s": round(fleet.now - seen.at, 1),
        }
        for (where, number), seen in sorted(fleet.xids.items())
        if where == device
    ]
