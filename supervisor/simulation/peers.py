"""The policies that people use today, as far as they can be told in the core's two questions.

Each is the idea of a product, not its code: it gets llmd's ledger, queues and settling, which most of them lack, so
what differs is only who gives up its place, and when.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from supervisor.core.engine import Engine
from supervisor.core.eviction import Victim
from supervisor.core.fleet import Fleet
from supervisor.core.policy import NEVER, Policy, Thrifty
from supervisor.core.queueing import Pressure

Fits = Callable[[frozenset[str]], bool]


class Lru:
    """Who was used longest ago goes, once it is idle; who is busy is waited for, however long."""

    knows_cards = True

    def free_from(self, fleet: Fleet, other: Engine, engine: Engine, pressure: Pressure | None) -> float:
        return NEVER if other.leases else fleet.now

    def worth(self, fleet: Fleet, engine: Engine, freed: int, way_back: float) -> float:
        return engine.last_used

    def choose(self, victims: Sequence[Victim], fits: Fits) -> tuple[str, ...] | None:
        taken: list[str] = []
        for victim in sorted(victims, key=lambda v: (v.worth, v.profile)):
            taken.append(victim.profile)
            if fits(frozenset(taken)):
                return tuple(taken)
        return None


class WaitForIdle(Lru):
    """llama-swap's default: a swap clears the cards that it needs, as soon as everybody there is idle."""

    def choose(self, victims: Sequence[Victim], fits: Fits) -> tuple[str, ...] | None:
        everyone = tuple(victim.profile for victim in victims)
        return everyone if everyone and fits(frozenset(everyone)) else None


class CountLru(Lru):
    """llama-server's router and LM Studio: so many models at most, least recently used first, wherever they are."""

    knows_cards = False


class KeepAlive(Lru):
    """Ollama: who was loaded first goes, idle ones before busy ones; a busy one is drained at once."""

    def free_from(self, fleet: Fleet, other: Engine, engine: Engine, pressure: Pressure | None) -> float:
        return fleet.now

    def worth(self, fleet: Fleet, engine: Engine, freed: int, way_back: float) -> float:
        return engine.ready_since + (1e9 if engine.leases else 0.0)


POLICIES: Mapping[str, Callable[[], Policy]] = {
    "llmd": Thrifty,
    "lru": Lru,
    "wait-for-idle": WaitForIdle,
    "count-lru": CountLru,
    "keep-alive": KeepAlive,
}
"""llmd's own first. The others know no sleep: give them profiles without it."""
