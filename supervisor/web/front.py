"""A client's connection whose plain requests go the short way, all others through aiohttp.

Bytes are told apart only between two requests, and only while every byte that aiohttp was given belonged to a
request whose end is known: two readers never disagree about where one begins.
"""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple, Protocol, TypeVar

from aiohttp import web

from supervisor.web.plain import is_bare
from supervisor.web.protocol import Complaints, Connection

GATHER = 0.1
"""Seconds that the rest of a small body is waited for here; aiohttp's reader waits longer, and answers 408."""

MOST_GATHERED = 64 << 20
"""Bytes of bodies in several pieces, of all clients, that are in memory until their answers begin. Beyond them bodies
go the ordinary way, and wait on disk."""

MOST_EARLY = 64 << 10
"""Bytes of later requests that are kept while one is answered, before nothing more is read."""


class Failed(NamedTuple):
    """A request that the short way gave up: the places that failed it; since when, monotonic, and under which id;
    whether the head of its answer was sent."""

    tried: frozenset[str]
    started: float
    request_id: str
    held: bool


class Exchange(Protocol):
    """One request under way."""

    def left(self) -> None:
        """The client is gone."""


class Beginning(Protocol):
    """A plain request's head: its own size and its body's length, in bytes."""

    @property
    def size(self) -> int: ...
    @property
    def length(self) -> int: ...


B = TypeVar("B", bound=Beginning)


class Short(Protocol[B]):
    gathered: int
    """Bytes of bodies in several pieces that are in memory now."""

    def read(self, data: bytes) -> B | None:
        """None where this does not begin with the whole head of a plain request from somebody known."""

    def take(self, client: Front, head: B, body: bytes) -> Exchange | None:
        """None where it has to go the ordinary way. The client is told when its answer has `begun`, when it is
        `over`, or that it has to `go_round` after all."""


class Front(Connection):
    def __init__(
        self, server: web.Server, timeouts: tuple[float, float], complaints: Complaints, short: Short[Any]
    ) -> None:
        super().__init__(server, timeouts, complaints)
        self._short = short
        self._exchange: Exchange | None = None
        self._untaken_end = False  # an answer is over, and the client has yet to take the last of it
        self._keeps = True
        self.failed: Failed | None = None
        """What became of the request which now goes the ordinary way."""
        self._taking = False
        self._fed = False  # aiohttp has had bytes
        self._known = True  # where its last request ended
        self._begun = self._body = self._early = b""  # a request's head and body, and what came behind them
        self._gathering: asyncio.TimerHandle | None = None
        self._parts: list[bytes | memoryview] = []
        self._lacking = self._gathered = 0
        self._drained: asyncio.Future[None] | None = None

    # From the client

    def data_received(self, data: bytes) -> None:
        if not data or not self._known:  # aiohttp itself comes with nothing, to go on
            super().data_received(data)
        elif self._exchange is not None or self._untaken_end:
            self._keep(data)
        elif self._parts:
            self._gather(data)
        elif (head := self._short.read(data)) and self._is_free() and self._has_room(head, data):
            self._begin(head, data)
        else:
            self._known = is_bare(data) if head is None else head.size + head.length == len(data)
            self._feed(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        exchange, self._exchange = self._exchange, None
        self._join()
        self.begun()
        if exchange is not None:
            exchange.left()
        self._tell_drained()
        super().connection_lost(exc)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._untaken_end:
            self._untaken_end = False
            self._ended()

    # From the exchange

    def over(self, keeps: bool) -> None:
        """The answer is written, all of it. The connection serves no other before the client has taken it: who
        takes nothing is found out, and is not given more and more."""
        self._exchange, self._keeps = None, keeps
        self.begun()
        self._untaken_end = self.writing_paused
        if not self._untaken_end:
            self._ended()

    def begun(self) -> None:
        """It will not go round any more."""
        self._begun = self._body = b""
        self._short.gathered -= self._gathered
        self._gathered = 0

    def go_round(self) -> None:
        """Nothing was sent: have aiohttp read the request, and all that follows it."""
        self._exchange = None
        self.end()
        self._tell_drained()
        self._resume_transport_reading()
        self._known = self._known and not self._early
        request, self._early = b"".join((self._begun, self._body, self._early)), b""
        self.begun()
        self._feed(request)

    # What follows

    def _ended(self) -> None:
        self.end()
        self._next_keepalive_close_time = self._loop.time() + self.keepalive_timeout
        self._tell_drained()
        if not self._keeps or self._close or self._force_close:
            self.force_close()
        elif self._early and not self._taking:
            self._go_on()

    def _tell_drained(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def _feed(self, data: bytes) -> None:
        self._fed = True
        super().data_received(data)

    def _has_room(self, head: Beginning, data: bytes) -> bool:
        """Whether the body is here, or may be gathered here."""
        whole = head.size + head.length <= len(data)
        return whole or self._short.gathered + head.length <= MOST_GATHERED

    def _is_free(self) -> bool:
        """Whether aiohttp has answered all that it was given."""
        closes = self._close or self._force_close
        waits = not self._fed or (self._waiter is not None and not self._waiter.done())
        return waits and not (self._busy or self._messages or closes)

    def _begin(self, head: Beginning, data: bytes) -> None:
        self.begin()
        self._begun, end = data[: head.size], head.size + head.length
        if end <= len(data):
            self._take(head, data[head.size : end], data[end:])
            return
        self._head, self._lacking, self._gathered = head, end - len(data), head.length
        self._parts = [memoryview(data)[head.size :]]
        self._short.gathered += head.length
        self._gathering = self._loop.call_later(GATHER, self._give_up)

    def _gather(self, data: bytes) -> None:
        self._parts.append(data)
        self._lacking -= len(data)
        if self._lacking > 0:
            return
        data, length = self._join(), self._head.length
        self._take(self._head, data[:length], data[length:])

    def _join(self) -> bytes:
        data = b"".join(self._parts)
        self._parts.clear()
        if self._gathering:
            self._gathering.cancel()
        return data

    def _give_up(self) -> None:
        """What is still to come is aiohttp's to wait for."""
        self._known, self._body = False, self._join()
        self.go_round()

    def _take(self, head: Beginning, body: bytes, early: bytes) -> None:
        self._body, self._early = body, early
        self._taking = True
        exchange = self._short.take(self, head, body)
        self._taking = False
        if exchange is None:
            self.go_round()
        elif self._busy:  # it is not over already
            self._exchange = None if self._untaken_end else exchange
        elif self._early:
            self._go_on()

    def _go_on(self) -> None:
        data, self._early = self._early, b""
        self._resume_transport_reading()
        self.data_received(data)

    def _keep(self, data: bytes) -> None:
        self._early += data
        if len(self._early) > MOST_EARLY:
            self._pause_transport_reading()

    # Of aiohttp

    def _process_keepalive(self) -> None:
        if self._busy:
            self._next_keepalive_close_time = self._loop.time() + self.keepalive_timeout
        super()._process_keepalive()

    async def shutdown(self, timeout: float | None = 15.0) -> None:
        """What is under way has `timeout` seconds."""
        if self._exchange is not None or self._untaken_end:
            self._drained = self._loop.create_future()
            await asyncio.wait([self._drained], timeout=timeout)
        await super().shutdown(timeout)
