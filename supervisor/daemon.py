"""A daemon's life in reading order: lock, read devices, adopt, open, serve until told, drain, close."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import uvloop

from supervisor.config import Config, warnings
from supervisor.core import events
from supervisor.driver import Driver
from supervisor.errors import LlmdError, OperatorError
from supervisor.host import heap, logbook, systemd
from supervisor.host.gpus import Gpus
from supervisor.host.journal import Journal
from supervisor.host.logbook import log
from supervisor.web.admin import AdminServer
from supervisor.web.auth import Keyring
from supervisor.web.server import Server

STOP_SLACK = 30.0
"""Seconds beyond drain, grace and settling before a stop gives up on an engine and says so."""

STATUS_PAUSE = 5.0
TIDY_PAUSE = 1.0

GARBAGE = 20_000
"""Objects more than before, at which cycles are looked for; requests leave none, so that looking is in vain."""


def serve(config: Config, read: Callable[[], Config], *, keep_engines: bool = False) -> int:
    """Run until SIGTERM or Ctrl-C; `read` gives the configuration anew at every reload.

    Returns the exit code: 0, or 1 after an error said in one line.
    """
    faulthandler.enable()  # systemd's watchdog aborts a stalled daemon: its last word is where it stood
    heap.keep()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(Daemon(config, read, keep_engines).run())
    except LlmdError as error:
        print(f"llmd: {error.message}", file=sys.stderr)
        return 1
    return 0


class Daemon:
    def __init__(self, config: Config, read: Callable[[], Config], keep_engines: bool) -> None:
        self.keep_engines = keep_engines
        self.journal = Journal(config.server.state_dir)
        self.driver = Driver(config, self.journal, Gpus())
        self.reloading, keyring = self.driver.reloading, Keyring.of(config, os.environ)
        self.reloading.read, self.reloading.locks = read, keyring
        self.reloading.warnings = tuple(map(str, warnings(config)))
        self.server = Server(self.driver, keyring)
        self.admin = AdminServer(self.driver, self.server.traffic)
        self.driver.announce = self.describe
        self._stop = asyncio.Event()
        self._stops = 0
        self._reloads: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        self.journal.lock()
        logbook.keep(self.driver.own_log)
        try:
            async with self._opened():
                await self._stop.wait()
                await self._wind_down()
        finally:
            logbook.close()
            self.journal.unlock()

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[None]:
        for warning in self.reloading.warnings:
            log("config_warning", "WARNING", message=warning)
        await self.driver.open()
        tasks: list[asyncio.Task[None]] = []
        try:
            await self.driver.engines.adopt()
            await self.driver.modes.open()
            works = self.driver.modes.run(), self.reloading.watch(), self._tell_systemd(), tidy()
            tasks = [asyncio.create_task(work) for work in works]
            await self.admin.open()
            await self.server.open()
            self._listen_to_signals()
            gc.collect()
            gc.freeze()
            gc.set_threshold(GARBAGE)
            log("serving", listening=self.server.listening, waiting_for=self.server.waiting_for)
            systemd.ready(self._words())
            yield
        finally:
            for task in (*tasks, *self._reloads):
                task.cancel()
            await self.server.close()
            await self.admin.close()
            await self.driver.close()

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_stop)
        loop.add_signal_handler(signal.SIGHUP, self._asked_to_reload)

    def _asked_to_reload(self) -> None:
        task = asyncio.get_running_loop().create_task(self._reload())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    async def _reload(self) -> None:
        """What came of it is in the log."""
        with contextlib.suppress(OperatorError):
            answer = await self.driver.reload()
            for warning in answer["warnings"]:
                log("config_warning", "WARNING", message=warning)
            if not answer["changes"]:
                log("reloaded", message="nothing differs")

    def _asked_to_stop(self) -> None:
        """Once: in order. Again: engines are killed instead of waited for."""
        self._stops += 1
        self._stop.set()
        if self._stops > 1 and not self.keep_engines:
            for engine in self.driver.engines:
                if engine.tree:
                    engine.kill()

    async def _wind_down(self) -> None:
        """Stop accepting, drain, then leave or stop the engines as told."""
        systemd.stopping("draining")
        log("stopping", keep_engines=self.keep_engines)
        await self.server.stop_accepting()
        self.driver.post(events.ShutdownAsked(self.keep_engines))
        limits = self.driver.config.server, self.driver.config.engine
        if self.keep_engines:
            await self.driver.until(lambda fleet: not fleet.leases, limits[0].drain)
            return
        patience = limits[0].drain + limits[1].stop_grace + limits[1].settle_timeout + STOP_SLACK
        if not await self.driver.until(lambda fleet: fleet.is_empty, patience):
            left = ", ".join(repr(e) for e in self.driver.fleet.engines.values() if e.claims())
            log("engines_left", "ERROR", message=f"these engines did not end: {left}")

    # What goes on beside

    async def _tell_systemd(self) -> None:
        """Watchdog and status line; a stalled loop falls silent and systemd restarts the daemon."""
        beat = systemd.watchdog_interval()
        if not os.environ.get("NOTIFY_SOCKET"):
            return
        while True:
            with contextlib.suppress(OSError):
                systemd.pat_watchdog()
                systemd.say(self._words())
            await asyncio.sleep(min(beat or STATUS_PAUSE, STATUS_PAUSE))

    def _words(self) -> str:
        """`3 engines ready, 1 starting, 2 requests in flight`."""
        states = [engine.state.value for engine in self.driver.fleet.engines.values() if engine.claims()]
        counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        return f"engines: {counted or 'none'}; requests in flight: {len(self.driver.fleet.leases)}"

    def describe(self) -> dict[str, Any]:
        config = self.driver.config
        return {
            "version": version("llmd"),
            "config": str(config.path),
            **self.reloading.describe(),
            "state_dir": str(config.server.state_dir),
            "admin_socket": str(config.server.admin_socket),
            "listening": list(self.server.listening),
            "waiting_for": list(self.server.waiting_for),
            "mode": self._mode(),
            "closing": self.driver.fleet.closing,
            "warnings": list(self.reloading.warnings),
        }

    def _mode(self) -> dict[str, Any] | None:
        fleet = self.driver.fleet
        mode = fleet.mode
        if mode.name is None:
            return None
        return {
            "name": mode.name,
            "next": mode.next_mode,
            "until": mode.until,
            "forced": mode.forced,
            "warming": list(fleet.transition.warming) if fleet.transition else [],
            "rolled_back": fleet.rolled_back,
        }


async def tidy() -> None:
    """Give back the heap's free pages, again and again."""
    while True:
        await asyncio.sleep(TIDY_PAUSE)
        heap.trim()
