"""What must hold after every event, whatever happened: one checker for histories, chaos and the state machine.

It sees what the core sees and says, facts in and orders out, and remembers what it needs of them: who waits, who was
granted, which trees there are, when engines failed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from supervisor.core import events, kinds, orders
from supervisor.core.devices import HOST
from supervisor.core.engine import Engine
from supervisor.core.events import Event
from supervisor.core.failures import FailureClass
from supervisor.core.fleet import Fleet
from supervisor.core.lifecycle import HOLDING, LEAVING, LIVE, State
from supervisor.core.orders import Order
from supervisor.core.routing import Ask

SLACK = 1e-6
REFUSING = frozenset({State.BACKOFF, State.IMPOSSIBLE})
"""A person who asks for a start in these begins with a clean sheet."""

MEASURES = frozenset({State.STARTING, State.WAKING, State.ADOPTING})
"""vLLM may be measuring the GPU: nothing may be freed there in order."""

MOVES = MEASURES | {State.RESERVED, State.STOPPING, State.SETTLING}
"""What it holds changes: nobody else may start there."""


class Invariants:
    """Call it after every event of one daemon's life; a new daemon gets a new one. Raises AssertionError."""

    def __init__(self) -> None:
        self.waiting: set[str] = set()
        self.granted: set[str] = set()
        self.arrived: dict[str, float] = {}
        """Lease -> when it was asked for, of those that wait or were granted in this event."""
        self.trees: dict[str, str] = {}
        """Incarnation -> profile of every tree that was ordered or found and is not over."""
        self.totals: dict[str, int] = {}
        """Device -> bytes, as last told without trouble."""
        self._failures: dict[str, list[float]] = {}
        """Profile -> when it failed since its failures were last forgiven."""
        self._ready: dict[str, float] = {}
        """Profile -> since when it was ready."""
        self._states: dict[str, State] = {}
        self._calm: set[str] = set()
        """Profiles whose engine held what it holds, awake or asleep, before this event."""
        self._records: dict[str, Engine] = {}
        self._on_peers: dict[str, int] = {}
        """Peer -> requests in flight there when last looked."""

    def __call__(self, fleet: Fleet, event: Event, ordered: Sequence[Order]) -> None:
        self._facts(fleet, event)
        for order in ordered:
            self._order(fleet, order)
            self._quiet(fleet, order)
        self._fairness(fleet, [order for order in ordered if isinstance(order, orders.Grant)])
        self._memory(fleet)
        self._queue(fleet, event)
        for engine in fleet.engines.values():
            self._engine(fleet, engine)
        self._calm = {engine.name for engine in fleet.engines.values() if _is_calm(engine)}
        self._leases(fleet)
        self._configuration(fleet)
        self._kinds(fleet)
        self._time(fleet, event)

    # What went in and came out

    def _facts(self, fleet: Fleet, event: Event) -> None:
        if isinstance(event, events.Arrived):
            self.waiting.add(event.lease)
            self.arrived[event.lease] = fleet.now
        elif isinstance(event, events.Left):
            assert event.lease in self.waiting | self.granted, f"{event.lease} left without being there"
            self.waiting.discard(event.lease)
            self.granted.discard(event.lease)
        elif isinstance(event, events.Found):
            self._tree(event.profile, event.incarnation)
        elif isinstance(event, events.StartAsked) and self._states.get(event.profile) in REFUSING:
            self._failures[event.profile] = []

    def _order(self, fleet: Fleet, order: Order) -> None:
        if isinstance(order, orders.Spawn):
            self._tree(order.profile, order.incarnation)
        elif isinstance(order, orders.Refuse | orders.Grant):
            assert order.lease in self.waiting, f"{order.lease} ended twice, or never began"
            self.waiting.discard(order.lease)
            if isinstance(order, orders.Grant):
                self.granted.add(order.lease)
                place = fleet.place(order.profile)
                assert len(place.leases) <= place.slots, f"{place} was granted more than its slots"
        if isinstance(order, orders.Grant) and order.profile in fleet.peers:
            assert not order.incarnation, f"{order} for a peer, which has no tree"
            return
        incarnation = getattr(order, "incarnation", None)
        assert incarnation is None or incarnation in self.trees, f"{order} for a tree that is over"
        if isinstance(order, orders.Forget | orders.LetGo):
            del self.trees[order.incarnation]

    def _tree(self, profile: str, incarnation: str) -> None:
        assert profile not in self.trees.values(), f"{profile} runs twice"
        self.trees[incarnation] = profile

    def _fairness(self, fleet: Fleet, grants: Sequence[orders.Grant]) -> None:
        """Nobody starves: who has but one place to go is passed there by nobody who ranks behind it, but for those
        who share its key and have their turn."""
        charged = {order.lease: self._charge(fleet, order) for order in grants}
        counters = {w.ask.source: fleet.fairness.counter(w.ask.source) for w in fleet.queues}
        for order in grants:
            source = fleet.leases[order.lease].source
            counters.setdefault(source, fleet.fairness.counter(source))
            counters[source] -= charged[order.lease]
        for order in grants:
            source = fleet.leases[order.lease].source
            others = [w for w in fleet.queues if shares(w.ask, order.ask) and order.profile in w.profiles]
            beside = [self.arrived[other.lease] for other in grants if shares(other.ask, order.ask)]
            since = min(self.arrived[order.lease], *(w.arrived for w in others), *beside, math.inf)
            mine = self._rank(fleet, source, since, counters)
            for waiter in fleet.queues:
                if shares(waiter.ask, order.ask):
                    continue
                if waiter.profiles == (order.profile,) and order.profile in fleet.engines:
                    theirs = self._rank(fleet, waiter.ask.source, waiter.arrived, counters)
                    assert theirs >= mine, f"{order} passed {waiter}"
            counters[source] += charged[order.lease]
        self.arrived = {lease: at for lease, at in self.arrived.items() if lease in self.waiting}

    def _charge(self, fleet: Fleet, order: orders.Grant) -> float:
        granted = fleet.leases[order.lease]
        key = fleet.config.keys.get(granted.source)
        return granted.prompt / (key.weight if key else 1.0)

    def _rank(
        self, fleet: Fleet, source: str, arrived: float, counters: Mapping[str, float]
    ) -> tuple[bool, float, float]:
        """Batch that has not aged, tokens served to its key, arrival: the lowest is first."""
        key, aged = fleet.config.keys.get(source), fleet.now - arrived >= fleet.config.scheduling.ageing
        batch = key is not None and key.priority == "batch" and not aged
        return batch, round(counters[source], 3), arrived

    def _quiet(self, fleet: Fleet, order: Order) -> None:
        """One start a GPU at a time, and nothing is freed there meanwhile."""
        engine = fleet.current(getattr(order, "incarnation", None) or "")
        if engine is None:
            return
        beside = [e for e in fleet.engines.values() if e is not engine and _meet(e, engine)]
        if isinstance(order, orders.Spawn | orders.Wake):
            moving = [e for e in beside if e.state in MOVES or (e.state is State.SLEEPING and not e.settled)]
            assert not moving, f"{engine} comes up beside {moving}"
        elif isinstance(order, orders.Terminate | orders.Sleep) and engine.name in self._calm:
            measuring = [e for e in beside if e.state in MEASURES and self._states.get(e.name) in MEASURES]
            assert not measuring, f"{order} disturbs {measuring}"

    # What is the case now

    def _memory(self, fleet: Fleet) -> None:
        self.totals |= {r.device: r.total for r in fleet.ledger.survey.readings if not r.trouble}
        for device, claims in fleet.claims().items():
            promised = sum(claim.reserved for claim in claims)
            total = self.totals.get(device, promised)
            assert 0 <= promised <= total, f"{device} is promised twice: {promised} of {total} to {claims}"

    def _queue(self, fleet: Fleet, event: Event) -> None:
        assert len(fleet.queues) == len(self.waiting), f"{self.waiting} wait, the queues hold {fleet.queues}"
        assert bool(fleet.queues.groups) == bool(self.waiting), fleet.queues
        due = fleet.queues.next_deadline()
        assert due is None or due > fleet.now, "somebody waits past its bound"
        if isinstance(event, events.Arrived) and event.lease in fleet.queues:
            asked = next(w.profiles for w in fleet.queues if w.lease == event.lease)
            waiting = fleet.queues.ahead_of(frozenset(asked))
            bound = sum(fleet.place(name).room for name in asked)
            assert waiting <= bound, f"{waiting} wait for {asked}, at most {bound} may"

    def _engine(self, fleet: Fleet, engine: Engine) -> None:
        holding = engine.state in HOLDING
        assert (engine.incarnation is not None) == holding, engine
        assert bool(engine.reserved) == holding, engine
        assert len(engine.leases) <= engine.profile.max_concurrent, engine
        assert not engine.leases or engine.state in LIVE, engine
        assert engine.promised == sum(engine.leases.values()), engine
        if self._records.get(engine.name) is not engine:  # a new profile begins with a clean sheet
            self._records[engine.name], self._failures[engine.name] = engine, []
        before = self._states.get(engine.name, State.COLD)
        if engine.state is not before:
            self._states[engine.name] = engine.state
            self._moved(fleet, engine, before)

    def _moved(self, fleet: Fleet, engine: Engine, before: State) -> None:
        history, name = self._failures.setdefault(engine.name, []), engine.name
        if engine.state is State.READY:
            self._ready[name] = fleet.now
        elif before is State.READY and fleet.now - self._ready[name] >= fleet.config.restarts.reset_after:
            history.clear()
        last = engine.last_failure
        crowded = last is not None and last.kind is FailureClass.CONTENTION
        if engine.state in (State.BACKOFF, State.IMPOSSIBLE) and not crowded:
            history.append(fleet.now)
        if engine.state is State.BACKOFF:
            self._restart(fleet, engine, len(history))

    def _restart(self, fleet: Fleet, engine: Engine, failures: int) -> None:
        """Delays double up to the cap, jitter aside; they begin anew only after a long time ready."""
        policy, failure = fleet.config.restarts, engine.last_failure
        assert failure is not None
        assert engine.deadline is not None
        longest = policy.max_delay
        if failure.kind is FailureClass.CONTENTION:
            assert engine.deadline == fleet.now + policy.first_delay, (
                "it waits for its place, not for its sins"
            )
            return
        if failure.serving or failure.kind is not FailureClass.OUT_OF_MEMORY:
            longest = min(policy.first_delay * 2.0 ** min(failures - 1, 64), policy.max_delay)
        delay = engine.deadline - fleet.now
        assert longest * (1 - policy.jitter) - SLACK <= delay <= longest + SLACK, (engine, delay, longest)

    def _leases(self, fleet: Fleet) -> None:
        assert set(fleet.leases) == self.granted
        for engine in fleet.engines.values():
            assert engine.promised == sum(engine.leases.values()), engine
            for lease in engine.leases:
                held = fleet.leases.get(lease)
                assert held is not None, f"{engine} serves {lease}, which is over"
                assert (held.profile, held.incarnation) == (engine.name, engine.incarnation), held
        for peer in fleet.peers.values():
            there = {
                n for n, held in fleet.leases.items() if held.profile == peer.name and not held.incarnation
            }
            assert peer.leases == there
            # A limit that was lowered cuts nothing; no more are let in.
            before = self._on_peers.get(peer.name, 0)
            assert len(there) <= max(peer.config.max_concurrent, before), peer
            self._on_peers[peer.name] = len(there)

    def _configuration(self, fleet: Fleet) -> None:
        profiles = fleet.config.profiles
        for name, engine in fleet.engines.items():
            assert engine.outdated or profiles.get(name) == engine.profile, f"{engine} is not as configured"
            going = engine.state in LEAVING or engine.is_to_stop  # once nobody starts beside it
            assert going or not engine.outdated, f"{engine} is outdated, and stays"
        assert profiles.keys() <= fleet.engines.keys(), "a profile has no record"
        assert fleet.beside.keys() == fleet.engines.keys()
        assert fleet.mode.name is None or fleet.mode.name in fleet.config.modes
        assert fleet.peers.keys() == fleet.config.peers.keys()
        known = fleet.engines.keys() | fleet.peers.keys()
        assert all(known >= set(waiter.profiles) for waiter in fleet.queues), (
            "somebody waits for what has gone"
        )

    def _kinds(self, fleet: Fleet) -> None:
        """What was kept of a kind is what would be found now."""
        for (model, source, tasks, home), kind in fleet.kinds.items():
            assert kind == kinds.look(fleet, Ask(model, source, tasks=tasks), home, 0.0)

    def _time(self, fleet: Fleet, event: Event) -> None:
        due = fleet.next_deadline()
        if isinstance(event, events.Ticked):
            assert due is None or due > fleet.now, f"due at {due}, and still due: the clock would spin"
        told = fleet.due
        assert due is None or (told is not None and told <= due), f"due at {due}, and {told} was told"


def shares(one: Ask, other: Ask) -> bool:
    """Whether two people ask by one key, so that they take turns."""
    return one.source == other.source and one.person != other.person


def _meet(one: Engine, other: Engine) -> bool:
    return bool((set(one.devices) & set(other.devices)) - {HOST})


def _is_calm(engine: Engine) -> bool:
    return engine.state in (State.READY, State.DRAINING) or (
        engine.state is State.SLEEPING and engine.settled
    )
