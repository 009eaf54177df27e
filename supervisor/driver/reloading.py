"""The configuration, read again: what differs, and the change in one step. A bad one changes nothing.

Files are read and checked off the event loop. Then, without an await, keys, peers, modes, the core and the engines'
watchers go over to it together.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from supervisor.config import Change, Config, differences, kept, load, locate, warnings
from supervisor.config.secrets import digests, peer_key
from supervisor.config.stamp import Stamp, stamp
from supervisor.core import events, reconfiguring
from supervisor.core.devices import Survey
from supervisor.core.fit import check_devices
from supervisor.core.learned import Learned
from supervisor.errors import ConfigError, DaemonRefused
from supervisor.host.logbook import log

if TYPE_CHECKING:
    from supervisor.driver.driver import Driver

LOOK_AGAIN = 2.0
"""Seconds between two looks whether the files are still those that were read."""


class Locks(Protocol):
    """API keys as the web holds them. `sources`: digest -> source."""

    sources: Mapping[str, str]

    def change(self, sources: Mapping[str, str], open: bool) -> None: ...


@dataclass(frozen=True, slots=True)
class Draft:
    """A configuration that could hold, with all that is read for it."""

    config: Config
    keys: Mapping[str, str]
    peer_keys: Mapping[str, str | None]
    warnings: tuple[str, ...]
    stamp: Stamp
    learned: Mapping[str, Sequence[Learned]]


class Reloading:
    def __init__(self, driver: Driver) -> None:
        config = driver.config
        self._driver = driver
        self.read: Callable[[], Config] = lambda: load(config.path)
        """Raises ConfigError."""
        self.locks: Locks | None = None
        self.warnings: tuple[str, ...] = ()
        self.loaded_at = datetime.now().astimezone()
        self.trouble: str | None = None
        """Why the files were not taken, when that was tried last."""
        self.newer = False
        """The files are no longer those that were read."""
        self._stamp = stamp(config.path, config.server.profiles)
        self._turn = asyncio.Lock()

    async def watch(self) -> None:
        """Keep `newer` true, until cancelled."""
        while True:
            async with self._turn:  # a reload would take up other files than were seen
                config = self._driver.config
                seen = await asyncio.to_thread(stamp, config.path, config.server.profiles)
                self.newer = seen != self._stamp
            await asyncio.sleep(LOOK_AGAIN)

    async def reload(self, *, plan: bool = False) -> dict[str, Any]:
        """Take up what is written, or with `plan` only tell what that would do. Raises ConfigError, DaemonRefused."""
        async with self._turn:
            try:
                draft = await self._draft()
            except ConfigError as error:
                self._failed(error, plan)
                raise
            if self._driver.fleet.closing:
                raise DaemonRefused("llmd is shutting down")
            return self._answer(draft) if plan else self._take(draft)

    def describe(self) -> dict[str, Any]:
        return {
            "config_loaded": self.loaded_at.isoformat(timespec="seconds"),
            "config_newer": self.newer,
            "config_error": self.trouble,
        }

    def _failed(self, error: ConfigError, plan: bool) -> None:
        if plan:
            return
        self.trouble = error.message
        message = f"the configuration that runs is kept: {'; '.join(error.message.splitlines())}"
        log("reload_failed", "ERROR", message=message)

    # Off the loop

    async def _draft(self) -> Draft:
        fleet = self._driver.fleet
        config, seen = await asyncio.to_thread(self._read, fleet.config, fleet.ledger.survey)
        keys, peers, words = await asyncio.to_thread(_looked_up, config)
        learned = await self._driver.books.recall(config)
        return Draft(config, keys, peers, words, seen, learned)

    def _read(self, running: Config, survey: Survey) -> tuple[Config, Stamp]:
        """What ails the running configuration already keeps nobody from changing the rest."""
        seen = stamp(running.path, running.server.profiles)
        config = self.read()
        if config.server.profiles != running.server.profiles:
            seen = stamp(config.path, config.server.profiles)
        ailing = set(check_devices(running, survey))
        if found := [problem for problem in check_devices(config, survey) if problem not in ailing]:
            raise ConfigError(locate(found))
        return config, seen

    # In one step

    def _take(self, draft: Draft) -> dict[str, Any]:
        driver, answer = self._driver, self._answer(draft)
        config, changes = kept(driver.config, draft.config), self._changes(draft)
        if changes:
            mode = driver.modes.reconfigured(config)
            if self.locks:
                self.locks.change(draft.keys, open=not config.keys)
            driver.peers.reconfigure(config, draft.peer_keys)
            driver.post(events.Reconfigured(config, tuple(map(str, changes)), mode, draft.learned))
            driver.engines.reconfigure()
            driver.books.reconfigure()
        self.loaded_at, self.trouble, self.newer = datetime.now().astimezone(), None, False
        self._stamp, self.warnings = draft.stamp, draft.warnings
        return answer | {"applied": True, "loaded": self.loaded_at.isoformat(timespec="seconds")}

    def _answer(self, draft: Draft) -> dict[str, Any]:
        driver = self._driver
        return {
            "applied": False,
            "changes": [_told(change) for change in self._changes(draft)],
            "engines": reconfiguring.foresee(driver.fleet, kept(driver.config, draft.config)),
            "warnings": list(draft.warnings),
        }

    def _changes(self, draft: Draft) -> tuple[Change, ...]:
        rotated = {f"peers.{name}" for name in self._driver.peers.rotated(draft.peer_keys)}
        if self.locks:
            before, after = _by_source(self.locks.sources), _by_source(draft.keys)
            rotated |= {f"keys.{name}" for name in draft.config.keys if before.get(name) != after.get(name)}
        return differences(self._driver.config, draft.config, rotated)


def _looked_up(config: Config) -> tuple[dict[str, str], dict[str, str | None], tuple[str, ...]]:
    """API keys, peers' keys and warnings: all that stands in other files and in the environment."""
    peers = {name: peer_key(peer, os.environ)[0] for name, peer in config.peers.items()}
    return digests(config, os.environ), peers, tuple(map(str, warnings(config)))


def _by_source(keys: Mapping[str, str]) -> dict[str, str]:
    return {source: digest for digest, source in keys.items()}


def _told(change: Change) -> dict[str, Any]:
    keys = {
        key: None if values is None else {"before": values[0], "after": values[1]}
        for key, values in change.keys.items()
    }
    return {
        "place": change.place,
        "how": change.how,
        "keys": keys,
        "restart": change.restart,
        "text": str(change),
    }
