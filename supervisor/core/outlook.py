"""What a request that waits may expect: how far its model has come, how long it still takes. Reads, changes nothing."""

from __future__ import annotations

import math

from supervisor.core.engine import Engine
from supervisor.core.fleet import Fleet
from supervisor.core.lifecycle import State
from supervisor.core.queueing import Waiter
from supervisor.core.why import profiles_called
from supervisor.errors import NotAvailable

STARTS = frozenset({State.COLD, State.SLEEPING, State.RESERVED, State.STARTING, State.WAKING})
"""Where a measured start tells when it can serve."""


def seconds_left(fleet: Fleet, engine: Engine) -> float | None:
    """Until it can serve if it begins to come up now, from what was measured; None where nothing was."""
    if engine.state is State.READY:
        return 0.0
    if engine.measured_from(engine.asleep) is None or engine.state not in STARTS:
        return None
    return max(1.0, engine.seconds_left(fleet.now))


def out_of_reach(fleet: Fleet, waiter: Waiter) -> tuple[Engine, NotAvailable] | None:
    """Who would serve first, and the refusal, where that is measured to be later than the waiter can wait."""
    patience = waiter.deadline - waiter.arrived
    if any(name not in fleet.engines for name in waiter.profiles):
        return None  # a peer might serve, and what that takes is not known
    engines = [fleet.engines[name] for name in waiter.profiles]
    left = {engine.name: seconds_left(fleet, engine) for engine in engines}
    known = {name: seconds for name, seconds in left.items() if seconds is not None}
    if len(known) < len(left) or min(known.values()) <= patience:
        return None
    first = fleet.engines[min(known, key=lambda name: known[name])]
    needed = known[first.name]
    message = (
        f"model {waiter.ask.model!r} is {first.state}: {first.name} needs about {math.ceil(needed)} s more, "
        f"longer than the {patience:.0f} s that this request can wait; it is brought up meanwhile"
    )
    return first, NotAvailable(message, retry_after=needed)


def progress(fleet: Fleet, name: str) -> str:
    """For people who wait for a model or a profile: one line. Raises ModelNotFound."""
    engines = [fleet.engines[profile] for profile in profiles_called(name, fleet.config)]
    nearest = min(engines, key=lambda engine: (not engine.is_coming, engine.state is not State.READY))
    if nearest.is_coming:
        return _coming(fleet, nearest)
    if nearest.state is State.READY:
        waiting = fleet.queues.for_profile(nearest.name)
        return f"{nearest.name} is busy: {len(nearest.leases)} of {nearest.slots} places taken, {waiting} waiting"
    return f"{nearest.name} is {nearest.state} and waits for its place"


def _coming(fleet: Fleet, engine: Engine) -> str:
    verb = "Waking" if engine.state is State.WAKING else "Loading"
    percent = engine.progress.percent if engine.progress else 0.0
    stage = f", {engine.progress.stage}" if engine.progress else ""
    left = seconds_left(fleet, engine)
    about = "" if left is None else f", about {math.ceil(left)} s"
    return f"{verb} {engine.name}: {percent:.0f} %{stage}{about}"
