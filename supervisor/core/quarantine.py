"""Devices that nothing may start on, each for reasons that have an owner: only its own proof takes a reason away."""

from __future__ import annotations

from collections.abc import Iterable

from supervisor.core import orders
from supervisor.core.engine import Engine
from supervisor.core.fleet import Fleet
from supervisor.core.ledger import name_of

ILLNESS = "what made the GPU sick"
"""The owner of a reason that no engine's end takes away: a reset does, or a person who starts something there."""


def impose(fleet: Fleet, devices: Iterable[str], owner: str, why: str) -> None:
    """`owner`: the profile whose memory is missing, or what else can tell when it is over."""
    places = tuple(devices)
    for device in places:
        fleet.ledger.quarantine(device, owner, why)
    fleet.stuck.clear()
    _note(fleet, "device_quarantined", owner, why, "ERROR", places)


def isolate(fleet: Fleet, devices: Iterable[str], why: str) -> None:
    """What an engine said as it died, unless the driver has told already which GPU it is."""
    suspects = set(devices)
    if suspects.isdisjoint(fleet.ledger.sick):
        impose(fleet, suspects, ILLNESS, why)


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


def look_after(fleet: Fleet) -> None:
    """A sick GPU that could not be read and now can was reset, or came back: its illness is over."""
    readings = fleet.ledger.survey.readings
    well = {reading.device for reading in readings if not reading.trouble}
    lift(fleet, fleet.unreadable & well, ILLNESS, "it was reset, or came back, and reads well")
    fleet.unreadable = (fleet.unreadable | {reading.device for reading in readings}) - well


def vouch(fleet: Fleet, engine: Engine) -> None:
    """A person who starts an engine says that its GPUs are well again."""
    lift(
        fleet,
        fleet.ledger.devices_of(engine.profile) or (),
        ILLNESS,
        f"an operator starts {engine.name} there",
    )


def _note(fleet: Fleet, event: str, owner: str, message: str, level: str, devices: tuple[str, ...]) -> None:
    profile = owner if owner in fleet.engines else None
    fleet.order(orders.Note(event, profile, message, level, {"devices": devices}))
