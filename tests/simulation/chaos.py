"""The simulated world with everything going wrong in it: engines, driver, neighbours, clients, people, the daemon.

Seeded: one seed is one history, event for event. Times are jittered, so what happens at about the same time happens
in every order. `calm` ends the faults; from then on whatever was broken mends, and the world must come to rest.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import singledispatchmethod

from supervisor.config import Config
from supervisor.core import events, orders
from supervisor.core.devices import GIB, HOST, MIB, Holder, Reading, Survey
from supervisor.core.devices import Card as CardSeen
from supervisor.core.ending import SETTLED_SHARE, SETTLED_SLACK
from supervisor.core.events import Event
from supervisor.core.fleet import Fleet
from supervisor.core.learned import Learned
from supervisor.core.lifecycle import State
from supervisor.core.orders import Order
from supervisor.core.routing import Ask
from supervisor.simulation.trace import Request
from supervisor.simulation.world import OURS, RESIDUE, Card, Outcome, World
from tests.core.invariants import Invariants

MISFORTUNE = {
    "well": 60, "no spawn": 1, "crash loading": 6, "out of memory": 3, "hangs loading": 4, "crash serving": 8,
    "runs out serving": 5, "stuck serving": 5, "leaks": 5, "no sleep": 3, "lies asleep": 3, "no wake": 3, "stays asleep": 3,
}  # fmt: skip
"""What becomes of an engine, and how often."""

KV_TOKENS = 7000
"""A long prompt and its reply leave room for one short request beside them."""

READ_EVERY = 10.0
"""As seldom as may be: with a little delay a reading is too old to start anything on."""

RESERVED = 430 * MIB
"""Bytes of each card that its driver keeps: used by nobody, and of no card to CUDA."""

LAST_WORDS = {
    "crash loading": ("RuntimeError: Engine core initialization failed. See root cause above.",),
    "out of memory": ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",),
    "runs out serving": (
        "(EngineCore pid=95) ERROR 11-23 09:45:24 [core.py:1310] torch.OutOfMemoryError: CUDA out of memory. Tried",
    ),
    "crowded": ("ValueError: Free memory on device cuda:0 is less than desired GPU memory utilization",),
}


@dataclass(slots=True)
class Tree:
    """One process tree of an engine, and what is wrong with it. `needs`: bytes by device once loaded."""

    incarnation: str
    profile: str
    needs: dict[str, int]
    fate: str
    deaf: bool
    """It ignores SIGTERM."""
    held: dict[str, int] = field(default_factory=dict)
    running: bool = True
    """Its leader lives."""
    gone: bool = False
    """No process is left. Memory may be."""
    loaded: bool = False
    """It is awake and answers."""
    dying: bool = False
    """A kill is on its way."""
    busy: bool = False
    """It falls asleep or wakes: until that is over it does not say whether it sleeps."""


class Chaos(World):
    def __init__(self, config: Config, seed: int, cards: int = 2) -> None:
        self.dice = random.Random(f"chaos {seed}")
        self.calm = self.down = False
        self.releasing = False
        """A person writes off what is still held."""
        self.trees: dict[str, Tree] = {}
        """By incarnation, until the memory is back: what the host knows."""
        self.records: dict[str, tuple[str, tuple[str, ...]]] = {}
        """Incarnation -> profile, devices: what a daemon finds of the one before."""
        self.asleep: dict[str, int] = {}
        """Incarnation -> level at which it may sleep, in the records too."""
        self.spawned: set[str] = set()
        """Incarnations of this daemon, which saw the memory before they were there."""
        self.muddled: set[str] = set()
        """Devices where memory came back in this daemon's life that nobody knew whose it was."""
        self.waking: set[str] = set()
        """Incarnations that were told to wake, in the records too."""
        self.pinned: set[str] = set()
        """Incarnations that a person pinned, in the records too."""
        self.almanac: dict[str, tuple[Learned, ...]] = {}
        self.totals: dict[CardSeen, int] = {}
        self.happened: Counter[str] = Counter()
        """How often what took part in this history."""
        self.serving: dict[str, str] = {}
        """Lease -> incarnation that works on it."""
        self.neighbours: dict[int, int] = {}
        self.lost: set[int] = set()
        self.blind = self.hung = False
        """NVML cannot be reached; NVML does not answer."""
        self.seen = False
        """This daemon has seen the cards, so it names them even while NVML cannot be reached."""
        self.history: list[tuple[float, object]] = []
        """(when, what): facts, orders, and words about the daemon."""
        self.lives = 0
        self.invariants = Invariants()
        self.begin()
        super().__init__(config, tuple(Card() for _ in range(cards)), seed=seed)

    def begin(self) -> None:
        """Before the first event."""

    # Time

    def at(self, time: float, what: Callable[[], None]) -> None:
        """A little later than told, in any order with what comes at about the same time; never at the very same."""
        when = max(time + self.dice.choice((0.0, 0.0, 0.1, 0.3)), self.now) + self.dice.uniform(1e-6, 0.05)
        heapq.heappush(self._agenda, (when, self.dice.getrandbits(48), what))

    def until(self, time: float) -> None:
        while self._agenda and self._agenda[0][0] <= time:
            self._step()
        self.now = time

    def maybe(self, chance: float) -> bool:
        return not self.calm and self.dice.random() < chance

    # Facts in, orders out

    def tell(self, event: Event) -> None:
        if not self.down:
            self.history.append((self.now, event))
            super().tell(event)

    def _look(self, event: Event, ordered: Sequence[Order]) -> None:
        self.history += [(self.now, order) for order in ordered]
        self.happened.update(order.event for order in ordered if isinstance(order, orders.Note))
        self.invariants(self.fleet, event, ordered)

    def _obey(self, order: Order) -> None:
        """A daemon may be killed between any two of its orders, and while an engine falls asleep or wakes."""
        if self.maybe(0.0005):
            self.die()
        if not self.down:
            self.carry_out(order)
            if isinstance(order, orders.Sleep | orders.Wake) and self.maybe(0.05):
                self.later(self.dice.uniform(0, 20), self.die)

    # A daemon's life

    def new_fleet(self) -> Fleet:
        self.lives += 1
        self.invariants, self.seen = Invariants(), False
        self.spawned, self.muddled = set(), set()
        self.after = lambda world, event, ordered: self._look(event, ordered)
        born = iter(range(10**9))
        if self.maybe(0.2):
            self.almanac.clear()
            self.totals.clear()
        fleet = Fleet(
            self.config,
            lambda: f"d{self.lives}i{next(born)}",
            policy=self.policy,
            rng=random.Random(self.seed),
            learned=self.almanac,
        )
        fleet.ledger.totals.update(self.totals)
        return fleet

    def die(self) -> None:
        """SIGKILL: every stream ends, every engine lives on."""
        if not self.down:
            self.history.append((self.now, "the daemon dies"))
            self._witness()
            self.down, self.fleet = True, self.new_fleet()
            for outcome in self.outcomes.values():
                if outcome.ended is None:
                    outcome.ended = self.now
            self.serving.clear()
            self.later(self.dice.choice((0.5, 3, 60)), self.rise)

    def _witness(self) -> None:
        """What a dying daemon leaves."""
        engines = self.fleet.engines.values()
        self.happened["died with a loan"] += self.lent()
        self.happened["died with a sleeper"] += any(e.asleep and e.settled for e in engines)
        self.happened["died while one fell asleep"] += any(e.asleep and not e.settled for e in engines)
        self.happened["died while one was waking"] += any(e.state is State.WAKING for e in engines)
        self.happened["died with an eased engine"] += any(e.learned.rung for e in engines)

    def lent(self) -> bool:
        """Whether a loan is out."""
        return False

    def rise(self) -> None:
        self.history.append((self.now, "a daemon starts"))
        self.down = self.seen = False
        self.tell(self._reading())
        for incarnation, (profile, devices) in list(self.records.items()):
            tree = self.trees.get(incarnation)
            if tree is None or tree.gone:  # nothing left to prove; its record is dropped
                del self.records[incarnation]
            elif profile not in self.config.profiles:  # left alone, until somebody ends it
                del self.records[incarnation]
                self.later(self.dice.uniform(60, 600), lambda tree=tree: self.give_back(tree))  # type: ignore[misc]
            else:
                asleep, waking = self.asleep.get(incarnation, 0), incarnation in self.waking
                self.happened["found asleep"] += bool(asleep)
                self.happened["found waking"] += waking
                pinned = incarnation in self.pinned
                self.tell(events.Found(profile, incarnation, devices, tree.running, asleep, waking, pinned))
        self.tell_mode()

    def tell_mode(self) -> None:
        """The scenario knows the calendar."""

    # Devices

    def _keep_reading(self) -> None:
        self._read()
        self.later(READ_EVERY, self._keep_reading)

    def _read(self) -> None:
        """What is read now is told a little later, or, while NVML hangs, a moment past its use."""
        reading = self._reading()
        if self.lives == 0:  # the first fleet's first look
            self.fleet = self.new_fleet()
            self.tell(reading)
            return
        delay = self.dice.choice((0.0, 0.1, 0.2)) + (self.dice.uniform(1, 40) if self.hung else 0.0)
        self.later(delay, lambda: self.tell(reading))

    def _reading(self) -> events.DevicesRead:
        known = [tree for tree in self.trees.values() if tree.incarnation in self.records]
        measured = {t.incarnation: self._measured(t) for t in known}
        return events.DevicesRead(self._survey(), measured, frozenset({OURS}))

    def _measured(self, tree: Tree) -> dict[str, int]:
        if tree.gone:
            return {HOST: 0} | {device: 0 for device in tree.held if not self.blind}
        return {d: size for d, size in tree.held.items() if d == HOST or not self.blind}

    def _survey(self) -> Survey:
        self.seen = self.seen or not self.blind
        cards = [self._card(n, card) for n, card in enumerate(self.cards)] if self.seen else []
        used = 4 * GIB + sum(tree.held.get(HOST, 0) for tree in self.trees.values())
        host = Reading(HOST, self.host, used, self.host - used, self.now, "host memory")
        trouble = "NVML: driver not loaded" if self.blind else None
        return Survey((*cards, host), self.now, trouble, holders_known=not self.blind)

    def _card(self, index: int, card: Card) -> Reading:
        device = f"GPU-{index}"
        if index in self.lost or self.blind:
            return Reading(device, 0, 0, 0, self.now, "imaginary", index, trouble="GPU is lost")
        used = RESERVED + self._used(device) + self.neighbours.get(index, 0)
        holders = tuple(self._holders(device))
        return Reading(
            device, card.total, used, card.total - used, self.now, "imaginary", index, holders=holders
        )

    def _holders(self, device: str) -> Iterator[Holder]:
        yield Holder(4242, self.neighbours.get(int(device.removeprefix("GPU-")), 0), "neighbour", "someone")
        living = [tree for tree in self.trees.values() if not tree.gone]
        ours = sum(tree.held.get(device, 0) for tree in living if tree.incarnation in self.records)
        yield Holder(OURS, ours)
        yield Holder(78, sum(tree.held.get(device, 0) for tree in living) - ours, "stray")

    def _used(self, device: str) -> int:
        return sum(tree.held.get(device, 0) for tree in self.trees.values())

    def _free(self, device: str) -> int:
        if device == HOST:
            return self.host
        index = int(device.removeprefix("GPU-"))
        return self._cuda_total(device) - self._used(device) - self.neighbours.get(index, 0)

    def _cuda_total(self, device: str) -> int:
        return self.cards[int(device.removeprefix("GPU-"))].total - RESERVED

    def strangers(self, device: str) -> int:
        """Bytes on a card of whom nothing was promised to."""
        index = int(device.removeprefix("GPU-")) if device != HOST else -1
        disowned = (t.held.get(device, 0) for t in self.trees.values() if t.incarnation not in self.records)
        return self.neighbours.get(index, 0) + sum(disowned)

    def take(self, tree: Tree, held: dict[str, int]) -> bool:
        """Let a tree hold so much from now on; not where the card has not got it."""
        grown = {device: size - tree.held.get(device, 0) for device, size in held.items()}
        if any(size > max(0, self._free(device)) for device, size in grown.items()):
            return False
        tree.held = held
        return True

    # Orders

    @singledispatchmethod
    def carry_out(self, order: Order) -> None:
        super()._obey(order)

    @carry_out.register
    def _(self, order: orders.Spawn) -> None:
        fate = self.fate()
        self.spawned.add(order.incarnation)
        self.records[order.incarnation] = order.profile, order.devices
        if order.pinned:
            self.pinned.add(order.incarnation)
        if fate == "no spawn":
            self.later(0.1, lambda: self.tell(events.SpawnFailed(order.incarnation, "no such file")))
            return
        needs = {d: math.ceil(self._cuda_total(d) * order.utilization) for d in order.devices}
        tree = Tree(order.incarnation, order.profile, needs, fate, deaf=self.maybe(0.1))
        assert not any(t.running and t.profile == tree.profile for t in self.known()), (
            "two trees of one profile"
        )
        self.trees[order.incarnation] = tree
        if not self.take(tree, {device: size // 2 for device, size in needs.items()}):
            self.later(2.0, lambda: self.crash(tree, "crowded"))
            return
        seconds = self.load_time(order.profile) * (1 if self.calm else self.dice.choice((0.5, 1, 1, 5)))
        for moment in range(30, int(seconds), 60):
            self.later(moment, lambda: self.tell(events.Progressed(tree.incarnation, None)))
        if fate in ("crash loading", "out of memory"):
            self.later(seconds / 2, lambda: self.crash(tree, fate))
        elif fate != "hangs loading":
            self.later(seconds, lambda: self.load(tree))

    def known(self) -> list[Tree]:
        """Trees that the daemon has a record of."""
        return [tree for tree in self.trees.values() if tree.incarnation in self.records]

    def fate(self) -> str:
        if self.calm:
            return "well"
        return self.dice.choices(list(MISFORTUNE), list(MISFORTUNE.values()))[0]

    def load(self, tree: Tree) -> None:
        """It has all it needs, and answers."""
        if not tree.running or tree.dying:
            return
        if not self.take(tree, dict(tree.needs)):
            promised = tree.incarnation in self.records and not any(map(self.strangers, tree.needs))
            assert not promised, f"{tree} was promised what others of ours hold"
            self.crash(tree, "crowded")
            return
        tree.loaded, tree.busy = True, False
        if not self.down:
            self.asleep.pop(tree.incarnation, None)
            self.waking.discard(tree.incarnation)
        totals = dict(enumerate(map(self._cuda_total, tree.needs)))
        weights = sum(tree.needs.values()) // 2
        self.tell(events.Told(tree.incarnation, weights, kv_tokens=KV_TOKENS, totals=totals))
        self.tell(events.ProbePassed(tree.incarnation))
        if tree.fate in ("crash serving", "runs out serving"):
            self.later(self.dice.uniform(1, 900), lambda: self.crash(tree, tree.fate))
        elif tree.fate == "stuck serving":
            self.later(self.dice.uniform(1, 900), lambda: self.fail_probes(tree))

    def fail_probes(self, tree: Tree) -> None:
        """It is told again and again, for a daemon that was not there to hear."""
        if tree.running:
            self.tell(events.Unhealthy(tree.incarnation, "no answer to 3 probes"))
            self.later(60, lambda: self.fail_probes(tree))

    def crash(self, tree: Tree, why: str) -> None:
        self.exit(tree, 1, LAST_WORDS.get(why, ()))

    def exit(self, tree: Tree, code: int, tail: tuple[str, ...] = ()) -> None:
        """The leader ends; the rest of the tree, and the memory, wait for the kill."""
        if tree.running:
            tree.running = False
            self.cut(tree)
            self.tell(events.Exited(tree.incarnation, code, tail))

    def cut(self, tree: Tree) -> None:
        """Clients see their stream break, and leave."""
        for lease in [lease for lease, served in self.serving.items() if served == tree.incarnation]:
            self.later(self.dice.choice((0.0, 0.2)), lambda lease=lease: self.over(lease))  # type: ignore[misc]

    def over(self, lease: str) -> None:
        if self.serving.pop(lease, None) and self.outcomes[lease].ended is None:
            self.outcomes[lease].ended = self.now
            self.tell(events.Left(lease))

    @carry_out.register
    def _(self, order: orders.Terminate) -> None:
        tree = self.trees.get(order.incarnation)
        if tree and not tree.deaf:
            self.later(self.dice.choice((0.5, 3, 12)), lambda: self.exit(tree, 0))

    @carry_out.register
    def _(self, order: orders.Kill) -> None:
        tree = self.trees.get(order.incarnation)
        if tree is None or tree.gone:
            self.later(0.1, lambda: self.tell(events.TreeGone(order.incarnation)))
        elif not tree.dying:
            tree.dying = True
            self.later(0.1, lambda: self.exit(tree, -9))
            wait = self.dice.choice((20, 100)) if self.maybe(0.05) else 0.3
            if wait > 1:
                self.later(5, lambda: self.tell(events.Unkillable(tree.incarnation, (77,))))
            self.later(wait, lambda: self.swept(tree))

    def swept(self, tree: Tree) -> None:
        """Nobody is left of the tree; the driver gives its memory back when it likes."""
        tree.gone = True
        self.tell(events.TreeGone(tree.incarnation))
        leaks = tree.fate == "leaks" and not self.calm
        late = self.dice.uniform(30, 900) if leaks else self.dice.choice((0, 0, 2, 15))
        self.later(late, lambda: self.give_back(tree))

    def give_back(self, tree: Tree) -> None:
        if tree.gone and tree.incarnation not in self.records:
            self.muddled.update(tree.held)
        self.trees.pop(tree.incarnation, None)
        tree.held = {}

    @carry_out.register
    def _(self, order: orders.Forget) -> None:
        if (tree := self.trees.get(order.incarnation)) and tree.incarnation in self.spawned:
            self._memory_is_owed(tree)
        self.records.pop(order.incarnation, None)
        self.asleep.pop(order.incarnation, None)
        self.waking.discard(order.incarnation)
        self.pinned.discard(order.incarnation)

    @carry_out.register
    def _(self, order: orders.Pin) -> None:
        (self.pinned.add if order.pinned else self.pinned.discard)(order.incarnation)

    @carry_out.register
    def _(self, order: orders.Remember) -> None:
        self.almanac[order.profile] = (order.learned,)

    @carry_out.register
    def _(self, order: orders.RememberTotal) -> None:
        self.totals[order.card] = order.total

    def _memory_is_owed(self, tree: Tree) -> None:
        """What the driver still holds of a tree that is forgotten is promised to another that settles."""
        for device, size in tree.held.items():
            claims = self.fleet.claims().get(device, [])
            owed = sum(claim.reserved for claim in claims if claim.going)
            largest = max(profile.vram or 0 for profile in self.config.profiles.values())
            little = max(SETTLED_SLACK, (1 - SETTLED_SHARE) * largest)  # a neighbour's, that ended with it
            told_apart = device != HOST and device not in self.muddled and not self.releasing
            assert not told_apart or size <= owed + little, f"{tree} is forgotten, {claims} there"

    @carry_out.register
    def _(self, order: orders.Sleep) -> None:
        tree = self.trees[order.incarnation]
        self.asleep[order.incarnation] = order.level
        tree.busy, told = True, self.to_this_daemon()
        self.later(self.dice.choice((1, 6, 20)), lambda: self.fall_asleep(tree, order.level, told))

    def to_this_daemon(self) -> Callable[[Event], None]:
        """Tells what it asked for, unless it has died: then nobody hears."""
        life = self.lives
        return lambda event: self.tell(event) if self.lives == life else None

    def fall_asleep(self, tree: Tree, level: int, tell: Callable[[Event], None]) -> None:
        if not tree.running or tree.dying:
            return
        tree.busy = False
        if tree.fate == "no sleep":
            tell(events.SleepFailed(tree.incarnation, "500"))
            return
        if tree.fate != "lies asleep":
            host = {HOST: sum(tree.needs.values()) // 2} if level == 1 else {}
            tree.held = {device: RESIDUE for device in tree.held if device != HOST} | host
        tree.loaded = False
        tell(events.Slept(tree.incarnation))

    @carry_out.register
    def _(self, order: orders.Wake) -> None:
        tree = self.trees[order.incarnation]
        self.waking.add(order.incarnation)
        self.rouse(tree)

    def rouse(self, tree: Tree) -> None:
        tell = self.to_this_daemon()
        if tree.fate == "no wake":
            self.later(2, lambda: tell(events.WakeFailed(tree.incarnation, "500")))
            return
        tree.busy = True
        if tree.fate != "stays asleep":
            self.later(self.dice.choice((2, 30)), lambda: self.load(tree))

    @carry_out.register
    def _(self, order: orders.Prove) -> None:
        tree = self.trees[order.incarnation]
        if self.maybe(0.03):
            self.later(0.2, lambda: self.disown(tree))
        elif self.asleep.get(tree.incarnation):
            self.look_whether_asleep(tree, self.to_this_daemon(), self.now + 60)
        elif tree.loaded:
            told = self.to_this_daemon()
            self.later(0.5, lambda: told(events.ProbePassed(tree.incarnation)))

    def look_whether_asleep(self, tree: Tree, tell: Callable[[Event], None], until: float) -> None:
        """It answers when a sleep or wake under way is over. One that is awake is woken all the same."""
        if not tree.running or tree.incarnation not in self.asleep:
            return
        if tree.busy and self.now >= until:
            tell(events.WakeFailed(tree.incarnation, "no answer to /is_sleeping in time"))
        elif tree.busy:
            self.later(1, lambda: self.look_whether_asleep(tree, tell, until))
        elif tree.loaded:
            self.rouse(tree)
        else:
            tell(events.Slept(tree.incarnation))

    def disown(self, tree: Tree) -> None:
        """It cannot be proven ours: from now on a neighbour, until somebody ends it."""
        if tree.running and self.records.pop(tree.incarnation, None):
            self.tell(events.AdoptionFailed(tree.incarnation, "it has another key"))
            self.later(self.dice.uniform(60, 600), lambda: self.give_back(tree))

    @carry_out.register
    def _(self, order: orders.Grant) -> None:
        outcome = self.outcomes[order.lease]
        outcome.granted, outcome.profile = self.now, order.profile
        self.serving[order.lease] = order.incarnation
        tree = self.trees.get(order.incarnation)
        if tree is None or not tree.running:
            self.later(0.1, lambda: self.over(order.lease))
        elif tree.fate != "stuck serving":
            seconds = 0.1 + outcome.request.output / 40
            self.later(seconds, lambda: self._served(order.lease, order.incarnation))

    def _served(self, lease: str, incarnation: str) -> None:
        if self.serving.pop(lease, None):
            super()._served(lease, incarnation)

    # Clients

    def _arrive(self, request: Request) -> None:
        if self.down:
            return
        lease = f"r{len(self.outcomes)}"
        self.outcomes[lease] = Outcome(request)
        talk = self.dice.choice((None, "a", "b", "c"))
        person = self.dice.choice(("", "ann", "bob"))
        ask = Ask(request.model, request.key, request.prompt, conversation=talk, request=lease, person=person)
        self.tell(events.Arrived(lease, ask, self.config.server.max_wait))
        if request.patience is not None:
            self.later(request.patience, lambda: self._leave(lease))

    def _leave(self, lease: str) -> None:
        self.serving.pop(lease, None)
        super()._leave(lease)
