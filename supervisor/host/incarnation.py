"""One running engine as the shell holds it: its tree, its record, its socket, and the watchers that report.

Facts go out through `post`; nothing here decides anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp

from supervisor.config import Config, Profile
from supervisor.core import events
from supervisor.core.devices import GIB
from supervisor.core.events import Event
from supervisor.core.progress import read_facts, read_progress, read_totals
from supervisor.host import enginelog, probe, slumber, stall
from supervisor.host.breaker import Breaker
from supervisor.host.journal import Journal, Record
from supervisor.host.logbook import log
from supervisor.host.process import Tree
from supervisor.host.upstream import Pool

READY_PAUSE = 0.25
UNHEALTHY_AFTER = 3
MARKER = "--- llmd starts incarnation"
TAIL_LINES = 60
DEEP_LINES = 1000
"""How far back a load tells its sizes, or a dead engine the cause: each request in flight may add a traceback after
it."""
KILL_AGAIN = 5.0

Post = Callable[[Event], None]


@dataclass(slots=True)
class Incarnation:
    record: Record
    profile: Profile
    config: Config
    journal: Journal
    post: Post
    tree: Tree | None = None
    session: aiohttp.ClientSession | None = None
    doomed: bool = False
    """Ordered killed, perhaps before there was a tree to kill."""
    in_flight: int = 0
    """Requests that hold a lease on it."""
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _guards: list[asyncio.Task[None]] = field(default_factory=list)
    """What watches it while it serves."""
    pool: Pool = field(init=False)
    breaker: Breaker = field(init=False)

    def __post_init__(self) -> None:
        limits = self.config.engine
        self.pool = Pool(self.socket, self.record.key, limits.connect_timeout)
        self.breaker = Breaker(limits.breaker_failures, limits.breaker_window)

    @property
    def name(self) -> str:
        return self.record.incarnation

    @property
    def socket(self) -> Path:
        return self.journal.socket(self.name)

    @property
    def pid(self) -> int | None:
        return self.record.pid

    @property
    def log(self) -> Path:
        return Path(self.record.log)

    def tail(self, count: int = TAIL_LINES) -> tuple[str, ...]:
        """The last lines that this incarnation wrote, none of an earlier one's."""
        lines = enginelog.tail(self.log, count, max_bytes=max(64 << 10, count << 8))
        starts = [number for number, line in enumerate(lines) if line.startswith(MARKER)]
        return tuple(lines[starts[-1] + 1 :] if starts else lines)

    def mark_log(self) -> None:
        """Write where this incarnation's lines begin."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        log = enginelog.open_append(self.log)
        try:
            os.write(log, f"{MARKER} {self.name} of {self.profile.name}\n".encode())
        finally:
            os.close(log)

    def open_session(self) -> aiohttp.ClientSession:
        """For what is no plain request and answer: batches and websockets."""
        if self.session is None:
            self.session = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(path=str(self.socket), limit=0, keepalive_timeout=60),
                headers={"Authorization": f"Bearer {self.record.key}"},
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
                auto_decompress=False,
                read_bufsize=1 << 18,
            )
        return self.session

    def count_failure(self, why: str) -> None:
        """A request failed before its first byte. Too many in a row are a fact for the core."""
        if self.breaker.failed(time.monotonic()):
            limit = self.config.engine.breaker_failures
            self.post(events.Unhealthy(self.name, f"{limit} requests in a row failed, the last one: {why}"))

    # Watching

    def watch(self, *, loading: bool) -> None:
        """Report exit, and, while it loads, progress and readiness. Call once the tree is held."""
        self._spawn(self._watch_exit())
        self._spawn(enginelog.keep(self.log, self.config.engine.log_size))
        if loading:
            self._spawn(self._watch_loading())

    def watch_health(self) -> None:
        """From now on, and anew after each sleep: health, and whether it still computes."""
        for guard in self._guards:
            guard.cancel()
        self._guards = [self._spawn(self._watch_health()), self._spawn(self._watch_stall())]

    def kill(self) -> None:
        self._spawn(self._kill())

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        self._spawn(work)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _watch_exit(self) -> None:
        assert self.tree is not None
        code = await self.tree.exited()
        self.post(events.Exited(self.name, code, await asyncio.to_thread(self.tail, DEEP_LINES)))

    async def _watch_loading(self) -> None:
        progress = asyncio.create_task(self._report_progress(self.log.stat().st_size))
        try:
            await self._until_ready()
        finally:
            progress.cancel()
        lines = await asyncio.to_thread(self.tail, DEEP_LINES)
        self._learn(lines)
        self.post(events.Told(self.name, totals=read_totals(lines)))
        await self._tell_version()
        self.post(events.ProbePassed(self.name))

    async def _report_progress(self, offset: int) -> None:
        async for line in enginelog.follow(self.log, offset):
            self.post(events.Progressed(self.name, read_progress(line)))

    def _learn(self, lines: Iterable[str]) -> None:
        """What the log told of the engine's size goes to the core, and with the next record to later daemons."""
        facts = {name: value for line in lines for name, value in read_facts(line).items()}
        weights, tokens = facts.get("weights_gib"), facts.get("kv_cache_tokens")
        if isinstance(weights, float):  # of one rank; the others' are alike
            self.record = replace(self.record, weights=int(weights * GIB) * max(1, len(self.profile.gpus)))
        if isinstance(tokens, float):
            self.record = replace(self.record, kv_tokens=int(tokens))
        self._tell()

    def _tell(self) -> None:
        self.post(events.Told(self.name, self.record.weights, self.record.kv_tokens))

    async def _until_ready(self) -> None:
        """Ready is `/health` and one real request: an engine may be healthy and die of its first request."""
        while True:
            if self.socket.exists() and await probe.health(self.socket, self.record.key):
                with contextlib.suppress(probe.ProbeFailed):
                    await probe.tiny_request(
                        self.socket, self.record.key, self.profile.task, self.record.models[0]
                    )
                    return
            await asyncio.sleep(READY_PAUSE)

    async def _tell_version(self) -> None:
        """Before it counts as ready: how long the start took belongs to the version that took it."""
        version = await probe.version(self.socket, self.record.key)
        self.post(events.Told(self.name, version=version))

    async def _watch_health(self) -> None:
        failed = 0
        while failed < UNHEALTHY_AFTER:
            await asyncio.sleep(self.config.engine.health_interval)
            failed = 0 if await probe.health(self.socket, self.record.key) else failed + 1
        self.post(events.Unhealthy(self.name, f"{failed} health probes in a row failed"))

    async def _watch_stall(self) -> None:
        limits = self.config.engine
        pulse = stall.Pulse(self.socket, self.record.key, self.profile.task, self.record.models[0])
        await stall.until_hung(
            pulse,
            lambda: self.in_flight > 0,
            limits.stall_timeout,
            min(limits.health_interval, limits.stall_timeout / 8),
        )
        why = f"healthy, but no token in {limits.stall_timeout:g} s with {self.in_flight} requests in flight"
        self.post(events.Unhealthy(self.name, why))

    async def _kill(self) -> None:
        assert self.tree is not None
        while survivors := await self.tree.kill():
            self.post(events.Unkillable(self.name, tuple(sorted(survivors))))
            await asyncio.sleep(KILL_AGAIN)
        self.post(events.TreeGone(self.name))

    async def prove(self) -> None:
        """Whether an adopted tree is the engine we left: socket, key, names, and who listens."""
        assert self.tree is not None
        try:
            names = await probe.models(self.socket, self.record.key)
            listener = await asyncio.to_thread(probe.listener, self.socket)
            if not set(self.record.models) <= set(names):
                raise probe.ProbeFailed(f"{self.socket} serves {', '.join(names)}")
            if listener not in await asyncio.to_thread(self.tree.members):
                raise probe.ProbeFailed(f"{self.socket} is held by pid {listener}, not by the engine")
        except probe.ProbeFailed as error:
            self.post(events.AdoptionFailed(self.name, error.message))
            return
        await self._tell_version()
        self.watch(loading=False)
        self._tell()
        if self.record.asleep:
            await self._look_whether_asleep()
        else:
            self.post(events.ProbePassed(self.name))

    # Sleep

    async def sleep(self, level: int) -> None:
        """Recorded first: a daemon that dies meanwhile leaves no engine that sleeps and is taken for awake."""
        try:
            await self.remember(asleep=level, waking=False)
            await slumber.fall_asleep(self.socket, self.record.key, level, self.config.engine.sleep_timeout)
        except (probe.ProbeFailed, OSError) as error:
            self.post(events.SleepFailed(self.name, str(error)))
        else:
            self.post(events.Slept(self.name))

    async def wake(self, level: int) -> None:
        """Also where a wake was broken off: until it has served, an engine at level 2 may lack its weights."""
        await self._note_waking(level, waking=True)
        try:
            async with asyncio.timeout(self.config.engine.wake_timeout) as limit:
                await slumber.wake_up(self.socket, self.record.key, level, self.config.engine.wake_timeout)
                await self._until_ready()
        except (probe.ProbeFailed, TimeoutError) as error:
            late = f"not within {self.config.engine.wake_timeout:g} s"
            self.post(events.WakeFailed(self.name, late if limit.expired() else str(error)))
            return
        await self._note_waking(0, waking=False)
        self.post(events.ProbePassed(self.name))

    async def _note_waking(self, asleep: int, *, waking: bool) -> None:
        """On a full disk it wakes all the same; a later daemon then wakes it once more."""
        try:
            await self.remember(asleep=asleep, waking=waking)
        except OSError as error:
            log("record_not_written", "ERROR", profile=self.profile.name, message=str(error))

    async def _look_whether_asleep(self) -> None:
        """An engine of an earlier daemon, which did not see the end of its sleep or its waking."""
        try:
            asleep = await slumber.is_sleeping(self.socket, self.record.key, self.config.engine.sleep_timeout)
        except probe.ProbeFailed as error:
            self.post(events.WakeFailed(self.name, error.message))
            return
        if asleep:
            self.post(events.Slept(self.name))
        else:
            await self.wake(self.record.asleep)

    # Ends

    async def remember(self, **changes: Any) -> None:
        """Write down what changed. Whoever writes last writes all that is known by then."""
        self.record = replace(self.record, **changes)
        async with self._writing:
            await asyncio.to_thread(self.journal.write, self.record)

    async def close(self) -> None:
        """Stop watching; the engine itself is not touched."""
        for task in list(self._tasks):
            if task is not asyncio.current_task():
                task.cancel()
        self.pool.close()
        if self.session is not None:
            await self.session.close()
        if self.tree is not None:
            self.tree.close()
