"""A world for the core: plain histories in virtual time, every invariant checked after every event.

Two imaginary 24 GiB cards and host memory. `obey` plays the shell for what the test does not want to spell
out: readings are taken, spawned engines take their memory at once, killed trees give it back.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from supervisor.config import Config, Profile
from supervisor.core import decide, events, orders
from supervisor.core.devices import GIB, HOST, Holder, Reading, Survey
from supervisor.core.events import Event
from supervisor.core.fleet import Fleet
from supervisor.core.lifecycle import State
from supervisor.core.orders import Order
from supervisor.core.routing import Ask
from tests.core.invariants import Invariants

CARD = 24 * GIB
OURS = frozenset({1})
"""One process stands for all of ours."""


def config(*profiles: Profile, **tables: Any) -> Config:
    return Config(path=Path("llmd.toml"), profiles={p.name: p for p in profiles}, **tables)


def profile(name: str, *gpus: int, model: str | None = None, gib: float = 20, **fields: Any) -> Profile:
    model = model or name.rsplit("_", 1)[0]
    return Profile(name=name, model=model, weights="w", gpus=gpus, vram=int(gib * GIB), **fields)


class World:
    def __init__(self, configured: Config) -> None:
        counter = itertools.count(1)
        self.fleet = Fleet(configured, name_incarnation=lambda: f"i{next(counter)}")
        self.now = 1000.0
        self.foreign: dict[int, tuple[Holder, ...]] = {0: (), 1: ()}
        self.totals = {0: CARD, 1: CARD}
        self.held: dict[str, dict[str, int]] = {}
        self.trouble: dict[int, str] = {}
        self.sticky = False
        """Memory of killed trees does not come back."""
        self.alive: set[str] = set()
        self.granted: dict[str, str] = {}
        self.refused: dict[str, Exception] = {}
        self.answers: dict[str, orders.Answer] = {}
        self.log: list[Order] = []
        self.check = Invariants()
        self._leases = itertools.count(1)
        self.read()

    # What a test says

    def send(self, event: Event) -> list[Order]:
        done = decide.handle(self.fleet, event, self.now)
        self.log += done
        self.check(self.fleet, event, done)
        for order in done:
            self.obey(order)
        return done

    def ask(
        self, model: str, *, source: str = "default", tokens: int = 0, patience: float = 290, **facts: Any
    ) -> str:
        lease = f"r{next(self._leases)}"
        self.send(events.Arrived(lease, Ask(model, source, tokens, **facts), patience))
        return lease

    def leave(self, lease: str) -> None:
        self.send(events.Left(lease))

    def wait(self, seconds: float) -> None:
        """Time passes; every deadline on the way is told, and devices are read every five seconds."""
        end = self.now + seconds
        while self.now < end:
            due = self.fleet.next_deadline()
            step = min(end, self.now + 5.0)
            if due is not None and due <= step:
                self.now = max(self.now, due)
                self.send(events.Ticked())
            else:
                self.now = step
                self.read()

    def ready(self, name: str) -> None:
        self.send(events.ProbePassed(self.incarnation(name)))

    def up(self, name: str) -> None:
        """Start it as an operator would, all the way."""
        self.send(events.StartAsked(f"up-{name}", name))
        self.ready(name)

    def crash(self, name: str, *tail: str, code: int = 1) -> None:
        incarnation = self.incarnation(name)
        self.alive.discard(incarnation)
        self.send(events.Exited(incarnation, code, tail))

    def incarnation(self, name: str) -> str:
        found = self.fleet.engines[name].incarnation
        assert found, f"{name} has no incarnation: {self.fleet.engines[name]}"
        return found

    def notes(self) -> list[str]:
        """The names of the decisions so far."""
        return [order.event for order in self.log if isinstance(order, orders.Note)]

    def state(self, name: str) -> State:
        return self.fleet.engines[name].state

    # The shell

    def read(self) -> None:
        measured = {n: h if n in self.alive else dict.fromkeys(h, 0) for n, h in self.held.items()}
        self.send(events.DevicesRead(self.survey(), measured, OURS))

    def survey(self) -> Survey:
        cards = [self.card(index) for index in self.foreign]
        host = Reading(HOST, 64 * GIB, 4 * GIB, 60 * GIB, self.now, "host memory")
        return Survey((*cards, host), self.now)

    def card(self, index: int) -> Reading:
        device, total = f"GPU-{index}", self.totals[index]
        ours = sum(held.get(device, 0) for held in self.held.values())
        seen = sum(self.held.get(name, {}).get(device, 0) for name in self.alive)
        used = ours + sum(holder.used or 0 for holder in self.foreign[index])
        return Reading(
            device, total, used, total - used, self.now, "RTX 3090", index,
            holders=(*self.foreign[index], Holder(next(iter(OURS)), seen)), trouble=self.trouble.get(index),
        )  # fmt: skip

    def obey(self, order: Order) -> None:
        if isinstance(order, orders.Survey):
            self.read()
        elif isinstance(order, orders.Spawn):
            self.alive.add(order.incarnation)
            engine = self.fleet.engines[order.profile]
            self.held[order.incarnation] = dict(engine.reserved)
            self.read()
        elif isinstance(order, orders.Terminate):
            if order.incarnation in self.alive:
                self.alive.discard(order.incarnation)
                self.send(events.Exited(order.incarnation, 0))
        elif isinstance(order, orders.Kill):
            if not self.sticky:
                self.held.pop(order.incarnation, None)
            if order.incarnation in self.alive:
                self.alive.discard(order.incarnation)
                self.send(events.Exited(order.incarnation, -9))
            self.send(events.TreeGone(order.incarnation))
        elif isinstance(order, orders.Grant):
            self.granted[order.lease] = order.profile
        elif isinstance(order, orders.Refuse):
            self.refused[order.lease] = order.error
        elif isinstance(order, orders.Answer):
            self.answers[order.ticket] = order
