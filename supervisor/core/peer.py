"""Another OpenAI-compatible server as a place for requests: it has slots and leases, and none of our memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from supervisor.config import Peer as Configured
from supervisor.core.abroad import Offer
from supervisor.core.routing import Ask

FIRST_GUESS_SERVICE = 10.0
"""Seconds that a request is taken to last before one was measured."""

NOT_HEARD = "it has not answered yet"


@dataclass(frozen=True, slots=True)
class Listed:
    """A model in a peer's list. `window`: tokens of context, None where it does not say. `warm`: loaded."""

    window: int | None = None
    warm: bool = True


@dataclass(slots=True)
class Peer:
    name: str
    config: Configured
    listed: Mapping[str, Listed] = field(default_factory=dict)
    """What it listed last, as far as the configuration wants it; kept while it is down."""
    trouble: str | None = NOT_HEARD
    """Why it is down; None while it is up."""
    leases: set[str] = field(default_factory=set)
    service: float = FIRST_GUESS_SERVICE
    """Seconds that a request holds its lease, a moving mean."""

    @property
    def slots(self) -> int:
        return self.config.max_concurrent

    @property
    def room(self) -> int:
        """How many may wait for it."""
        return self.config.max_queue

    @property
    def has_room(self) -> bool:
        return self.trouble is None and len(self.leases) < self.slots

    def admits(self, ask: Ask) -> bool:
        return self.has_room and self.name not in ask.tried

    def offer(self, model: str) -> Offer | None:
        """What it has under this name; None where it has nothing."""
        found = self.listed.get(model)
        if found is None and (self.trouble is None or model not in self.config.models):
            return None
        found = found or Listed()  # it never answered, and is configured to have it
        known = self.config
        return Offer(self.name, known.priority, known.spill, found.window, found.warm, self.trouble)

    def reconfigure(self, config: Configured) -> None:
        """Another server at the same name is to be heard of first; the same one's list holds on."""
        moved, self.config = config.url != self.config.url, config
        if moved:
            self.listed, self.trouble = {}, NOT_HEARD
        wanted = config.models
        self.listed = {name: found for name, found in self.listed.items() if not wanted or name in wanted}

    def heard(self, listed: Mapping[str, Listed]) -> None:
        """It answered with its models."""
        wanted = self.config.models
        self.listed = {name: found for name, found in listed.items() if not wanted or name in wanted}
        self.trouble = None

    def served(self, seconds: float) -> None:
        self.service = 0.9 * self.service + 0.1 * seconds

    def forecast(self, waiting: int) -> float:
        """Seconds until it can be expected to take another request."""
        return max(1.0, self.service * (waiting + len(self.leases)) / self.slots)

    def describe(self) -> dict[str, Any]:
        """As JSON; never its key."""
        return {
            "peer": self.name,
            "url": self.config.url,
            "up": self.trouble is None,
            "trouble": self.trouble,
            "in_flight": len(self.leases),
            "max_concurrent": self.slots,
            "priority": self.config.priority,
            "spill": self.config.spill,
            "models": {
                name: {"max_model_len": found.window, "warm": found.warm}
                for name, found in self.listed.items()
            },
        }
