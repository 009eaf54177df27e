"""The fleet: all engines and what is known of them. State and questions; what changes it begins in `decide`."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from supervisor.config import Config
from supervisor.core import orders
from supervisor.core.devices import Reading
from supervisor.core.engine import Engine
from supervisor.core.ledger import Claim, Ledger
from supervisor.core.lifecycle import LIVE
from supervisor.core.orders import Order
from supervisor.core.queueing import Queues
from supervisor.errors import LlmdError


@dataclass(slots=True)
class Mode:
    name: str | None = None
    next_mode: str | None = None
    until: str | None = None

    @property
    def back(self) -> str | None:
        return f"when mode {self.next_mode} starts, {self.until}" if self.until else None


@dataclass(slots=True)
class Fleet:
    config: Config
    name_incarnation: Callable[[], str]
    """Makes a name that no incarnation ever had."""
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    engines: dict[str, Engine] = field(init=False)
    ledger: Ledger = field(init=False)
    queues: Queues = field(default_factory=Queues)
    leases: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Lease -> (profile, incarnation) it was granted."""
    mode: Mode = field(default_factory=Mode)
    closing: bool = False
    now: float = 0.0
    orders: list[Order] = field(default_factory=list)
    """What this event has led to so far."""

    def __post_init__(self) -> None:
        self.engines = {name: Engine(profile) for name, profile in self.config.profiles.items()}
        self.ledger = Ledger(self.config.memory)

    def next_deadline(self) -> float | None:
        """When a Ticked is due, monotonic seconds; None while nothing is awaited."""
        due = [engine.deadline for engine in self.engines.values() if engine.deadline is not None]
        waiting = self.queues.next_deadline()
        return min(due if waiting is None else [*due, waiting], default=None)

    @property
    def available(self) -> frozenset[str]:
        """Profiles that requests may use in this mode."""
        if self.mode.name is None:
            return frozenset(self.config.profiles)
        return self.config.profiles_in(self.mode.name)

    @property
    def is_empty(self) -> bool:
        """No engine holds anything."""
        return all(not engine.claims() and engine.state not in LIVE for engine in self.engines.values())

    def claims(self, *, without: str | None = None) -> dict[str, list[Claim]]:
        """Device -> what our engines hold there."""
        held: dict[str, list[Claim]] = {}
        for engine in self.engines.values():
            if engine.name != without:
                for device, claim in engine.claims().items():
                    held.setdefault(device, []).append(claim)
        return held

    def current(self, incarnation: str) -> Engine | None:
        """The engine whose present incarnation this is; facts about older ones are void."""
        return next((e for e in self.engines.values() if e.incarnation == incarnation), None)

    def reading(self, device: str) -> Reading:
        reading = self.ledger.reading(device)
        assert reading is not None, f"{device} was never read"
        return reading

    # Orders out

    def order(self, order: Order) -> None:
        self.orders.append(order)

    def refuse(self, lease: str, error: LlmdError) -> None:
        self.order(orders.Refuse(lease, error))

    def note(self, event: str, engine: Engine, message: str, *, level: str = "INFO", **facts: object) -> None:
        self.order(orders.Note(event, engine.name, message, level, facts))


def taken(tickets: list[str]) -> list[str]:
    """All of them, once."""
    found = list(tickets)
    tickets.clear()
    return found
