"""Requests that wait for a lease: one bounded queue a model, first come first served."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from supervisor.core.routing import Ask, Candidate


@dataclass(slots=True)
class Waiter:
    """A request without a lease yet. Times are monotonic seconds."""

    lease: str
    ask: Ask
    candidates: tuple[Candidate, ...]
    arrived: float
    deadline: float
    failed: set[str] = field(default_factory=set)
    """Profiles that failed to come up while it waited; not tried for it again."""

    @property
    def profiles(self) -> tuple[str, ...]:
        return tuple(c.profile for c in self.candidates if c.profile not in self.failed)


@dataclass(slots=True)
class Queues:
    """All waiters, by model as asked for. Order within a model is order of arrival."""

    _by_model: dict[str, dict[str, Waiter]] = field(default_factory=dict)
    _model_of: dict[str, str] = field(default_factory=dict)

    def add(self, waiter: Waiter) -> None:
        self._by_model.setdefault(waiter.ask.model, {})[waiter.lease] = waiter
        self._model_of[waiter.lease] = waiter.ask.model

    def remove(self, lease: str) -> Waiter | None:
        """Take a waiter out, wherever it stands. None when it does not wait."""
        model = self._model_of.pop(lease, None)
        if model is None:
            return None
        queue = self._by_model[model]
        waiter = queue.pop(lease)
        if not queue:
            del self._by_model[model]
        return waiter

    def __iter__(self) -> Iterator[Waiter]:
        """Every waiter; a copy, so that the queue may change meanwhile."""
        return iter([waiter for queue in self._by_model.values() for waiter in queue.values()])

    def __len__(self) -> int:
        return len(self._model_of)

    def __contains__(self, lease: str) -> bool:
        return lease in self._model_of

    def for_profile(self, profile: str) -> int:
        """How many could be served by this profile."""
        return sum(profile in waiter.profiles for waiter in self)

    def next_deadline(self) -> float | None:
        return min((waiter.deadline for waiter in self), default=None)
