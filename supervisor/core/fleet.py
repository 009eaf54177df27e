"""The core: owns all state and decides. `handle(event, now) -> orders`; no clock, no OS, no asyncio.

Every event goes through one door, changes the engines it is about, and ends in one dispatch: waiting
requests are placed, engines that are wanted are started. What `placement` decides, this module carries out.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import singledispatchmethod

from supervisor.config import Config
from supervisor.core import events, orders, placement, restarts
from supervisor.core.devices import HOST, Reading
from supervisor.core.engine import Engine
from supervisor.core.events import Event
from supervisor.core.failures import Failure, FailureClass, classify
from supervisor.core.fit import need, utilization
from supervisor.core.ledger import Claim, Ledger
from supervisor.core.lifecycle import LIVE, PROFILING, STARTABLE, State, Step
from supervisor.core.orders import Order
from supervisor.core.queueing import Queues, Waiter
from supervisor.core.routing import candidates
from supervisor.errors import DaemonRefused, EngineFailed, LlmdError, NotAvailable, Overloaded

SECOND_TERM = 3.0
"""vLLM swallows a SIGTERM while it loads; a second one works (measured: five of five)."""

SETTLED_SHARE = 0.9
SETTLED_SLACK = 256 << 20


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
    _out: list[Order] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.engines = {name: Engine(profile) for name, profile in self.config.profiles.items()}
        self.ledger = Ledger(self.config.memory)

    # The one door

    def handle(self, event: Event, now: float) -> list[Order]:
        """Take in one fact, decide, and return what to do, in order. `now`: monotonic seconds."""
        self.now, self._out = now, []
        self._on(event)
        self._look_at_deadlines()
        self._dispatch()
        return self._out

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

    # Facts

    @singledispatchmethod
    def _on(self, event: Event) -> None:
        raise TypeError(f"unknown event {event!r}")

    @_on.register
    def _(self, event: events.Ticked) -> None:
        """Deadlines are looked at after every event."""

    @_on.register
    def _(self, event: events.Arrived) -> None:
        if self.closing:
            self._refuse(event.lease, NotAvailable("llmd is shutting down", retry_after=10))
            return
        try:
            found = candidates(event.ask, self.config, self.available, back=self.mode.back)
        except LlmdError as error:
            self._refuse(event.lease, error)
            return
        waiter = Waiter(event.lease, event.ask, found, self.now, self.now + event.patience)
        bound = sum(self.engines[name].room for name in waiter.profiles)
        ahead = sum(other.ask.model == event.ask.model for other in self.queues)
        self.queues.add(waiter)
        if ahead >= bound:
            self._place(waiter)
            if event.lease in self.queues:
                self.queues.remove(event.lease)
                self._refuse(event.lease, self._overloaded(waiter, ahead))

    @_on.register
    def _(self, event: events.Left) -> None:
        if self.queues.remove(event.lease):
            return
        profile, incarnation = self.leases.pop(event.lease)
        engine = self.engines[profile]
        if engine.incarnation == incarnation:
            engine.leases.discard(event.lease)
            engine.last_used = self.now
            if not engine.leases:
                self._rest(engine)

    @_on.register
    def _(self, event: events.DevicesRead) -> None:
        for engine in self.engines.values():
            engine.measured = dict(event.measured.get(engine.incarnation or "", {}))
        self.ledger.take(event.survey, event.ours, self.claims())
        for engine in self.engines.values():
            if engine.state is State.RESERVED:
                self._spawn_if_still_fits(engine)
            elif engine.state is State.SETTLING:
                self._settle(engine)

    @_on.register
    def _(self, event: events.SpawnFailed) -> None:
        if engine := self._current(event.incarnation):
            self._ended(engine, Failure(FailureClass.IMPOSSIBLE, event.reason), tree_gone=True)

    @_on.register
    def _(self, event: events.Progressed) -> None:
        engine = self._current(event.incarnation)
        if engine and engine.state in (State.STARTING, State.ADOPTING):
            engine.progress = event.progress or engine.progress
            engine.deadline = self.now + self.config.engine.start_timeout

    @_on.register
    def _(self, event: events.ProbePassed) -> None:
        engine = self._current(event.incarnation)
        if engine is None or engine.state not in (State.STARTING, State.ADOPTING):
            return
        if engine.loading_since is not None:
            engine.load_seconds = self.now - engine.loading_since
        engine.step(Step.SERVE, self.now)
        engine.last_used, engine.progress, engine.last_failure = self.now, None, None
        engine.wanted = False
        self._rest(engine)
        self._note("engine_ready", engine, f"{engine.name} is ready", seconds=engine.load_seconds)
        self._out.append(orders.Survey())
        for ticket in self._taken(engine.start_tickets):
            self._out.append(orders.Answer(ticket, f"{engine.name} is ready"))

    @_on.register
    def _(self, event: events.Unhealthy) -> None:
        engine = self._current(event.incarnation)
        if engine and engine.state in (State.READY, State.DRAINING):
            self._fail(engine, Failure(FailureClass.TRANSIENT, event.reason))

    @_on.register
    def _(self, event: events.Exited) -> None:
        engine = self._current(event.incarnation)
        if engine is None or engine.state not in LIVE:
            return
        failure = engine.failure
        if failure is None and engine.state is not State.STOPPING:
            ready = engine.state not in (State.STARTING, State.ADOPTING)
            failure = classify(event.code, event.tail, was_ready=ready)
        self._ended(engine, failure)

    @_on.register
    def _(self, event: events.TreeGone) -> None:
        engine = self._current(event.incarnation)
        if engine and engine.state is State.SETTLING:
            engine.survivors = ()
            self._tree_is_gone(engine)

    @_on.register
    def _(self, event: events.Unkillable) -> None:
        if engine := self._current(event.incarnation):
            engine.survivors = event.pids

    @_on.register
    def _(self, event: events.Found) -> None:
        engine = self.engines[event.profile]
        engine.step(Step.ADOPT, self.now)
        engine.incarnation, engine.devices = event.incarnation, event.devices
        engine.reserved = {
            device: need(engine.profile, reading)
            for device in event.devices
            if (reading := self.ledger.reading(device))
        }
        engine.deadline = self.now + self.config.engine.start_timeout
        if event.alive:
            self._out.append(orders.Prove(event.incarnation))
        else:
            self._ended(engine, Failure(FailureClass.TRANSIENT, "the engine ended while llmd was down"))

    @_on.register
    def _(self, event: events.AdoptionFailed) -> None:
        engine = self._current(event.incarnation)
        if engine and engine.state is State.ADOPTING:
            engine.step(Step.RELEASE, self.now)
            engine.clear()
            self._note("adoption_failed", engine, event.reason, level="WARNING")

    @_on.register
    def _(self, event: events.StartAsked) -> None:
        engine = self.engines[event.profile]
        if engine.state is State.READY:
            self._out.append(orders.Answer(event.ticket, f"{engine.name} is ready already"))
            return
        if engine.state in (State.BACKOFF, State.IMPOSSIBLE):
            engine.step(Step.RELEASE, self.now)
            engine.failures.clear()
        engine.wanted = True
        engine.start_tickets.append(event.ticket)

    @_on.register
    def _(self, event: events.StopAsked) -> None:
        engine = self.engines[event.profile]
        engine.wanted = False
        if engine.state in (State.COLD, State.BACKOFF, State.IMPOSSIBLE):
            if engine.state is not State.COLD:
                engine.step(Step.RELEASE, self.now)
            self._out.append(orders.Answer(event.ticket, f"{engine.name} does not run"))
            return
        engine.stop_tickets.append(event.ticket)
        self._retire(engine, "asked by an operator", at_once=event.at_once)

    @_on.register
    def _(self, event: events.TicketDropped) -> None:
        for engine in self.engines.values():
            for tickets in (engine.start_tickets, engine.stop_tickets):
                if event.ticket in tickets:
                    tickets.remove(event.ticket)

    @_on.register
    def _(self, event: events.ModeChanged) -> None:
        self.mode = Mode(event.mode, event.next_mode, event.until)

    @_on.register
    def _(self, event: events.ShutdownAsked) -> None:
        self.closing = True
        for waiter in self.queues:
            self.queues.remove(waiter.lease)
            self._refuse(waiter.lease, NotAvailable("llmd is shutting down", retry_after=10))
        for engine in self.engines.values():
            engine.wanted = False
            if not event.keep_engines:
                self._retire(engine, "llmd is shutting down")

    # Engines going up

    def _start(self, engine: Engine) -> None:
        """Reserve; the spawn follows once a reading taken after the reservation agrees."""
        devices = self.ledger.devices_of(engine.profile)
        assert devices is not None
        engine.step(Step.RESERVE, self.now)
        engine.incarnation, engine.devices = self.name_incarnation(), devices
        engine.reserved = {device: need(engine.profile, self._reading(device)) for device in devices}
        self._out.append(orders.Survey())

    def _spawn_if_still_fits(self, engine: Engine) -> None:
        if any(self._reading(device).at < engine.since for device in engine.devices):
            return
        verdict = self.ledger.judge(engine.profile, self.claims(without=engine.name), self.now)
        if not verdict.admitted:
            engine.step(Step.RELEASE, self.now)
            engine.clear()
            return
        for device in engine.devices:
            reading = self._reading(device)
            engine.before[device] = (reading.used, 0, unattributed(reading))
        cards = [card for ref in engine.profile.gpus if (card := self.ledger.gpu(ref))]
        measure = cards[0] if cards and not cards[0].unified else self._reading(engine.devices[0])
        engine.step(Step.SPAWN, self.now)
        engine.loading_since, engine.failure = self.now, None
        engine.starts += 1
        engine.deadline = self.now + self.config.engine.start_timeout
        indices = tuple(card.index for card in cards if card.index is not None)
        share = utilization(engine.profile, measure)
        self._out.append(orders.Spawn(engine.name, engine.incarnation or "", engine.devices, indices, share))
        self._note("engine_starting", engine, f"{engine.name} starts", reserved=dict(engine.reserved))

    def _rest(self, engine: Engine) -> None:
        """Nothing in flight: the idle clock runs, or a drain is over."""
        engine.idle_since = self.now
        if engine.state is State.READY:
            ttl = engine.profile.idle_ttl
            engine.deadline = None if ttl is None else self.now + ttl

    # Engines going down

    def _retire(self, engine: Engine, why: str, *, at_once: bool = False) -> None:
        """Take an engine down in order; `at_once` cuts requests in flight."""
        if engine.state is State.RESERVED:
            engine.step(Step.RELEASE, self.now)
            engine.clear()
            self._answer_stopped(engine)
        elif engine.state is State.READY:
            engine.step(Step.DRAIN, self.now)
            engine.deadline = self.now + (0 if at_once else self.config.server.drain)
            self._note("engine_draining", engine, f"{engine.name} drains: {why}")
        elif engine.state is State.DRAINING and at_once:
            engine.deadline = self.now
        elif engine.state in (State.STARTING, State.ADOPTING):
            self._terminate(engine)
        self._go_on_draining(engine)

    def _go_on_draining(self, engine: Engine) -> None:
        """Stop a drained engine, unless memory freed now would abort a start on the same GPU."""
        if engine.state is not State.DRAINING:
            return
        overdue = engine.deadline is not None and engine.deadline <= self.now
        if engine.leases and not overdue:
            return
        if self._would_disturb(engine):
            engine.deadline = self.now + 1.0 if overdue else engine.deadline
            return
        self._terminate(engine)

    def _would_disturb(self, engine: Engine) -> bool:
        cards = set(engine.devices) - {HOST}
        return any(other.state in PROFILING and cards & set(other.devices) for other in self.engines.values())

    def _terminate(self, engine: Engine) -> None:
        engine.was_loading = engine.state in (State.STARTING, State.ADOPTING)
        self._remember_before(engine)
        engine.step(Step.STOP, self.now)
        engine.terminated = 1
        self._out.append(orders.Terminate(engine.incarnation or ""))
        engine.deadline = self.now + (SECOND_TERM if engine.was_loading else self.config.engine.stop_grace)

    def _climb(self, engine: Engine) -> None:
        """The next rung of the stop ladder: a second SIGTERM for one that loaded, then SIGKILL for all."""
        if engine.was_loading and engine.terminated == 1:
            engine.terminated = 2
            engine.deadline = self.now + self.config.engine.stop_grace
            self._out.append(orders.Terminate(engine.incarnation or ""))
        else:
            engine.deadline = None
            self._out.append(orders.Kill(engine.incarnation or ""))

    def _fail(self, engine: Engine, failure: Failure) -> None:
        """A live engine is no use any more: kill it whole."""
        self._remember_before(engine)
        engine.failure = failure
        engine.step(Step.STOP, self.now)
        self._out.append(orders.Kill(engine.incarnation or ""))

    def _remember_before(self, engine: Engine) -> None:
        for device, measured in engine.measured.items():
            if found := self.ledger.reading(device):
                engine.before[device] = (found.used, measured, unattributed(found))

    def _ended(self, engine: Engine, failure: Failure | None, *, tree_gone: bool = False) -> None:
        """The leader is gone, wanted or not. Its memory is ours until the device shows otherwise."""
        was_ready = engine.state in (State.READY, State.DRAINING)
        if engine.state is not State.STOPPING:
            self._remember_before(engine)
        engine.step(Step.EXIT, self.now)
        engine.failure, engine.gone_at = failure, None
        engine.leases.clear()
        engine.deadline = self.now + self.config.engine.settle_timeout
        if not tree_gone:
            self._out.append(orders.Kill(engine.incarnation or ""))
        if failure:
            engine.last_failure = failure
            engine.wanted = was_ready or engine.wanted
            self._note("engine_failed", engine, str(failure), level="ERROR", log=failure.tail)
            if not was_ready:
                self._tell_waiters(engine, failure)
        if tree_gone:
            self._tree_is_gone(engine)

    def _tree_is_gone(self, engine: Engine) -> None:
        """Host memory is back with its processes; of a GPU only a reading taken from now on is proof."""
        engine.gone_at = self.now
        if set(engine.devices) <= {HOST}:
            self._settle(engine)
        else:
            self._out.append(orders.Survey())

    def _tell_waiters(self, engine: Engine, failure: Failure) -> None:
        """It never came up: those who waited for it try their other candidates, or hear why."""
        message = f"{engine.name} failed to start: {failure}"
        for ticket in self._taken(engine.start_tickets):
            error = EngineFailed(message, log=failure.tail)
            self._out.append(orders.Answer(ticket, message, error))
        engine.wanted = False
        for waiter in self.queues:
            if engine.name in waiter.profiles:
                waiter.failed.add(engine.name)
                if not waiter.profiles:
                    self.queues.remove(waiter.lease)
                    self._refuse(
                        waiter.lease, NotAvailable(f"{message}\n" + "\n".join(failure.tail), retry_after=30)
                    )

    def _settle(self, engine: Engine) -> None:
        """Over once the tree is empty and every device shows the memory back."""
        gone_at = engine.gone_at
        if gone_at is None or not all(self._is_back(engine, device, gone_at) for device in engine.devices):
            return
        for device in engine.devices:
            self.ledger.quarantined.pop(device, None)
        incarnation, failure = engine.incarnation or "", engine.failure
        self._out.append(orders.Forget(incarnation))
        engine.clear()
        if failure is None:
            engine.step(Step.SETTLE, self.now)
            self._note("engine_stopped", engine, f"{engine.name} stopped, its memory is back")
        else:
            self._follow_up(engine, failure)
        self._answer_stopped(engine)

    def _is_back(self, engine: Engine, device: str, gone_at: float) -> bool:
        """Whether the device shows the memory back, held against `before`."""
        if device == HOST:
            return True
        reading = self.ledger.reading(device)
        if reading is None or reading.trouble or reading.at < gone_at:
            return False
        used, measured, orphaned = engine.before.get(device, (reading.total, 0, reading.total))
        named = self.ledger.survey.holders_known
        return (measured > 0 and reading.used <= used - SETTLED_SHARE * measured) or (
            unattributed(reading) <= orphaned + SETTLED_SLACK if named else reading.used <= used
        )

    def _quarantine(self, engine: Engine) -> None:
        """The deadline passed and the memory did not come back: never proceed in hope."""
        pids = ", ".join(map(str, engine.survivors)) or "none left, the driver holds it"
        why = f"memory of {engine.name} did not come back (processes: {pids})"
        for device in engine.devices:
            self.ledger.quarantined[device] = why
        self._note("device_quarantined", engine, why, level="ERROR", devices=engine.devices)

    def _follow_up(self, engine: Engine, failure: Failure) -> None:
        if engine.failures and engine.failures[-1] <= self.now - self.config.restarts.reset_after:
            engine.failures.clear()
        engine.failures.append(self.now)
        engine.failure = None
        verdict = restarts.decide(self.config.restarts, engine.failures, failure, self.rng)
        engine.last_reason = verdict.reason
        engine.step(Step.GIVE_UP if verdict.delay is None else Step.BACK_OFF, self.now)
        if verdict.delay is not None:
            engine.deadline = self.now + verdict.delay
        else:
            engine.wanted = False
        self._note("engine_restart_policy", engine, verdict.reason, level="WARNING")

    def _answer_stopped(self, engine: Engine) -> None:
        for ticket in self._taken(engine.stop_tickets):
            self._out.append(orders.Answer(ticket, f"{engine.name} stopped"))

    # Time

    def _look_at_deadlines(self) -> None:
        for engine in self.engines.values():
            if engine.state is State.DRAINING:
                self._go_on_draining(engine)
            elif engine.deadline is not None and engine.deadline <= self.now:
                self._deadline_of(engine)
        for waiter in self.queues:
            if waiter.deadline <= self.now:
                self.queues.remove(waiter.lease)
                self._refuse(waiter.lease, placement.too_late(self, waiter))

    def _deadline_of(self, engine: Engine) -> None:
        engine.deadline = None
        if engine.state in (State.STARTING, State.ADOPTING):
            minutes = self.config.engine.start_timeout / 60
            stage = engine.progress.stage if engine.progress else "before its first stage"
            text = f"no progress for {minutes:g} min while loading ({stage})"
            self._fail(engine, Failure(FailureClass.TRANSIENT, text))
        elif engine.state is State.READY and not engine.leases:
            self._retire(engine, "idle")
        elif engine.state is State.STOPPING:
            self._climb(engine)
        elif engine.state is State.SETTLING:
            self._quarantine(engine)
        elif engine.state is State.BACKOFF and not engine.wanted:
            engine.step(Step.RELEASE, self.now)

    # Placement

    def _dispatch(self) -> None:
        if self.closing:
            return
        hopeless: set[tuple[str, ...]] = set()
        for waiter in self.queues:
            if waiter.profiles not in hopeless and not self._place(waiter):
                hopeless.add(waiter.profiles)
        for engine in self.engines.values():
            if engine.wanted and engine.state in STARTABLE and engine.deadline is None:
                self._pursue(engine)

    def _place(self, waiter: Waiter) -> bool:
        """Try to give a waiter its lease, or its refusal. False while it goes on waiting."""
        choice = placement.choose(self, waiter)
        if isinstance(choice, LlmdError):
            self.queues.remove(waiter.lease)
            self._refuse(waiter.lease, choice)
            return True
        if choice is None:
            return False
        engine, reason = self.engines[choice.profile], choice.reason
        if engine.state is State.READY:
            self.queues.remove(waiter.lease)
            self._grant(waiter, engine, reason)
            return True
        self._make_way(engine, choice.victims)
        return False

    def _grant(self, waiter: Waiter, engine: Engine, reason: str) -> None:
        incarnation = engine.incarnation or ""
        engine.leases.add(waiter.lease)
        engine.idle_since = engine.deadline = None
        engine.last_used = self.now
        self.leases[waiter.lease] = (engine.name, incarnation)
        self._out.append(orders.Grant(waiter.lease, engine.name, incarnation, reason))

    def _make_way(self, engine: Engine, victims: tuple[str, ...]) -> None:
        """Start it, or first stop who stands in its way."""
        if engine.state not in STARTABLE:
            return
        for name in victims:
            self._note("evict", self.engines[name], f"{name} makes room for {engine.name}")
            self._retire(self.engines[name], f"{engine.name} needs its memory")
        if not victims:
            self._start(engine)

    def _pursue(self, engine: Engine) -> None:
        """Start an engine that an operator or the restart policy wants, or say why not."""
        way = placement.way_to_start(self, engine)
        if isinstance(way, placement.Way):
            self._make_way(engine, way.victims)
        elif not way.transient:
            engine.wanted = False
            if engine.state is State.BACKOFF:
                engine.step(Step.RELEASE, self.now)
            engine.last_reason = way.message
            for ticket in self._taken(engine.start_tickets):
                self._out.append(orders.Answer(ticket, way.message, DaemonRefused(way.message)))
            self._note("start_refused", engine, way.message, level="WARNING")

    # Small words

    def _current(self, incarnation: str) -> Engine | None:
        """The engine whose present incarnation this is; facts about older ones are void."""
        return next((e for e in self.engines.values() if e.incarnation == incarnation), None)

    def _reading(self, device: str) -> Reading:
        reading = self.ledger.reading(device)
        assert reading is not None, f"{device} was never read"
        return reading

    def _refuse(self, lease: str, error: LlmdError) -> None:
        self._out.append(orders.Refuse(lease, error))

    def _overloaded(self, waiter: Waiter, ahead: int) -> Overloaded:
        limits = ", ".join(
            f"{name} {len(self.engines[name].leases)}/{self.config.profiles[name].max_concurrent}"
            for name in waiter.profiles
        )
        return Overloaded(
            f"model {waiter.ask.model!r} is at its limit: in flight {limits}, {ahead} waiting", retry_after=5
        )

    def _note(
        self, event: str, engine: Engine, message: str, *, level: str = "INFO", **facts: object
    ) -> None:
        self._out.append(orders.Note(event, engine.name, message, level, facts))

    @staticmethod
    def _taken(tickets: list[str]) -> list[str]:
        taken = list(tickets)
        tickets.clear()
        return taken


def unattributed(reading: Reading) -> int:
    """Bytes in use that no listed process accounts for."""
    return max(0, reading.used - sum(holder.used or 0 for holder in reading.holders))
