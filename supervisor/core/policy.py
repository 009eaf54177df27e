"""The two questions that a policy answers: when may an engine be made to give up its place, and what is it worth.

This one keeps a swap from costing more than the waiting that it ends. Others, to compare it with, answer the same
two questions.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

from supervisor.core import eviction
from supervisor.core.devices import GIB
from supervisor.core.engine import Engine
from supervisor.core.lifecycle import State
from supervisor.core.queueing import Pressure

if TYPE_CHECKING:
    from supervisor.core.fleet import Fleet

NEVER = math.inf


class Policy(Protocol):
    sleeps: bool
    """Whether it puts engines to sleep instead of stopping them."""

    def free_from(self, fleet: Fleet, other: Engine, engine: Engine, pressure: Pressure | None) -> float:
        """When `other` may be made to give up its place for `engine`, monotonic seconds.

        `pressure` is that of those who wait for `engine`; None where only an operator or a restart wants it.
        """
        ...

    def worth(self, fleet: Fleet, engine: Engine) -> float:
        """What its eviction would cost; of all sets that free enough the one with the least sum goes."""
        ...


class Thrifty:
    """Who is idle gives up its place once it has had its minimum residency, or a waiter has lost patience.
    Who is busy or waited for goes on for a quantum, and until those who wait for the newcomer have waited longer,
    summed, than the swap out and in takes, or one of them has lost patience."""

    sleeps = True

    def free_from(self, fleet: Fleet, other: Engine, engine: Engine, pressure: Pressure | None) -> float:
        if other.state is State.SLEEPING:
            return fleet.now
        needed = is_needed(fleet, other)
        if pressure is None:  # who is idle makes room for an operator at once, who is busy does not
            return NEVER if needed else fleet.now
        policy = fleet.config.scheduling
        if not needed:
            residency = other.ready_since + max(policy.min_residency, 2 * other.way_back)
            return min(residency, pressure.patience_ends)
        due = pressure.patience_ends
        if not fleet.swapped_too_often(other.devices):
            due = min(due, pressure.worth(engine.way_back + other.way_back))
        return max(pressure.oldest + policy.quantum, due)

    def worth(self, fleet: Fleet, engine: Engine) -> float:
        freed = sum(claim.held for claim in engine.claims().values())
        return eviction.worth(engine.ageing, engine.rate.seen(fleet.now), engine.way_back, freed / GIB)


def is_needed(fleet: Fleet, engine: Engine) -> bool:
    """In use, or the best hope of somebody who waits."""
    return bool(engine.leases) or fleet.queues.hopes_for(engine.name) > 0
