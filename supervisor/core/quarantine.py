"""Devices that nothing may start on, each for reasons that have an owner: only its own proof takes a reason away."""

from __future__ import annotations

from collections.abc import Iterable

from supervisor.core import orders
from supervisor.core.fleet import Fleet
from supervisor.core.ledger import name_of


def impose(fleet: Fleet, devices: Iterable[str], owner: str, why: str) -> None:
    """`owner`: the profile whose memory is missing, or what else can tell when it is over."""
    places = tuple(devices)
    for device in places:
        fleet.ledger.quarantine(device, owner, why)
    fleet.stuck.clear()
    _note(fleet, "device_quarantined", owner, why, "ERROR", places)


def lift(fleet: Fleet, devices: Iterable[str], owner: str, proof: str) -> None:
    """Where `owner` had a reason it has none any more; others may."""
    for device in devices:
        if fleet.ledger.release(device, owner) is None:
            continue
        still = fleet.ledger.quarantined.get(device)
        fate = f"stays quarantined: {still}" if still else "is no longer quarantined"
        fleet.stuck.clear()
        where = name_of(fleet.reading(device))
        _note(fleet, "quarantine_lifted", owner, f"{where} {fate}; {proof}", "WARNING", (device,))


def _note(fleet: Fleet, event: str, owner: str, message: str, level: str, devices: tuple[str, ...]) -> None:
    profile = owner if owner in fleet.engines else None
    fleet.order(orders.Note(event, profile, message, level, {"devices": devices}))
