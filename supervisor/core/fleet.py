"""The fleet: all engines and what is known of them. State and questions; what changes it begins in `decide`."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING

from supervisor.config import Config, Profile
from supervisor.core import orders
from supervisor.core.abroad import Offer
from supervisor.core.devices import HOST, Reading
from supervisor.core.engine import Engine, Granted
from supervisor.core.fairness import Fairness
from supervisor.core.homes import Homes
from supervisor.core.learned import Learned
from supervisor.core.ledger import Claim, Ledger
from supervisor.core.lifecycle import LIVE, State
from supervisor.core.orders import Order
from supervisor.core.peer import Peer
from supervisor.core.policy import Policy, Thrifty
from supervisor.core.queueing import Queues
from supervisor.core.routing import Ask
from supervisor.errors import ClientError, LlmdError

if TYPE_CHECKING:
    from supervisor.core.calendar import Transition
    from supervisor.core.kinds import Kind
    from supervisor.core.lending import Loan

HOUR = 3600.0

REFUSALS_APART = 10.0
"""Seconds between two notes of one model's refusals for one reason."""

LONG = 60.0
"""Seconds after which to ask again where nothing can be foreseen."""


@dataclass(frozen=True, slots=True)
class Mode:
    """Which profiles may be asked for now. `next_at`: monotonic seconds; `until` is its wall clock, as text."""

    name: str | None = None
    next_mode: str | None = None
    until: str | None = None
    next_at: float | None = None
    forced: bool = False

    @property
    def back(self) -> str | None:
        return f"when mode {self.next_mode} starts, {self.until}" if self.until else None


@dataclass(slots=True)
class Sighting:
    """An error that a GPU's driver reported: how often, and when last, monotonic seconds."""

    count: int = 0
    at: float = 0.0


