"""Imaginary cards, engines and clients around the real core, in virtual time.

Whatever the core orders happens after as long as the real thing would take; what comes of it is told to the core.
Events of one moment come in the order in which they were caused, so a run is the same every time.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import singledispatchmethod

from supervisor.config import Config
from supervisor.core import decide, events, orders
from supervisor.core.devices import GIB, HOST, Holder, Reading, Survey
from supervisor.core.events import Event
from supervisor.core.fit import needs
from supervisor.core.fleet import Fleet
from supervisor.core.orders import Order
from supervisor.core.policy import Policy, Thrifty
from supervisor.core.routing import Ask
from supervisor.simulation.trace import Request

READ_EVERY = 5.0
OURS = 1
"""A PID that stands for all processes of ours."""
STOP_SECONDS = 3.0
"""From SIGTERM to the memory's return, measured with small models; a kill takes a tenth of it."""
SLEEP_SECONDS = 6.0
WAKE_SECONDS = 2.0
RESIDUE = int(1.5 * GIB)
"""What a sleeping engine keeps of each card."""
WEIGHTS = 0.7
"""Share of what an engine takes; a sleeper at level 1 keeps them in host memory."""
PREFILL = 2500.0
"""Prompt tokens a second."""
DECODE = 40.0
"""Output tokens a second of one request, an 8B model on a 24 GB card."""
SECONDS_PER_GIB = 1.5
OVERHEAD = 15.0
"""A start: imports and CUDA graphs, then the weights from the page cache."""


@dataclass(frozen=True, slots=True)
class Card:
    """`others`: (from, bytes) of what foreign processes hold, in order of time."""

    total: int = 24 * GIB
    """0: the host has no GPU of this index."""
    others: tuple[tuple[float, int], ...] = ()

    def foreign(self, now: float) -> int:
        return next((size for since, size in reversed(self.others) if since <= now), 0)


@dataclass(slots=True)
class Outcome:
    """What became of one request. Times are virtual seconds."""

    request: Request
    granted: float | None = None
    profile: str | None = None
    ended: float | None = None
    refused: str | None = None
    left: bool = False

    @property
    def waited(self) -> float | None:
        """Seconds from arrival to its lease, or to its refusal; None where it never came to either."""
        over = self.granted if self.granted is not None else self.ended
        return None if over is None else over - self.request.time


