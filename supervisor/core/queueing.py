"""Requests that wait for a lease: who is next, and who waits for which profile.

Waiters that could go to the same profiles and come from the same source stand in one line, first come first
served; where several people share a source, each of them in turn. Only the heads of lines compete: interactive before
batch, unless batch has waited long; then the source that has had the fewest tokens; then who came first. So a dispatch
costs as much as there are lines, not waiters.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from itertools import chain

import msgspec

from supervisor.core.routing import Ask, Route

Group = dict[str, "Line"]
"""Lines by source, of those who could go to the same profiles."""


class Waiter(msgspec.Struct):
    """A request without a lease yet. Times are monotonic seconds."""

    lease: str
    ask: Ask
    route: Route
    profiles: tuple[str, ...]
    """Where it could still go, best first: its route's less those that failed while it waited."""
    arrived: float
    deadline: float
    patience: float = 60.0
    """Seconds after which its model is swapped in at any cost."""
    weight: float = 1.0
    """What a second of its waiting counts for against the cost of a swap."""
    told: bool = False
    """Its route is known to who asks why."""


@dataclass(slots=True)
class Line:
    """Waiters of one key by person, in the order of their turns, with the sums that tell how long all have waited."""

    people: dict[str, dict[str, Waiter]] = field(default_factory=dict)
    weight: float = 0.0
    moment: float = 0.0
    """Sum of weight x arrival."""

    @property
    def head(self) -> Waiter:
        return next(self.firsts())

    def firsts(self) -> Iterator[Waiter]:
        """Who came first of each person's."""
        return (next(iter(waiters.values())) for waiters in self.people.values())

    def add(self, waiter: Waiter) -> None:
        """At the end; one that stood elsewhere before, where it belongs by its arrival."""
        person = waiter.ask.person
        waiters = self.people.setdefault(person, {})
        later = waiters and next(reversed(waiters.values())).arrived > waiter.arrived
        waiters[waiter.lease] = waiter
        if later:
            self.people[person] = dict(sorted(waiters.items(), key=lambda item: item[1].arrived))
        self.weight += waiter.weight
        self.moment += waiter.weight * waiter.arrived

    def remove(self, waiter: Waiter) -> None:
        """Whose waiter was the head has had a turn."""
        person, had_turn = waiter.ask.person, waiter is self.head
        waiters = self.people[person]
        del waiters[waiter.lease]
        if had_turn or not waiters:
            del self.people[person]
        if had_turn and waiters:
            self.people[person] = waiters
        self.weight -= waiter.weight
        self.moment -= waiter.weight * waiter.arrived

    def __iter__(self) -> Iterator[Waiter]:
        return chain.from_iterable(waiters.values() for waiters in self.people.values())

    def __len__(self) -> int:
        return sum(map(len, self.people.values()))


@dataclass(frozen=True, slots=True)
class Pressure:
    """All who wait for one profile. Times are monotonic seconds."""

    oldest: float
    patience_ends: float
    """When the first of them has lost patience."""
    weight: float
    moment: float

    def worth(self, cost: float) -> float:
        """When their weighted waiting, summed, will have reached `cost` seconds."""
        return (cost + self.moment) / self.weight