@dataclass(slots=True)
class Fleet:
    config: Config
    name_incarnation: Callable[[], str]
    """Makes a name that no incarnation ever had."""
    policy: Policy = field(default_factory=Thrifty)
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    learned: InitVar[Mapping[str, Sequence[Learned]] | None] = None
    """Profile -> what earlier daemons learned of it."""
    remembered: Mapping[str, Sequence[Learned]] = field(default_factory=dict)
    """The same, for engines that are yet to be recorded."""
    engines: dict[str, Engine] = field(init=False)
    ledger: Ledger = field(init=False)
    queues: Queues = field(default_factory=Queues)
    leases: dict[str, Granted] = field(default_factory=dict)
    fairness: Fairness = field(init=False)
    ageing: float = 0.0
    """The worth of the dearest engine evicted so far: what is not asked for any more falls behind it."""
    swaps: dict[str, deque[float]] = field(default_factory=dict)
    """Device -> when engines that were busy or waited for were evicted there, in the last hour."""
    refusals: dict[tuple[str, str], tuple[float, int]] = field(default_factory=dict)
    """(model, error code) -> when one was noted last, and how many were refused since."""
    stuck: dict[tuple[str, ...], float | None] = field(default_factory=dict)
    """Profiles -> until when nothing can be done for those who wait for just these; None: until something changes."""
    kept_for: dict[str, str] = field(default_factory=dict)
    """Profile -> the lease that is first in rank there and lacks but KV cache: nobody is let past it."""
    scene: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    """Profile -> what of its engine these answers rest on."""
    beside: Mapping[str, frozenset[str]] = field(init=False)
    """Profile -> itself and all that may share a device with it."""
    due: float | None = None
    """When a Ticked is due at the earliest; None while nothing is awaited."""
    calm_until: float = -math.inf
    """Until then, and as long as nobody waits, a request that comes or goes changes nothing for anybody else."""
    kinds: dict[tuple[str, str, frozenset[str], str | None], Kind] = field(default_factory=dict)
    """(model, source, tasks, home) -> where those requests go, and how they wait, until this is settled next."""
    reconsider: float | None = None
    """When somebody who waits may get what nobody would give up before."""
    mode: Mode = field(default_factory=Mode)
    transition: Transition | None = None
    """A change of mode under way."""
    rolled_back: str | None = None
    """Why the mode that the calendar wants could not begin."""
    loans: dict[str, Loan] = field(default_factory=dict)
    peers: dict[str, Peer] = field(init=False)
    homes: Homes = field(init=False)
    unreadable: set[str] = field(default_factory=set)
    """Devices that were in trouble when they were last read."""
    foreign_told: dict[str, int] = field(default_factory=dict)
    """Device -> the foreign bytes there that were last told of."""
    xids: dict[tuple[str, int], Sighting] = field(default_factory=dict)
    """(device, XID) -> when its driver reported that."""
    closing: bool = False
    now: float = 0.0
    orders: list[Order] = field(default_factory=list)
    """What this event has led to so far."""

    def __post_init__(self, learned: Mapping[str, Sequence[Learned]] | None) -> None:
        self.engines = {name: Engine(profile) for name, profile in self.config.profiles.items()}
        self.beside = beside(self.config.profiles.values())
        self.ledger = Ledger(self.config.memory)
        self.peers = {name: Peer(name, peer) for name, peer in self.config.peers.items()}
        self.homes = Homes(self.config.routing.sticky)
        self.fairness = Fairness({source: key.weight for source, key in self.config.keys.items()})
        self.recall(learned or {})

    def recall(self, learned: Mapping[str, Sequence[Learned]]) -> None:
        """Take up what was learned earlier, by version, the newest first; before the first event."""
        for name, known in learned.items():
            if engine := self.engines.get(name):
                engine.recall(known)

    def next_deadline(self) -> float | None:
        """When a Ticked is due, monotonic seconds; None while nothing is awaited."""
        due = [engine.deadline for engine in self.engines.values() if engine.deadline is not None]
        due += [loan.until for loan in self.loans.values() if loan.until is not None]
        waiting = (
            self.queues.next_deadline(),
            self.reconsider,
            self.transition.deadline if self.transition else None,
        )
        due += [at for at in (*self.stuck.values(), *waiting) if at is not None]
        return min(due, default=None)

    def await_until(self, at: float | None) -> None:
        """A deadline more, where it may be the first."""
        if at is not None:
            self.due = at if self.due is None else min(self.due, at)
            self.calm_until = min(self.calm_until, at)

    def look_again(self, at: float | None) -> None:
        """Dispatch at `at` even if nothing happens before."""
        if at is not None:
            self.reconsider = at if self.reconsider is None else min(self.reconsider, at)

    def unsettle(self, profiles: Collection[str]) -> None:
        """Who waits for one of `profiles` deserves another thought."""
        for asked in [asked for asked in self.stuck if not set(asked).isdisjoint(profiles)]:
            del self.stuck[asked]

    def enter(self, mode: Mode) -> None:
        """Other profiles may be asked for from now on."""
        self.mode = mode
        self.stuck.clear()

    @property
    def available(self) -> frozenset[str]:
        """Profiles that requests may use in this mode."""
        if self.mode.name is None:
            return frozenset(self.config.profiles)
        return self.config.profiles_in(self.mode.name)

    @property
    def is_empty(self) -> bool:
        """No engine holds anything."""
        return all(not engine.holds() and engine.state not in LIVE for engine in self.engines.values())

    def place(self, name: str) -> Engine | Peer:
        """The engine of this profile, or the peer of this name."""
        return self.peers[name] if name in self.peers else self.engines[name]

    def offers(self, model: str) -> list[Offer]:
        """What peers have under this name."""
        if not self.peers:
            return []
        return [offer for peer in self.peers.values() if (offer := peer.offer(model))]

    def serves(self, incarnation: str) -> bool:
        """Whether this incarnation is still given requests."""
        return self.current(incarnation, State.READY) is not None

    def home(self, conversation: str | None) -> str | None:
        """Where a conversation's beginning is still cached."""
        home = self.homes.of(conversation, self.now)
        if home is None:
            return None
        place = home.place
        engine = self.engines.get(place)
        alive = engine is not None and engine.incarnation == home.incarnation
        return place if alive or place in self.peers else None

    def claims(
        self, *, without: str | None = None, on: Collection[str] | None = None
    ) -> dict[str, list[Claim]]:
        """Device -> what our engines, and borrowers, hold there; complete for the devices `on`, all by default."""
        held: dict[str, list[Claim]] = {}
        holders: list[Engine | Loan] = [
            engine for name, engine in self.engines.items() if name != without and engine.holds(on)
        ]
        holders += self.loans.values()
        for holder in holders:
            for device, claim in holder.claims().items():
                held.setdefault(device, []).append(claim)
        return held

    def current(self, incarnation: str, *states: State) -> Engine | None:
        """The engine whose present incarnation this is, in one of `states` (none: any); facts about older ones are
        void."""
        found = next((e for e in self.engines.values() if e.incarnation == incarnation), None)
        return found if found and (not states or found.state in states) else None

    def reading(self, device: str) -> Reading:
        reading = self.ledger.reading(device)
        assert reading is not None, f"{device} was never read"
        return reading

    def cards_of(self, engine: Engine) -> list[str]:
        """Its devices that have memory of their own."""
        return [d for d in engine.devices if d != HOST and not self.ledger.shares_host(d)]

    def rest_of(self, reading: Reading, engine: Engine) -> int:
        """Bytes in use on a device but by our other engines and by neighbours with a name: those of `engine`, and
        what nobody accounts for."""
        others = (e for e in self.engines.values() if e is not engine and not e.returns_before(engine))
        held = sum(other.held_on(reading.device) for other in others)
        return reading.used - held - sum(h.used or 0 for h in self.ledger.strangers(reading))

    def is_batch(self, source: str) -> bool:
        key = self.config.keys.get(source)
        return key is not None and key.priority == "batch"

    def is_active(self, source: str) -> bool:
        """Whether it waits or is served now."""
        for granted in self.leases.values():
            if granted.source == source:
                return True
        return source in self.queues.sources()

    def active_sources(self) -> set[str]:
        """Who waits or is served now."""
        return self.queues.sources() | {granted.source for granted in self.leases.values()}

    def forecast(self, profiles: Iterable[str]) -> float:
        """Seconds until one of `profiles` can be expected to serve another request, from what was measured."""
        return min((self._forecast(self.place(name)) for name in profiles), default=LONG)

    def _forecast(self, engine: Engine | Peer) -> float:
        if isinstance(engine, Peer):
            return engine.forecast(self.queues.for_profile(engine.name))
        if engine.state is State.IMPOSSIBLE or engine.squeezed:
            return LONG
        ahead = self.queues.for_profile(engine.name) + len(engine.leases)
        queue = engine.expected_service * ahead / engine.slots
        if engine.state is State.READY:
            return max(1.0, queue)
        up = engine.put_off(self.now) + max(1.0, engine.seconds_left(self.now))
        return up + max(0.0, queue - engine.expected_service)

    # The limit on swaps

    def count_swap(self, devices: Iterable[str]) -> None:
        for device in devices:
            self.swaps.setdefault(device, deque()).append(self.now)

    def swapped_too_often(self, devices: Iterable[str]) -> bool:
        """Whether a device among them has had its swaps of this hour."""
        return any(self._swaps(device) >= self.config.scheduling.swaps_per_hour for device in devices)

    def _swaps(self, device: str) -> int:
        times = self.swaps.get(device, deque())
        while times and times[0] <= self.now - HOUR:
            times.popleft()
        return len(times)

    # Orders out

    def order(self, order: Order) -> None:
        self.orders.append(order)

    def refuse(self, lease: str, error: LlmdError, ask: Ask | None = None) -> None:
        """`ask` where the refusal is a decision to be journalled; what a client did wrong is none."""
        self.order(orders.Refuse(lease, error))
        if ask is not None and not isinstance(error, ClientError):
            self._note_refusal(ask, error)

    def _note_refusal(self, ask: Ask, error: LlmdError) -> None:
        """The first of its kind in a while, with how many were like it: a flood would wash out all other notes."""
        last, untold = self.refusals.get((ask.model, error.code), (-REFUSALS_APART, 0))
        if self.now - last < REFUSALS_APART:
            self.refusals[ask.model, error.code] = last, untold + 1
            return
        self.refusals[ask.model, error.code] = self.now, 0
        facts = {"model": ask.model, "source": ask.source, "tokens": ask.tokens, "like_it_before": untold}
        self.order(orders.Note("refuse", None, error.message.split("\n")[0], "INFO", facts))

    def note(self, event: str, engine: Engine, message: str, *, level: str = "INFO", **facts: object) -> None:
        self.order(orders.Note(event, engine.name, message, level, facts))


def beside(profiles: Collection[Profile]) -> dict[str, frozenset[str]]:
    """A GPU named by UUID or PCI id may be any."""
    return {p.name: frozenset(other.name for other in profiles if _may_meet(p, other)) for p in profiles}


def _may_meet(one: Profile, other: Profile) -> bool:
    by_name = any(isinstance(gpu, str) for gpu in (*one.gpus, *other.gpus))
    return by_name or one.device == other.device == "cpu" or not set(one.gpus).isdisjoint(other.gpus)


def taken(tickets: list[str]) -> list[str]:
    """All of them, once."""
    found = list(tickets)
    tickets.clear()
    return found
