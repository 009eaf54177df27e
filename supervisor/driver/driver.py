"""The only shell: facts go to the core, its orders are carried out, what comes of them is posted as facts."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import singledispatchmethod
from pathlib import Path
from typing import Any

from supervisor.config import Config, Profile
from supervisor.core import decide, events, orders, outlook
from supervisor.core.devices import Survey
from supervisor.core.events import Event
from supervisor.core.fleet import Fleet
from supervisor.core.orders import Order
from supervisor.core.requests import Outcome, Requests
from supervisor.core.routing import Ask
from supervisor.core.status import describe
from supervisor.core.tally import Tally
from supervisor.core.why import explain
from supervisor.driver.books import Books
from supervisor.driver.engines import Engines
from supervisor.driver.lease import Lease
from supervisor.driver.operators import Operators
from supervisor.driver.reloading import Reloading
from supervisor.errors import EngineDied, LlmdError
from supervisor.host import logbook, pagecache, probe, weights
from supervisor.host.activity import Register
from supervisor.host.gpus import Gpus
from supervisor.host.journal import Journal
from supervisor.host.logbook import log
from supervisor.host.memory import read_host_memory
from supervisor.host.modekeeper import ModeKeeper
from supervisor.host.peers import Peers
from supervisor.host.usage import measure

DEATH_TOLD = 1.0
"""Seconds in which the end of a process is told, once its connections broke."""


class Driver:
    def __init__(self, config: Config, journal: Journal, gpus: Gpus) -> None:
        self.gpus = gpus
        self.started_at = time.monotonic()
        self.fleet = Fleet(config, name_incarnation=lambda: secrets.token_hex(4), rng=random.Random())
        self.tally = Tally()
        self.modes = ModeKeeper(lambda: self.config, self.post)
        self.books = Books(self.fleet)
        self.engines = Engines(journal, self.fleet, self.post, self._later)
        self.peers = Peers(config, os.environ, self.post)
        self.reloading = Reloading(self)
        self.operators = Operators(self.fleet, self.modes, self.post)
        self.requests = Requests()
        """The last ones, for those who ask why."""
        self._leases: dict[str, asyncio.Future[orders.Grant]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._armed: float | None = None
        """What it is set for."""
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self.announce: Callable[[], dict[str, Any]] = dict
        """What the daemon adds to `status`: listening addresses, mode, warnings."""

    @property
    def config(self) -> Config:
        """The one that holds; whoever needs it reads it here each time."""
        return self.fleet.config

    async def open(self) -> None:
        """Recall what was learned, read the devices once, so that the first decision rests on facts; then keep
        reading."""
        self.fleet.recall(await self.books.recall(self.config))
        self.fleet.ledger.totals.update(await self.books.totals())
        self.gpus.start(
            lambda survey: self._later(self._report(survey)),
            lambda device, xid: self.post(events.XidReported(device, xid)),
        )
        await self._report(await self.gpus.read())
        self.peers.open()

    async def close(self) -> None:
        """Let go of everything; engines that still run are left running."""
        if self._timer:
            self._timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        await self.engines.close()
        await self.peers.close()
        self.gpus.close()
        await self.books.close()

    # Facts in, orders out

    def post(self, event: Event) -> None:
        """The one way in. Synchronous, so that nothing is read before and acted on after an await."""
        self._decide(event)

    def _decide(self, event: Event) -> list[Order]:
        """What was ordered, and is carried out."""
        ordered = decide.handle(self.fleet, event, time.monotonic())
        for order in ordered:
            self._obeys[type(order)](self, order)
        if self.fleet.due != self._armed:
            self._set_timer()
        self._changed.set()
        return ordered

    async def until(self, condition: Callable[[Fleet], bool], timeout: float) -> bool:
        """Wait for a condition on the fleet; whether it came true in time."""
        try:
            async with asyncio.timeout(timeout):
                while not condition(self.fleet):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def _set_timer(self) -> None:
        """For the core's next deadline. One that is earlier than need be stays: the core looks, and says when next."""
        due = self.fleet.due
        if self._timer and self._armed is not None and due is not None and self._armed <= due:
            return
        if self._timer:
            self._timer.cancel()
        self._timer, self._armed = None, due
        if due is not None:
            delay = max(0.0, due - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self._tick)

    def _tick(self) -> None:
        self._timer = self._armed = None
        self.post(events.Ticked())

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _report(self, survey: Survey) -> None:
        host = read_host_memory()
        whole = Survey(
            (*survey.readings, host), survey.at, survey.trouble, survey.driver, survey.holders_known
        )
        measured, ours = await asyncio.to_thread(
            measure, self.engines.trees(), whole, dict(self.operators.borrowers)
        )
        self.post(events.DevicesRead(whole, measured, ours))

    # Orders

    @singledispatchmethod
    def _obey(self, order: Order) -> None:
        raise TypeError(f"unknown order {order!r}")

    @_obey.register
    def _(self, order: orders.Spawn) -> None:
        self.engines.launch(order)

    @_obey.register
    def _(self, order: orders.Terminate) -> None:
        if (engine := self.engines.get(order.incarnation)) and engine.tree:
            engine.tree.terminate()

    @_obey.register
    def _(self, order: orders.Kill) -> None:
        if engine := self.engines.get(order.incarnation):
            engine.doomed = True
            if engine.tree:
                engine.kill()

    @_obey.register
    def _(self, order: orders.Sleep) -> None:
        if engine := self.engines.get(order.incarnation):
            engine.run(engine.sleep(order.level))

    @_obey.register
    def _(self, order: orders.Wake) -> None:
        if engine := self.engines.get(order.incarnation):
            engine.run(engine.wake(order.level))

    @_obey.register
    def _(self, order: orders.Prove) -> None:
        if not (engine := self.engines.get(order.incarnation)):
            return
        if engine.record.ready:
            engine.run(engine.prove())
        else:
            engine.watch(loading=True)

    @_obey.register
    def _(self, order: orders.Watch) -> None:
        self.engines.ready(order.incarnation)

    @_obey.register
    def _(self, order: orders.LetGo) -> None:
        self.engines.let_go(order.incarnation, order.why)

    @_obey.register
    def _(self, order: orders.Pin) -> None:
        if engine := self.engines.get(order.incarnation):
            engine.run(engine.remember(pinned=order.pinned))

    @_obey.register
    def _(self, order: orders.ReadAhead) -> None:
        self._later(self._read_ahead(self.config.profiles[order.profile]))

    @_obey.register
    def _(self, order: orders.Forget) -> None:
        self.engines.forget(order.incarnation)

    @_obey.register
    def _(self, order: orders.Survey) -> None:
        self._later(self._survey())

    @_obey.register
    def _(self, order: orders.Routed) -> None:
        self.requests.routed(order.ask, order.route, self.fleet.now)

    @_obey.register
    def _(self, order: orders.Grant) -> None:
        ask, now = order.ask, self.fleet.now
        if order.route is None:
            self.requests.granted(ask.request, order.profile, order.reason, now)
        elif ask.request:
            self.requests.routed(ask, order.route, now, order.profile, order.reason)
        waiting = self._leases.get(order.lease)
        if waiting and not waiting.done():
            waiting.set_result(order)

    @_obey.register
    def _(self, order: orders.Refuse) -> None:
        waiting = self._leases.get(order.lease)
        if waiting and not waiting.done():
            waiting.set_exception(order.error)

    @_obey.register
    def _(self, order: orders.Answer) -> None:
        self.operators.answer(order)

    @_obey.register
    def _(self, order: orders.Remember) -> None:
        self.books.remember(order.profile, order.learned)

    @_obey.register
    def _(self, order: orders.RememberTotal) -> None:
        self.books.remember_total(order.card, order.total)

    @_obey.register
    def _(self, order: orders.Note) -> None:
        self.tally.take(order, time.monotonic())
        log(order.event, order.level, profile=order.profile, message=order.message, **order.facts)
        self.books.note(order)

    _obeys = _obey.dispatcher.registry
    """How an order of a type is carried out."""

    async def _survey(self) -> None:
        await self._report(await self.gpus.read())

    async def _read_ahead(self, profile: Profile) -> None:
        found = await asyncio.to_thread(weights.locate, profile, self.config, os.environ)
        if found is None:  # nothing downloaded yet
            return
        try:
            size = await asyncio.to_thread(pagecache.warm, found)
        except OSError as error:
            log("read_ahead_failed", "WARNING", profile=profile.name, message=str(error))
            return
        log("read_ahead", profile=profile.name, bytes=size)

    # What the web and the command line ask for

    @asynccontextmanager
    async def lease(self, ask: Ask, patience: float | None = None) -> AsyncIterator[Lease]:
        """The right to use an engine for `ask`, waited for at most `patience` seconds. Raises LlmdError."""
        name, began, lease = self._number(), time.monotonic(), None
        waiting: asyncio.Future[orders.Grant] = asyncio.get_running_loop().create_future()
        self._leases[name] = waiting
        self.post(events.Arrived(name, ask, self.config.server.max_wait if patience is None else patience))
        try:
            grant = await waiting
            lease = self._leased(grant, began)
            yield lease
        except LlmdError as error:
            self.requests.failed(ask.request, error, time.monotonic())
            raise
        finally:
            del self._leases[name]
            if lease is not None:
                self.give_back(lease)
            elif name in self.fleet.leases or name in self.fleet.queues:
                self.post(events.Left(name))

    def lease_at_once(self, ask: Ask) -> Lease | None:
        """What `lease` would give without waiting, to be given back; None where it would wait, or refuse."""
        name = self._number()
        told = self._decide(events.Arrived(name, ask, 0.0, at_once=True))[0]  # what becomes of it
        if not isinstance(told, orders.Grant):
            return None
        engine = self.engines.get(told.incarnation)
        if engine is None:
            self.post(events.Left(name))
            return None
        engine.in_flight += 1
        return Lease(told.profile, told.reason, 0.0, "warm", engine, name)

    def give_back(self, lease: Lease) -> None:
        """Once; a second time is of no effect."""
        if lease.name in self.fleet.leases:
            lease.count(-1)
            self._decide(events.Left(lease.name, lease.prompt, lease.output))

    def broke_off(self, request: str, error: LlmdError) -> None:
        """Note why a lease that was given at once came to nothing, for those who ask why."""
        self.requests.failed(request, error, time.monotonic())

    def _number(self) -> str:
        """A name that no lease had."""
        return f"r{next(self._numbers)}"

    def _leased(self, grant: orders.Grant, arrived: float) -> Lease:
        place = self.engines.get(grant.incarnation)
        if place is None and grant.profile not in self.peers:
            raise EngineDied(f"{grant.profile} ended just now", retry_after=5)
        waited, hit = time.monotonic() - arrived, self._hit(grant.profile, arrived)
        found = place or self.peers[grant.profile]
        lease = Lease(grant.profile, grant.reason, waited, hit, found, grant.lease)
        lease.count(1)
        return lease

    def _hit(self, profile: str, arrived: float) -> str:
        """What a request that has its lease found: an engine that was "warm", "waking" or "cold", or a "peer"."""
        if profile in self.peers:
            return "peer"
        return "warm" if self.fleet.engines[profile].ready_since <= arrived else self.tally.way(profile)

    async def is_over(self, lease: Lease) -> bool:
        """Whether the place of a lease that failed has ended: an engine that died is known to be gone at once, a
        peer is taken for down until it answers again."""
        if lease.peer is not None:
            self.post(events.PeerLost(lease.profile, "it broke off a request"))
            return True
        name = lease.incarnation
        return await self.until(lambda fleet: not fleet.serves(name), DEATH_TOLD)

    def ended(self, request: str, outcome: Outcome) -> None:
        """Note what became of a request."""
        self.requests.ended(request, outcome)

    def joined(self, request: str, others: Sequence[str]) -> None:
        """Note that they go with `request`, in one call."""
        self.requests.joined(request, others)

    def why_request(self, request: str) -> dict[str, Any]:
        """Where a request might have gone, and why it went where it did. Raises ModelNotFound."""
        return self.requests.describe(request)

    async def reload(self, *, plan: bool = False) -> dict[str, Any]:
        """See Reloading.reload."""
        return await self.reloading.reload(plan=plan)

    @property
    def register(self) -> Register:
        return self.books.register

    @property
    def own_log(self) -> Path:
        """Beside the engines' directory, in which a profile may have any name."""
        return self.config.server.state_dir / "llmd.log"

    def log_path(self, profile: str) -> Path:
        return self.engines.log_path(profile)

    def status(self) -> dict[str, Any]:
        """All that is known now, as JSON."""
        engines = self.engines
        body = describe(self.fleet, engines.pids(), engines.strays, self.log_path, time.monotonic())
        body["disk_trouble"] = self.books.trouble()
        body["dropped"] = {**self.books.lost, "log_line": logbook.dropped()}
        body["suppressed"] = logbook.suppressed()
        uptime = time.monotonic() - self.started_at
        body["daemon"] = {"pid": os.getpid(), "uptime_s": round(uptime, 1), **self.announce()}
        return body

    async def engine_metrics(self) -> dict[str, bytes]:
        """Profile -> what its engine tells Prometheus, of those that answer."""
        engines = [engine for engine in self.engines if engine.record.ready]
        told = await asyncio.gather(*(probe.metrics(e.socket, e.record.key) for e in engines))
        return {e.profile.name: text for e, text in zip(engines, told, strict=True) if text is not None}

    def why(self, name: str) -> dict[str, Any]:
        """Why a profile, or every profile of a model, is as it is. Raises ModelNotFound."""
        return explain(self.fleet, name)

    def progress(self, name: str) -> str:
        """How far a model has come, for people who wait for it. Raises ModelNotFound."""
        self.fleet.now = time.monotonic()
        return outlook.progress(self.fleet, name)

    async def decisions(self, name: str | None, since: float | None, limit: int) -> list[dict[str, Any]]:
        """The newest decisions about a profile or a model, oldest first. `since`: seconds back."""
        return await self.books.decisions(name, since, limit)
