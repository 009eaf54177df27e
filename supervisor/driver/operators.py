"""What people ask of the daemon: their words become events, and the core's answers go back to who waits for them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Any

from supervisor.core import calendar, events, lending, orders
from supervisor.core.events import Event
from supervisor.core.fleet import Fleet
from supervisor.errors import ModelNotFound
from supervisor.host.modekeeper import ModeKeeper


class Operators:
    """Whatever is refused raises an LlmdError."""

    def __init__(self, fleet: Fleet, modes: ModeKeeper, post: Callable[[Event], None]) -> None:
        self._fleet, self._modes, self._post = fleet, modes, post
        self._tickets: dict[str, asyncio.Future[str]] = {}
        self.borrowers: dict[str, int] = {}
        """Loan -> the process that uses it, where it was named."""

    def answer(self, order: orders.Answer) -> None:
        """Tell who waits for it."""
        waiting = self._tickets.get(order.ticket)
        if waiting is None or waiting.done():
            return
        if order.error:
            waiting.set_exception(order.error)
        else:
            waiting.set_result(order.message)

    async def start(self, profile: str, *, pin: bool | None = None) -> str:
        """`pin`: that it stays from now on, or no longer; None leaves that as it is."""
        return await self._ask(profile, lambda ticket: events.StartAsked(ticket, profile, pin))

    async def stop(self, profile: str, *, at_once: bool = False) -> str:
        return await self._ask(profile, lambda ticket: events.StopAsked(ticket, profile, at_once))

    async def sleep(self, profile: str) -> str:
        """Give up the GPU and keep the process. Raises DaemonRefused where it cannot."""
        return await self._ask(profile, lambda ticket: events.SleepAsked(ticket, profile))

    async def release(self, gpu: int | str) -> str:
        """Write off memory that did not come back on a quarantined GPU. Raises DaemonRefused."""
        ticket = secrets.token_hex(8)
        return await self._hear(ticket, events.ReleaseAsked(ticket, gpu))

    async def _ask(self, profile: str, event: Callable[[str], Event]) -> str:
        if profile not in self._fleet.config.profiles:
            known = ", ".join(self._fleet.config.profiles)
            raise ModelNotFound(f"no profile {profile!r}; there are: {known}")
        ticket = secrets.token_hex(8)
        return await self._hear(ticket, event(ticket))

    async def _hear(self, ticket: str, event: Event) -> str:
        """Post an event and wait for the core's answer to its ticket."""
        waiting: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._tickets[ticket] = waiting
        self._post(event)
        try:
            return await waiting
        finally:
            del self._tickets[ticket]
            self._post(events.TicketDropped(ticket))

    async def set_mode(self, name: str, seconds: float | None = None) -> str:
        """Force a mode, for `seconds` or until told otherwise; "auto" goes back to the calendar."""
        if name == "auto":
            await self._modes.release()
        else:
            self._mode_named(name)
            await self._modes.force(name, seconds)
        mode = self._fleet.mode
        until = f" until {mode.until}" if mode.until else ""
        return f"mode {mode.name}{until}" + (", forced" if mode.forced else ", by the calendar")

    def plan_mode(self, name: str) -> dict[str, Any]:
        """What a change to mode `name` would do now; "auto" is the calendar's."""
        if name == "auto" and self._fleet.config.modes:
            name = self._modes.by_calendar()
        self._mode_named(name)
        return calendar.plan(self._fleet, name)

    def _mode_named(self, name: str) -> None:
        if name not in self._fleet.config.modes:
            raise ModelNotFound(
                f"no mode {name!r}; there are: {', '.join(self._fleet.config.modes) or 'none'}"
            )

    async def lend(
        self, borrower: str, gpus: tuple[int | str, ...], size: int, ttl: float, pid: int | None = None
    ) -> tuple[str, str]:
        """Promise `size` bytes on each GPU to another program: (the loan's name, words for people).

        Waits for engines that are busy there. `pid`: whose use is the borrower's. Raises DaemonRefused.
        """
        name = secrets.token_hex(4)
        if pid is not None:
            self.borrowers[name] = pid
        try:
            message = await self._hear(name, events.LoanAsked(name, borrower, gpus, size, ttl))
        except BaseException:  # it may have been granted in the very moment in which its asker left
            self.borrowers.pop(name, None)
            self._post(events.LoanEnded(name, "nobody waits for it any more"))
            raise
        return name, message

    def take_back(self, name: str, why: str = "it was given back") -> str:
        """End a loan, called by its name or its borrower. Raises ModelNotFound where there is none, or several."""
        name = lending.named(self._fleet, name)
        self.borrowers.pop(name, None)
        self._post(events.LoanEnded(name, why))
        return f"the loan {name} is over"
