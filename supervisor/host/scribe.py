"""One thread that writes, in order, what must not hold up the event loop: a disk may take seconds, or never answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

BACKLOG = 4096
"""Writes that may be waiting; beyond it a disk that hangs costs what is newest, not memory without end."""

T = TypeVar("T")


class Scribe:
    """`write` and `ask` from one event loop's thread alone."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="llmd-scribe")
        self._waiting = 0
        self.dropped = 0
        """Writes given up because too many waited."""

    def write(self, work: Callable[[], None]) -> bool:
        """Have `work` done after all that was asked for before; it must see to its own errors. False: given up."""
        if self._waiting >= BACKLOG:
            self.dropped += 1
            return False
        self._waiting += 1
        loop = asyncio.get_running_loop()
        self._thread.submit(work).add_done_callback(lambda done: self._done(loop, done))
        return True

    def _done(self, loop: asyncio.AbstractEventLoop, done: Future[None]) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._count, done)

    def _count(self, done: Future[None]) -> None:
        self._waiting -= 1
        done.result()  # an error here is a bug, and the loop tells it

    async def ask(self, work: Callable[[], T]) -> T:
        """What `work` returns, after all that was asked for before."""
        return await asyncio.wrap_future(self._thread.submit(work))

    async def close(self) -> None:
        """Once everything is written."""
        await asyncio.to_thread(self._thread.shutdown)
