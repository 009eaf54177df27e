"""Tells the core which mode it is, now and at every change, and when a profile is to be warm. Wall clock.

A person may force a mode, for a while or until told otherwise; that is kept on disk and outlives the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import msgspec

from supervisor.config import Config
from supervisor.core import events
from supervisor.core.events import Event
from supervisor.host import timetable
from supervisor.host.logbook import log

LONGEST_SLEEP = 60.0
"""Seconds: the wall clock may be set, and a suspended host sleeps longer than it thinks."""


@dataclass(frozen=True, slots=True)
class Forced:
    """A mode that a person chose. `until` is aware, None: until told otherwise."""

    mode: str
    until: datetime | None = None

    def holds(self, now: datetime) -> bool:
        return self.until is None or now < self.until


@dataclass(frozen=True, slots=True)
class Present:
    """What holds now. `when`: the next change, in UTC."""

    mode: str | None
    following: str | None
    when: datetime | None
    forced: bool = False

    @property
    def until(self) -> str | None:
        return self.when.astimezone().strftime("%Y-%m-%d %H:%M %Z") if self.when else None


class ModeKeeper:
    """`config` is asked anew each time."""

    def __init__(self, config: Callable[[], Config], post: Callable[[Event], None]) -> None:
        self._config, self._post = config, post
        self._path = config().server.state_dir / "mode.json"
        self._woken = asyncio.Event()
        self._holding = asyncio.Lock()
        """What is on disk and what holds are changed together, one after the other."""
        self._told: Present | None = None
        self.forced: Forced | None = None

    async def open(self) -> None:
        """What a person told an earlier daemon holds on, from before the first request."""
        async with self._holding:
            self.forced = self._known(await asyncio.to_thread(self._read))
        now = datetime.now(UTC)
        self._tell(present(self._config(), self.forced, now), now)

    async def run(self) -> None:
        """Until cancelled."""
        warmed = datetime.now(UTC)
        while True:
            now = datetime.now(UTC)
            self._tell(present(self._config(), self.forced, now), now)
            for profile in timetable.due(self._config().profiles, warmed, now):
                self._post(events.WarmAsked(profile))
            warmed = now
            await self._sleep(now)

    async def force(self, mode: str, seconds: float | None) -> None:
        """Be in `mode` from now on, for `seconds` or until `release`."""
        until = None if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds)
        await self._hold(Forced(mode, until))

    async def release(self) -> None:
        """Back to the calendar."""
        await self._hold(None)

    def by_calendar(self) -> str:
        """The mode that would hold now if nobody forced one; there must be modes."""
        name = present(self._config(), None, datetime.now(UTC)).mode
        assert name is not None
        return name

    async def _hold(self, forced: Forced | None) -> None:
        async with self._holding:
            await asyncio.to_thread(self._write, forced)
            self.forced = self._known(forced)
        now = datetime.now(UTC)
        self._tell(present(self._config(), self.forced, now), now)
        self._woken.set()

    def _known(self, forced: Forced | None) -> Forced | None:
        """None where its mode is not configured: any more, once the disk was waited for."""
        return forced if forced and forced.mode in self._config().modes else None

    def reconfigured(self, config: Config) -> events.ModeChanged | None:
        """What is to be told under `config`, which holds from now on; None where modes are what they were."""
        self._woken.set()
        if config.modes == self._config().modes:
            return None
        if self.forced and self.forced.mode not in config.modes:
            self.forced = None
        now = datetime.now(UTC)
        self._told = found = present(config, self.forced, now)
        return _event(found, now)

    def _tell(self, found: Present, now: datetime) -> None:
        if found == self._told:
            return
        self._told = found
        self._post(_event(found, now))

    async def _sleep(self, now: datetime) -> None:
        changes = [
            self._told.when if self._told else None,
            timetable.next_warming(self._config().profiles, now),
        ]
        left = min(((when - now).total_seconds() for when in changes if when), default=LONGEST_SLEEP)
        self._woken.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.1, min(left, LONGEST_SLEEP))):
                await self._woken.wait()

    # On disk

    def _read(self) -> Forced | None:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Forced)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            log("mode_unreadable", "WARNING", path=str(self._path), message=str(error))
            return None

    def _write(self, forced: Forced | None) -> None:
        if forced is None:
            self._path.unlink(missing_ok=True)
            return
        fresh = self._path.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(forced))
        fresh.replace(self._path)


def _event(found: Present, now: datetime) -> events.ModeChanged:
    left = None if found.when is None else (found.when - now).total_seconds()
    return events.ModeChanged(found.mode, found.following, found.until, left, found.forced)


def present(config: Config, forced: Forced | None, now: datetime) -> Present:
    """The mode that holds at `now`, forced or by the calendar, and what follows it."""
    if forced is None or not forced.holds(now):
        return Present(*timetable.current(config.modes, now))
    following = timetable.current(config.modes, forced.until)[0] if forced.until else None
    return Present(forced.mode, following, forced.until, forced=True)
