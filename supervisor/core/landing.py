"""Whether an engine took its memory where it was promised it. NVML says where its processes are; nothing else does."""

from __future__ import annotations

from supervisor.core.devices import GIB, HOST, gib
from supervisor.core.engine import Engine
from supervisor.core.failures import Failure, FailureClass
from supervisor.core.fleet import Fleet
from supervisor.core.ledger import name_of
from supervisor.core.lifecycle import LIVE, State

MUCH = GIB
"""Bytes on a GPU of others that are no mere CUDA context, which takes some hundred MiB."""


def strayed(fleet: Fleet, engine: Engine) -> Failure | None:
    """It holds memory on a GPU that it was not sent to: its next start would, too, and the ledger be wrong again."""
    if engine.state not in LIVE or engine.state is State.STOPPING:
        return None
    elsewhere = {d: size for d, size in engine.measured.items() if d not in (*engine.devices, HOST)}
    taken = [f"{gib(size)} of {_name(fleet, device)}" for device, size in elsewhere.items() if size >= MUCH]
    if not taken:
        return None
    sent = ", ".join(_name(fleet, device) for device in engine.devices)
    return Failure(
        FailureClass.IMPOSSIBLE,
        f"{engine.name} took {', '.join(taken)}, but was sent to {sent}; what chooses its GPUs is CUDA_VISIBLE_DEVICES,"
        " which llmd sets: see whether `env` or `command` of [engine] overrides that",
    )


def _name(fleet: Fleet, device: str) -> str:
    reading = fleet.ledger.reading(device)
    return name_of(reading) if reading else device
