"""Who must go to make room: of all sets that free enough, the one whose loss costs least.

GreedyDual-Size-Frequency (Cherkasova 1998): an engine's worth is L + f x C / V, where f is how often it is asked
for, C the seconds to bring it back, V the GiB it frees where they are needed, and L the worth of whoever was
evicted last, so that what is not asked for any more ages. The worth of a set is the sum of its members'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

EXHAUSTIVE = 10
"""Up to so many candidates every subset is looked at; beyond it the cheapest are taken until it fits."""

HALF_LIFE = 600.0
"""Seconds in which the memory of a request fades by half."""

LOG_2 = math.log(2)


@dataclass(frozen=True, slots=True)
class Victim:
    """An engine that could make room. `worth`: what its loss costs. `last_used`: monotonic seconds."""

    profile: str
    worth: float
    last_used: float


@dataclass(slots=True)
class Rate:
    """Requests a second, the older the less they count."""

    value: float = 0.0
    at: float = 0.0

    def hit(self, now: float, weight: float = 1.0) -> None:
        self.value, self.at = self.seen(now) + weight * LOG_2 / HALF_LIFE, now

    def seen(self, now: float) -> float:
        return self.value * math.exp2(-(now - self.at) / HALF_LIFE)


def worth(ageing: float, rate: float, seconds: float, gib: float) -> float:
    """`rate` in requests a second, `seconds` to bring it back, `gib` that it frees."""
    return ageing + rate * seconds / max(gib, 0.001)


def choose(victims: Sequence[Victim], fits: Callable[[frozenset[str]], bool]) -> tuple[str, ...] | None:
    """The profiles to evict so that `fits` holds, the least worth in sum; None when all of them would not do."""
    if not victims or not fits(frozenset(victim.profile for victim in victims)):
        return None
    found = min(_enough(victims, fits), key=_cost)
    return tuple(victim.profile for victim in found)


def _enough(
    victims: Sequence[Victim], fits: Callable[[frozenset[str]], bool]
) -> Iterator[tuple[Victim, ...]]:
    if len(victims) > EXHAUSTIVE:
        yield _greedy(victims, fits)
        return
    found: list[frozenset[str]] = []
    for size in range(1, len(victims) + 1):
        for chosen in combinations(victims, size):
            names = frozenset(victim.profile for victim in chosen)
            if not any(smaller < names for smaller in found) and fits(names):
                found.append(names)
                yield chosen


def _greedy(victims: Sequence[Victim], fits: Callable[[frozenset[str]], bool]) -> tuple[Victim, ...]:
    """Take the cheapest until it fits, then spare everyone who turns out not to be needed, dearest first."""
    taken: list[Victim] = []
    for victim in sorted(victims, key=lambda v: _cost((v,))):
        taken.append(victim)
        if fits(frozenset(v.profile for v in taken)):
            break
    for victim in reversed(taken[:-1]):
        rest = [other for other in taken if other is not victim]
        if fits(frozenset(other.profile for other in rest)):
            taken = rest
    return tuple(taken)


def _cost(chosen: Sequence[Victim]) -> tuple[float, int, float, tuple[str, ...]]:
    """Worth; then how many; then who was used longest ago."""
    names = tuple(victim.profile for victim in chosen)
    return sum(v.worth for v in chosen), len(chosen), max(v.last_used for v in chosen), names