@dataclass(slots=True)
class World:
    """`load_seconds`: of a start, by profile; by size where absent."""

    config: Config
    cards: tuple[Card, ...] = (Card(), Card())
    policy: Policy = field(default_factory=Thrifty)
    host: int = 64 * GIB
    load_seconds: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    now: float = 0.0
    fleet: Fleet = field(init=False)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    loading: float = 0.0
    """Card-seconds spent on starts and wakes."""
    after: Callable[[World, Event, list[Order]], None] | None = None
    """Looks at the world after each event."""
    _agenda: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _serial: itertools.count[int] = field(default_factory=itertools.count)
    _held: dict[str, dict[str, int]] = field(default_factory=dict)
    _takes: dict[str, dict[str, int]] = field(default_factory=dict)
    """By incarnation, bytes by device once it is loaded."""
    _alive: set[str] = field(default_factory=set)
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        names = itertools.count(1)
        self.rng = random.Random(self.seed)
        self.fleet = Fleet(
            self.config, lambda: f"i{next(names)}", policy=self.policy, rng=random.Random(self.seed)
        )
        self._read()

    # Time

    def run(self, trace: Iterable[Request], until: float | None = None) -> None:
        """Play a trace to its end, or to `until`, and let everything come to an end after it."""
        for request in trace:
            self.at(request.time, lambda request=request: self._arrive(request))  # type: ignore[misc]
        self._keep_reading()
        while self._agenda and (until is None or self.now < until):
            if until is None and self._is_over():
                return
            self._step()

    def at(self, time: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (max(time, self.now), next(self._serial), what))

    def expect(self, time: float, event: Event) -> None:
        """Tell the core `event` at that time."""
        self.at(time, lambda: self.tell(event))

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        self.at(self.now + seconds, what)

    def _step(self) -> None:
        due = self.fleet.next_deadline()
        if due is not None and due < self._agenda[0][0]:
            self.now = max(self.now, due)
            self.tell(events.Ticked())
            return
        time, _, what = heapq.heappop(self._agenda)
        self.now = time
        what()

    def _is_over(self) -> bool:
        """All requests have ended, and none is to come."""
        return len(self._agenda) <= 1 and not self.fleet.leases and not len(self.fleet.queues)

    def _keep_reading(self) -> None:
        self._read()
        self.later(READ_EVERY, self._keep_reading)

    # Facts

    def tell(self, event: Event) -> None:
        ordered = decide.handle(self.fleet, event, self.now)
        if self.after:
            self.after(self, event, ordered)
        for order in ordered:
            self._obey(order)

    def _arrive(self, request: Request) -> None:
        lease = f"r{len(self.outcomes)}"
        self.outcomes[lease] = Outcome(request)
        held = self.config.server.max_wait
        ask = Ask(request.model, request.key, request.prompt, least=request.prompt)
        self.tell(events.Arrived(lease, ask, held))
        if request.patience is not None:
            self.later(request.patience, lambda: self._leave(lease))

    def _leave(self, lease: str) -> None:
        """The client has had enough."""
        outcome = self.outcomes[lease]
        if outcome.ended is None and outcome.refused is None:
            outcome.ended, outcome.left = self.now, True
            self.tell(events.Left(lease))

    def _served(self, lease: str, incarnation: str) -> None:
        outcome = self.outcomes[lease]
        if outcome.ended is None:
            outcome.ended = self.now
            self.tell(events.Left(lease, outcome.request.prompt, outcome.request.output))

    def _read(self) -> None:
        held = {name: dict(found) for name, found in self._held.items()}
        self.tell(events.DevicesRead(self._survey(), held, frozenset({OURS})))

    def _survey(self) -> Survey:
        cards = [self._card(index, card) for index, card in enumerate(self.cards) if card.total]
        used = 4 * GIB + sum(held.get(HOST, 0) for held in self._held.values())
        return Survey(
            (*cards, Reading(HOST, self.host, used, self.host - used, self.now, "host memory")), self.now
        )

    def _card(self, index: int, card: Card) -> Reading:
        device, foreign = f"GPU-{index}", card.foreign(self.now)
        ours = sum(held.get(device, 0) for held in self._held.values())
        used = min(card.total, ours + foreign)
        holders = (Holder(4242, foreign, "neighbour", "someone"),) if foreign else ()
        return Reading(
            device, card.total, used, card.total - used, self.now, "imaginary", index,
            holders=(*holders, Holder(OURS, ours)),
        )  # fmt: skip

    # Orders

    @singledispatchmethod
    def _obey(self, order: Order) -> None:
        """Notes, answers and the like ask for nothing here."""
        if isinstance(order, orders.Note):
            self.counts[order.event] += 1
            self.counts["swap"] += bool(order.facts.get("swap"))

    @_obey.register
    def _(self, order: orders.Survey) -> None:
        self.later(0.01, self._read)

    @_obey.register
    def _(self, order: orders.Spawn) -> None:
        seconds, takes = self.load_time(order.profile), self.takes(order.profile, order.devices)
        self._alive.add(order.incarnation)
        self._takes[order.incarnation] = takes
        self._held[order.incarnation] = {device: size // 2 for device, size in takes.items()}
        self.loading += seconds * len(order.devices)
        self.later(seconds, lambda: self._loaded(order.incarnation))

    def takes(self, profile: str, devices: Iterable[str]) -> dict[str, int]:
        """Bytes by device that its engine really takes, whatever the ledger believes."""
        found = self.config.profiles[profile]
        return needs(found, [self._empty(device) for device in devices])

    def _empty(self, device: str) -> Reading:
        total = self.host if device == HOST else self.cards[int(device.removeprefix("GPU-"))].total
        return Reading(device, total, 0, total, self.now)

    def load_time(self, profile: str) -> float:
        """Seconds that a start takes: as given, or by its size."""
        found = self.config.profiles[profile]
        gib = (found.vram or 20 * GIB) * len(found.gpus or (0,)) / GIB
        return self.load_seconds.get(profile, OVERHEAD + SECONDS_PER_GIB * 0.75 * gib)

    def _loaded(self, incarnation: str) -> None:
        if incarnation in self._alive:
            self._held[incarnation] = dict(self._takes[incarnation])
            self.tell(events.Told(incarnation, weights=self._weights(incarnation)))
            self.tell(events.ProbePassed(incarnation))

    def _weights(self, incarnation: str) -> int:
        return int(sum(self._takes[incarnation].values()) * WEIGHTS)

    @_obey.register
    def _(self, order: orders.Terminate) -> None:
        self.later(STOP_SECONDS, lambda: self._exit(order.incarnation, 0))

    @_obey.register
    def _(self, order: orders.Kill) -> None:
        self.later(STOP_SECONDS / 10, lambda: self._kill(order.incarnation))

    def _exit(self, incarnation: str, code: int) -> None:
        if incarnation in self._alive:
            self._alive.discard(incarnation)
            self.tell(events.Exited(incarnation, code))

    def _kill(self, incarnation: str) -> None:
        self._held.pop(incarnation, None)
        self._takes.pop(incarnation, None)
        self._exit(incarnation, -9)
        self.tell(events.TreeGone(incarnation))

    @_obey.register
    def _(self, order: orders.Sleep) -> None:
        self.later(SLEEP_SECONDS, lambda: self._asleep(order))

    def _asleep(self, order: orders.Sleep) -> None:
        engine = self.fleet.current(order.incarnation)
        if engine is None or order.incarnation not in self._alive:
            return
        held = {device: RESIDUE for device in engine.devices if device != HOST}
        kept = {HOST: self._weights(order.incarnation)} if order.level == 1 else {}
        self._held[order.incarnation] = held | kept
        self.tell(events.Slept(order.incarnation))

    @_obey.register
    def _(self, order: orders.Wake) -> None:
        engine = self.fleet.current(order.incarnation)
        assert engine is not None
        seconds = WAKE_SECONDS if order.level == 1 else self.load_time(engine.name) - OVERHEAD
        self.loading += seconds * len(engine.devices)
        self.later(seconds, lambda: self._loaded(order.incarnation))

    @_obey.register
    def _(self, order: orders.Grant) -> None:
        outcome = self.outcomes[order.lease]
        outcome.granted, outcome.profile = self.now, order.profile
        request = outcome.request
        seconds = request.prompt / PREFILL + request.output / DECODE
        self.later(seconds, lambda: self._served(order.lease, order.incarnation))

    @_obey.register
    def _(self, order: orders.Refuse) -> None:
        outcome = self.outcomes[order.lease]
        outcome.refused, outcome.ended = str(order.error), self.now
