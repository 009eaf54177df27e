"""How long is waited: for a request's body, for an engine's answer to begin, between two pieces of it, for its end."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import NamedTuple

from aiohttp import StreamReader, web

from supervisor.config import Config
from supervisor.core.routing import Ask
from supervisor.errors import EngineSilent, RequestTimeout
from supervisor.web.driving import Lease

SLOWEST = 1 << 10
"""Bytes of a body that must have come in each `body_timeout`: a byte now and then holds no connection open."""

CANCELLED = "cancelled by an operator of this host"
TOO_LONG = "took longer than a request may take in all (server.request_timeout)"


class Limits(NamedTuple):
    """Seconds until an answer begins, between two pieces of it, and from the request's arrival to its end."""

    first: float
    between: float
    total: float = math.inf


def limits_of(ask: Ask, config: Config, lease: Lease) -> Limits:
    """Of a request that is granted, as they are configured now."""
    return Limits(_first(ask, config, lease), config.engine.token_timeout, config.server.request_timeout)


def _first(ask: Ask, config: Config, lease: Lease) -> float:
    """What is not streamed begins when its last token is made."""
    if lease.peer is not None:
        return lease.peer.timeout
    if not ask.stream:
        return config.engine.answer_timeout
    profile = config.profiles.get(lease.profile)
    own = None if profile is None else profile.first_token_timeout
    return config.engine.first_token_timeout if own is None else own


async def comes(event: asyncio.Event, seconds: float) -> bool:
    """Whether it comes within `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


@contextmanager
def hurried(request: web.Request, limit: float) -> Iterator[None]:
    """While its body is read. Raises RequestTimeout where that does not move on within `limit` seconds."""
    pace = None if request.content.is_eof() else _Pace(request.content, limit)
    try:
        yield
    except TimeoutError:
        raise RequestTimeout(f"the body did not come: less than {SLOWEST} bytes in {limit:g} s") from None
    finally:
        if pace is not None:
            pace.close()


class _Pace:
    """Of a body on its way; it is given up where that does not move on."""

    def __init__(self, content: StreamReader, limit: float) -> None:
        self._content, self._limit, self._seen = content, limit, 0
        self._arm()

    def close(self) -> None:
        self._timer.cancel()

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._limit, self._look)

    def _look(self) -> None:
        before, self._seen = self._seen, self._content.total_bytes
        if self._seen - before < SLOWEST:
            self._content.set_exception(TimeoutError())
        self._arm()


@asynccontextmanager
async def in_time(arrived: float, limit: float) -> AsyncIterator[None]:
    """For what is not watched piece by piece. `arrived` is monotonic. Raises EngineSilent `limit` seconds after it."""
    try:
        async with asyncio.timeout(max(0.0, arrived + limit - time.monotonic())) as scope:
            yield
    except TimeoutError:
        if not scope.expired():
            raise
        raise EngineSilent(f"it {TOO_LONG}") from None


def _ignored(in_all: bool = False) -> None:
    """What a watch that is closed has to tell."""


class Watch:
    """Watches one answer with one timer, which looks when the last piece came: a piece costs it nothing else.

    The client's slowness does not count: the clock rests while nothing is read from the engine. `expired` is called
    once, with whether it was the whole that took too long.
    """

    def __init__(
        self,
        limits: Limits,
        arrived: float,
        expired: Callable[[bool], None],
        *,
        waits: Callable[[], None],
        every: float,
    ) -> None:
        """`arrived` is monotonic. `waits` is called `every` so many seconds until the answer began."""
        self._limit, self._limits, self._expired = limits.first, limits, expired
        self._waits, self._every = waits, every
        self._deadline = arrived + limits.total
        self._loop = asyncio.get_running_loop()
        self.since = time.monotonic()
        """When the last piece came."""
        self._arm(self.since)

    def rest(self) -> None:
        self.since = math.inf

    def go_on(self) -> None:
        self.since = time.monotonic()

    def began(self) -> None:
        """From now on it is the time between two pieces that counts."""
        self._timer.cancel()
        self._limit, self._every = self._limits.between, math.inf
        self.go_on()
        self._arm(self.since)

    def close(self) -> None:
        self._timer.cancel()
        self._expired = self._waits = _ignored

    def _arm(self, now: float) -> None:
        due = min(self.since + self._limit, self._deadline, now + self._limit, now + self._every)
        self._timer = self._loop.call_later(max(0.001, due - now), self._look)

    def _look(self) -> None:
        now = time.monotonic()
        if now >= self._deadline or now - self.since >= self._limit:
            self._expired(now >= self._deadline)
        else:
            if self._every < math.inf:
                self._waits()
            self._arm(now)