@dataclass(slots=True)
class Queues:
    """All waiters. Iterating gives them line by line, a copy, so that they may change meanwhile."""

    groups: dict[tuple[str, ...], Group] = field(default_factory=dict)
    """By the profiles that could serve, best first."""
    _waiters: dict[str, Waiter] = field(default_factory=dict)
    _profiles: Counter[str] = field(default_factory=Counter)
    _firsts: Counter[str] = field(default_factory=Counter)
    _deadlines: list[tuple[float, str]] = field(default_factory=list)

    def add(self, waiter: Waiter) -> None:
        self._waiters[waiter.lease] = waiter
        self.groups.setdefault(waiter.profiles, {}).setdefault(waiter.ask.source, Line()).add(waiter)
        self._count(waiter, 1)
        heapq.heappush(self._deadlines, (waiter.deadline, waiter.lease))

    def remove(self, lease: str) -> Waiter | None:
        """Take a waiter out, wherever it stands. None when it does not wait."""
        waiter = self._waiters.pop(lease, None)
        if waiter is None:
            return None
        group = self.groups[waiter.profiles]
        group[waiter.ask.source].remove(waiter)
        if not group[waiter.ask.source]:
            del group[waiter.ask.source]
        if not group:
            del self.groups[waiter.profiles]
        self._count(waiter, -1)
        return waiter

    def give_up(self, waiter: Waiter, profile: str) -> None:
        """It will not be served by `profile`, which failed; its other candidates remain."""
        self.remove(waiter.lease)
        waiter.profiles = tuple(name for name in waiter.profiles if name != profile)
        if waiter.profiles:
            self.add(waiter)

    def _count(self, waiter: Waiter, by: int) -> None:
        self._firsts[waiter.profiles[0]] += by
        for profile in waiter.profiles:
            self._profiles[profile] += by

    def _lines(self, profiles: Set[str]) -> Iterator[Line]:
        found = (group for asked, group in self.groups.items() if not profiles.isdisjoint(asked))
        return (line for group in found for line in group.values())

    # Questions

    def heads(self, profiles: Set[str]) -> list[Waiter]:
        """The first of every line whom one of `profiles` could serve."""
        return [line.head for line in self._lines(profiles)]

    def following(self, waiter: Waiter) -> Waiter | None:
        """Who is first in the line of a waiter that has left it."""
        line = self.groups.get(waiter.profiles, {}).get(waiter.ask.source)
        return line.head if line else None

    def since(self, waiter: Waiter) -> float:
        """When the first in the line of this waiter came: somebody's turn takes nothing from the others' waiting."""
        line = self.groups.get(waiter.profiles, {}).get(waiter.ask.source)
        if line is None or len(line.people) < 2:
            return waiter.arrived
        return min(first.arrived for first in line.firsts())

    def pressure(self, profile: str) -> Pressure | None:
        """Of those whom `profile` could serve; None where there are none."""
        found = (group for profiles, group in self.groups.items() if profile in profiles)
        lines = [line for group in found for line in group.values()]
        if not lines:
            return None
        firsts = [first for line in lines for first in line.firsts()]
        return Pressure(
            min(first.arrived for first in firsts),
            min(first.arrived + first.patience for first in firsts),
            sum(line.weight for line in lines),
            sum(line.moment for line in lines),
        )

    def beside(self, profiles: Set[str]) -> list[Waiter]:
        """Who may take a place of one of `profiles`."""
        return [waiter for line in self._lines(profiles) for waiter in line]

    def ahead_of(self, profiles: Set[str]) -> int:
        """How many those are."""
        return sum(map(len, self._lines(profiles)))

    def for_profile(self, profile: str) -> int:
        """How many could be served by this profile."""
        return self._profiles[profile]

    def hopes_for(self, profile: str) -> int:
        """How many have this profile as their first choice."""
        return self._firsts[profile]

    def sources(self) -> set[str]:
        return set().union(*self.groups.values())

    def overdue(self, now: float) -> list[Waiter]:
        """Those whose deadline has come."""
        found = {}
        while self._deadlines and self._deadlines[0][0] <= now:
            _, lease = heapq.heappop(self._deadlines)
            if waiter := self._waiters.get(lease):
                found[lease] = waiter
        return list(found.values())

    def next_deadline(self) -> float | None:
        while self._deadlines and self._deadlines[0][1] not in self._waiters:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def __iter__(self) -> Iterator[Waiter]:
        return iter([waiter for group in self.groups.values() for line in group.values() for waiter in line])

    def __len__(self) -> int:
        return len(self._waiters)

    def __contains__(self, lease: str) -> bool:
        return lease in self._waiters
