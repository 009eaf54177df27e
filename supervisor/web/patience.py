"""How long an engine is waited for: until its answer begins, and between two pieces of it."""

from __future__ import annotations

import asyncio

import aiohttp

from supervisor.config.models import EngineDefaults
from supervisor.core.routing import Ask
from supervisor.errors import Withdrawn

CANCELLED = "cancelled by an operator of this host"


def before_the_answer(ask: Ask, limits: EngineDefaults) -> float:
    """Seconds. What is not streamed begins when its last token is made."""
    return limits.first_token_timeout if ask.stream else limits.answer_timeout


class Reader:
    """Reads an answer to its end, waiting for each piece at most `limit` seconds.

    The client's slowness does not count: the clock runs while the engine is waited for. One timer for the whole
    answer, which looks when the last wait began, costs a token nothing.
    """

    def __init__(self, content: aiohttp.StreamReader, limit: float) -> None:
        self._content, self._limit = content, limit
        self._loop = asyncio.get_running_loop()
        self._since: float | None = None
        self._timer = self._loop.call_later(limit, self._look)

    async def read(self) -> bytes:
        """The next piece, empty at the end. Raises TimeoutError, and what the connection raises."""
        self._since = self._loop.time()
        try:
            return await self._content.readany()
        finally:
            self._since = None

    def withdraw(self) -> None:
        """The next read, or the one under way, raises Withdrawn."""
        self._content.set_exception(Withdrawn(CANCELLED))

    def close(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        due = (now if self._since is None else self._since) + self._limit
        if due <= now:
            self._content.set_exception(TimeoutError())
        else:
            self._timer = self._loop.call_at(due, self._look)
