"""The stream that keeps browsers up to date: a whole picture first, then what changed, at most twice a second.

Nothing is queued for anybody. Each browser is told how the newest picture differs from the last one it was sent,
whenever it has taken that one: a slow browser skips what lies between, and costs one picture that is shared.
While nobody looks, nothing is painted.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from aiohttp import web

from supervisor.errors import Overloaded
from supervisor.web.ui.picture import Picture, changes, message

PAUSE = 0.5
"""Seconds between two pictures."""

SILENCE = 15.0
"""Seconds without a change after which a comment tells that the line still holds."""

STUCK = 30.0
"""Seconds that a browser may leave what it was sent untaken; then it is let go, and comes back by itself."""

MOST = 32
_HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class Stream:
    def __init__(self, paint: Callable[[], Picture]) -> None:
        self._paint = paint
        self._picture: Picture = {}
        self._fresh = asyncio.Condition()
        self._number = 0
        self._readers = 0
        self._painter: asyncio.Task[None] | None = None
        self._closed = False

    async def close(self) -> None:
        """End every stream; an open one would hold up the daemon's end."""
        self._closed = True
        if self._painter:
            self._painter.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._painter

    async def send(self, request: web.Request, alive: Callable[[], bool]) -> web.StreamResponse:
        """Until the browser leaves, is stuck, or is not `alive` any more. Raises Overloaded."""
        if self._readers >= MOST or self._closed:
            raise Overloaded(f"{MOST} browsers look on already", retry_after=5)
        response = await open_events(request)
        self._readers += 1
        try:
            with contextlib.suppress(TimeoutError, ConnectionError):
                await self._send(response, alive)
        finally:
            self._readers -= 1
        drop(request)
        return response

    async def _send(self, response: web.StreamResponse, alive: Callable[[], bool]) -> None:
        sent, number = self._now(), self._number
        await put(response, message("snapshot", sent, time.time()))
        while alive() and await self._wait_for(number):
            newest, number = self._picture, self._number
            if differ := changes(sent, newest):
                await put(response, message("change", differ, time.time()))
            elif not number % round(SILENCE / PAUSE):
                await put(response, b": still here\n\n")
            sent = newest

    async def _wait_for(self, number: int) -> bool:
        """A picture newer than `number`; False where there will be none."""
        async with self._fresh:
            await self._fresh.wait_for(lambda: self._number > number or self._painter is None)
        return self._painter is not None

    def _now(self) -> Picture:
        """The present picture, and somebody to paint the next ones."""
        if self._painter is None:
            self._picture = self._paint()
            self._painter = asyncio.create_task(self._go_on(), name="dashboard")
        return self._picture

    async def _go_on(self) -> None:
        """Whatever ends it ends the streams too: a browser that comes back starts it anew."""
        try:
            while self._readers:
                await asyncio.sleep(PAUSE)
                self._picture = self._paint()
                await self._tell()
        finally:
            self._painter = None
            await self._tell()

    async def _tell(self) -> None:
        async with self._fresh:
            self._number += 1
            self._fresh.notify_all()


async def open_events(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers=_HEADERS)
    await response.prepare(request)
    await response.write(b"retry: 2000\n\n")
    return response


async def put(response: web.StreamResponse, data: bytes) -> None:
    """Raises TimeoutError where nobody takes it, ConnectionError where nobody is there."""
    async with asyncio.timeout(STUCK):
        await response.write(data)


def drop(request: web.Request) -> None:
    """A browser that is cut off comes back by itself; what it did not take is thrown away."""
    if request.transport is not None:
        request.transport.abort()
