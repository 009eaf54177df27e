"""The two questions that a policy answers: when may an engine be made to give up its place, and what is it worth.

This one keeps a swap from costing more than the waiting that it ends. Others, to compare it with, answer the same
two questions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
    knows_cards: bool
    """Whether only who holds memory where it is short can be a victim."""

    def choose(
        self, victims: Sequence[eviction.Victim], fits: Callable[[frozenset[str]], bool]
    ) -> tuple[str, ...] | None:
        """Who goes so that `fits` holds; None when all of them would not do."""
        ...

    def free_from(self, fleet: Fleet, other: Engine, engine: Engine, pressure: Pressure | None) -> float:
        """When `other` may be made to give up its place for `engine`, monotonic seconds.

        `pressure` is that of those who wait for `engine`; None where only an operator or a restart wants it.
        """
        ...

    def worth(self, fleet: Fleet, engine: Engine, freed: int, way_back: float) -> float:
        """What its eviction would cost; of all sets that free enough the one with the least sum goes.

        `freed`: bytes where they are needed. `way_back`: seconds until it could serve again.
        """
        ...


class Thrifty:
    """Who is idle gives up its place at once, unless it is to be kept for a minimum residency.

    Who is busy or waited for goes on for a quantum, and until those who wait for the newcomer have waited longer,
    summed, than the swap out and in takes from everyone whom it makes wait; or one of them has lost patience.
    """

    knows_cards = True

    def choose(
        self, victims: Sequence[eviction.Victim], fits: Callable[[frozenset[str]], bool]
    ) -> tuple[str, ...] | None:
        return eviction.choose(victims, fits)

    def free_from(self, fleet: Fleet, other: Engine, engine: Engine, pressure: Pressure | None) -> float:
        if other.state is State.SLEEPING:
            return fleet.now
        needed = is_needed(fleet, other)
        if pressure is None:  # who is idle makes room for an operator at once, who is busy does not
            return NEVER if needed else fleet.now
        policy = fleet.config.scheduling
        if not needed:
            return min(other.ready_since + policy.min_residency, pressure.patience_ends)
        due = pressure.patience_ends
        if not fleet.swapped_too_often(other.devices):
            made_to_wait = 1 + fleet.queues.hopes_for(other.name)
            swap = engine.seconds_left(fleet.now) + other.way_back
            due = min(due, pressure.worth(made_to_wait * swap))
        return max(pressure.oldest, other.ready_since, due - policy.quantum) + policy.quantum

    def worth(self, fleet: Fleet, engine: Engine, freed: int, way_back: float) -> float:
        return eviction.worth(engine.ageing, engine.rate.seen(fleet.now), way_back, freed / GIB)


def is_needed(fleet: Fleet, engine: Engine) -> bool:
    """In use, or the best hope of somebody who waits."""
    return bool(engine.leases) or fleet.queues.hopes_for(engine.name) > 0
