"""Who must go to make room. Today: least recently used first, and nobody who need not go.

The only question asked of the outside is `fits(victims)`, so another policy can take this one's place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Victim:
    """An engine that could be stopped: idle, and nobody waits for it. `last_used`: monotonic seconds."""

    profile: str
    last_used: float


def choose(victims: Sequence[Victim], fits: Callable[[frozenset[str]], bool]) -> tuple[str, ...] | None:
    """The profiles to stop so that `fits` holds, or None when stopping all of them would not do.

    Takes the least recently used until it fits, then spares everyone who turns out not to be needed,
    most recently used first.
    """
    taken: list[str] = []
    for victim in sorted(victims, key=lambda v: (v.last_used, v.profile)):
        taken.append(victim.profile)
        if fits(frozenset(taken)):
            break
    else:
        return None
    for profile in reversed(taken[:-1]):
        rest = [name for name in taken if name != profile]
        if fits(frozenset(rest)):
            taken = rest
    return tuple(taken)
