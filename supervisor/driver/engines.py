"""Our processes: launched by the core's word, adopted from an earlier daemon, let go. Nothing here decides."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

from supervisor.config import Config, Profile
from supervisor.core import command, events, orders
from supervisor.core.fleet import Fleet
from supervisor.core.status import Stray
from supervisor.errors import LlmdError
from supervisor.host import cgroup, process, procfs
from supervisor.host.incarnation import Incarnation, Post
from supervisor.host.journal import Journal, Record
from supervisor.host.logbook import log
from supervisor.host.tree import Tree

Later = Callable[[Coroutine[Any, Any, None]], None]


class Engines:
    """`fleet` is read for the configuration, and for what was ordered while a launch was under way; `later` has work
    done beside."""

    def __init__(self, journal: Journal, fleet: Fleet, post: Post, later: Later) -> None:
        self._journal, self._fleet = journal, fleet
        self._post, self._later = post, later
        self._group = cgroup.delegated_root()
        self._running: dict[str, Incarnation] = {}
        self.strays: list[Stray] = []
        """What could not be proven ours, and is left alone."""

    @property
    def _config(self) -> Config:
        return self._fleet.config

    def reconfigure(self) -> None:
        """Limits hold for those that run, too; the profile only where it is still theirs."""
        for engine in self:
            engine.config, recorded = self._config, self._fleet.engines.get(engine.profile.name)
            if recorded and recorded.incarnation == engine.name:
                engine.profile = recorded.profile

    def __iter__(self) -> Iterator[Incarnation]:
        return iter(list(self._running.values()))

    def get(self, incarnation: str) -> Incarnation | None:
        return self._running.get(incarnation)

    def trees(self) -> dict[str, Tree]:
        return {name: engine.tree for name, engine in self._running.items() if engine.tree}

    def pids(self) -> dict[str, int | None]:
        return {name: engine.pid for name, engine in self._running.items()}

    def log_path(self, profile: str) -> Path:
        return self._config.server.state_dir / "logs" / f"{profile}.log"

    # Launching

    def launch(self, order: orders.Spawn) -> None:
        """Record first, then start: a daemon that dies in between leaves a record to look for."""
        engine = self._drafted(order)
        self._running[order.incarnation] = engine
        self._later(self._launch(engine, order))

    async def _launch(self, engine: Incarnation, order: orders.Spawn) -> None:
        try:
            await self._start(engine, order)
        except (LlmdError, OSError) as error:
            if engine.tree is None:
                self._post(events.SpawnFailed(order.incarnation, str(error)))
                return
            log("record_not_written", "ERROR", profile=order.profile, message=str(error))
        engine.watch(loading=True)
        self._catch_up(engine)

    def _drafted(self, order: orders.Spawn) -> Incarnation:
        profile = self._config.profiles[order.profile]
        socket = self._journal.socket(order.incarnation)
        record = Record(
            incarnation=order.incarnation,
            profile=profile.name,
            models=command.served_names(profile),
            key=secrets.token_hex(32),
            boot_id=procfs.boot_id(),
            pid=None,
            start_time=None,
            session=None,
            cgroup=None,
            spawned_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            argv=command.argv(profile, self._config, socket, order.utilization, order.slots),
            log=str(self.log_path(profile.name)),
            devices=order.devices,
            ready=False,
            pinned=order.pinned,
        )
        return Incarnation(record, profile, self._config, self._journal, self._post)

    async def _start(self, engine: Incarnation, order: orders.Spawn) -> None:
        directory = await asyncio.to_thread(self._journal.prepare, engine.name)
        group = cgroup.create(self._group, engine.name) if self._group else None
        await engine.remember(cgroup=str(group) if group else None)
        await asyncio.to_thread(engine.mark_log)
        env = command.environment(
            engine.profile,
            self._config,
            os.environ,
            directory=directory,
            key=engine.record.key,
            indices=order.indices,
        )
        launch = process.Launch(engine.name, engine.record.argv, env, directory, engine.log, group)
        engine.tree = await process.spawn(launch)
        found = engine.tree.identity
        await engine.remember(pid=found.pid, start_time=found.start_time, session=found.session)

    def _catch_up(self, engine: Incarnation) -> None:
        """With what was ordered before there was a process to order it of."""
        tree, wanted = engine.tree, self._fleet.engines[engine.profile.name]
        if tree and wanted.incarnation == engine.name and wanted.terminated:
            tree.terminate()
        if engine.doomed:
            engine.kill()

    # Adoption

    async def adopt(self) -> None:
        """Take back the engines of an earlier daemon; report what cannot be proven ours."""
        records, damages = await asyncio.to_thread(self._journal.records)
        for damage in damages:
            self.strays.append(Stray(damage.incarnation, None, None, damage.reason))
            log("record_damaged", "WARNING", path=str(damage.path), message=damage.reason)
        for record in records:
            await self._adopt(record)

    async def _adopt(self, record: Record) -> None:
        group = Path(record.cgroup) if record.cgroup else None
        identity = record.identity()
        if identity is None:
            identity = await asyncio.to_thread(process.find, record.incarnation, group)
        if identity is None:
            await asyncio.to_thread(self._journal.forget, record.incarnation)
            return
        profile = self._config.profiles.get(record.profile)
        if profile is None or self._fleet.engines[record.profile].incarnation:
            why = "its profile is no longer configured" if profile is None else "its profile runs already"
            self.strays.append(Stray(record.incarnation, record.profile, record.pid, why))
            return
        await self._take_back(record, profile, identity)

    async def _take_back(self, record: Record, profile: Profile, identity: process.Identity) -> None:
        alive = True
        try:
            tree = await asyncio.to_thread(process.adopt, identity)
        except process.NotOurs as error:
            log("engine_gone", "WARNING", profile=record.profile, message=error.message)
            tree, alive = await asyncio.to_thread(process.remains, identity), False
        engine = Incarnation(record, profile, self._config, self._journal, self._post, tree)
        self._running[record.incarnation] = engine
        if record.pid is None and alive:
            await engine.remember(pid=identity.pid, start_time=identity.start_time, session=identity.session)
        self._post(
            events.Found(
                record.profile,
                record.incarnation,
                record.devices,
                alive,
                record.asleep,
                record.waking,
                record.pinned,
            )
        )

    def ready(self, incarnation: str) -> None:
        """It serves from now on."""
        if engine := self._running.get(incarnation):
            engine.watch_health()
            if not engine.record.ready:
                engine.run(engine.remember(ready=True))

    # Letting go

    def forget(self, incarnation: str) -> None:
        """One that is over: close it, and delete its record."""
        if engine := self._running.pop(incarnation, None):
            self._later(self._forget(engine))

    async def _forget(self, engine: Incarnation) -> None:
        await engine.close()
        await asyncio.to_thread(self._journal.forget, engine.name)

    def let_go(self, incarnation: str, why: str) -> None:
        """One found that could not be proven ours: watched no more, and told of."""
        if engine := self._running.pop(incarnation, None):
            self.strays.append(Stray(incarnation, engine.profile.name, engine.pid, why))
            self._later(engine.close())

    async def close(self) -> None:
        """Those that still run are left running."""
        for engine in self:
            await engine.close()
