"""Requests that wait. The head of a held stream goes out early, then signs of life, then the answer.

Clients that retry give up within seconds, and those that wait take five minutes of silence for death. What is not
streamed is held silently: whitespace before JSON would break some clients. A refusal that comes quickly keeps its
HTTP status; a later one ends the stream with an error frame and a cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

from aiohttp import web

from supervisor.config import Config
from supervisor.config.models import Hold
from supervisor.core.routing import Ask
from supervisor.errors import LlmdError
from supervisor.web import dialects
from supervisor.web.driving import Driver, Lease
from supervisor.web.patience import comes
from supervisor.web.record import RECORD
from supervisor.web.routes import dialect_of

BEGUN = web.RequestKey("begun", web.StreamResponse)
"""The answer to a request, once its head has been sent before there was an engine to give it."""

COMMENT = b": keepalive\n\n"
"""Every client skips it; `: ping` and empty data break some."""

_TIMEOUTS = ("x-stainless-read-timeout", "x-stainless-timeout", "timeout")
"""Headers in which SDKs say, in seconds, how long they wait."""

_SOONER = 1.0
"""Seconds before a client gives up that it is told why."""

_SOONEST = 0.1
"""Seconds between two signs of life at the least, however hastily a client says that it gives up."""

_HEAD = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}
"""Proxies may not gather what is sent to show life."""

READS = "Reading the prompt"
"""What an engine does that has taken a request and not answered yet, for people who are shown progress."""

_CHAT, _TEXT, _MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/messages"


def hold_of(config: Config, source: str) -> Hold:
    key = config.keys.get(source)
    return config.server.hold if key is None or key.hold is None else key.hold


def stated_timeout(headers: Mapping[str, str]) -> float | None:
    """Seconds that the client will wait for a byte, where it says so."""
    for name in _TIMEOUTS:
        with contextlib.suppress(ValueError):
            seconds = float(headers.get(name, ""))
            if 0 < seconds < math.inf:
                return seconds
    return None


class Signs(NamedTuple):
    """Of life, one in `every` so many seconds."""

    mode: Hold
    every: float


def signs_of(config: Config, ask: Ask, stated: float | None) -> Signs:
    """None for what is not streamed. `stated`: seconds that the client waits for a byte, where it says so."""
    mode = hold_of(config, ask.source) if ask.stream else "off"
    if mode == "off":
        return Signs(mode, math.inf)
    sooner = math.inf if stated is None else max(stated / 2, _SOONEST)
    return Signs(mode, min(config.server.keepalive, sooner))


class Waiting:
    """One request and its wait for an engine."""

    def __init__(self, request: web.Request, ask: Ask, driver: Driver) -> None:
        server, stated = driver.config.server, stated_timeout(request.headers)
        self._request, self._ask, self._driver = request, ask, driver
        self.signs = signs_of(driver.config, ask, stated)
        self._grace, self._patience = server.hold_after, server.max_wait
        if stated is not None and self.signs.mode == "off":
            self._patience = min(server.max_wait, max(stated - _SOONER, stated / 2))
        elif stated is not None:
            self._grace = min(self._grace, stated / 2)

    @property
    def begun(self) -> web.StreamResponse | None:
        """The answer, where its head is out."""
        return self._request.get(BEGUN)

    @asynccontextmanager
    async def lease(self, ask: Ask) -> AsyncIterator[Lease]:
        """As the driver's, for `ask` or what became of it after a first try, with signs of life until it is there.
        Raises LlmdError, also after the head was sent."""
        async with AsyncExitStack() as stack:
            async with self._signs():
                lease = await stack.enter_async_context(self._driver.lease(ask, self._patience))
            yield lease

    @asynccontextmanager
    async def _signs(self) -> AsyncIterator[None]:
        if self.signs.mode == "off":
            yield
            return
        over = asyncio.Event()
        keeper = asyncio.create_task(self._keep(over), name="keepalive")
        try:
            yield
        finally:
            over.set()  # and not cancelled: a head half sent could not be taken up by anyone
            await keeper

    async def _keep(self, over: asyncio.Event) -> None:
        if self.begun is None and await comes(over, self._grace):
            return
        with contextlib.suppress(ConnectionResetError):  # the client left, and its request is being cancelled
            response = self.begun or await self._begin()
            while not over.is_set():
                await response.write(self._sign())
                await comes(over, self.signs.every)

    async def _begin(self) -> web.StreamResponse:
        response = web.StreamResponse(headers=_HEAD | self._request[RECORD].headers())
        await response.prepare(self._request)
        self._request[BEGUN] = response
        return response

    def _sign(self) -> bytes:
        mode = self.signs.mode
        words = self._driver.progress(self._ask.model) if mode == "reasoning" else ""
        return sign(mode, self._request.path, self._ask.model, self._request[RECORD].request_id, words)


def sign(mode: Hold, path: str, model: str, request_id: str, words: str) -> bytes:
    """A sign of life in the shape of the route's own events; a comment where that has no empty one."""
    if mode == "comment":
        return COMMENT
    if path == _MESSAGES:
        return _event({"type": "ping"}, "ping")
    if path == _TEXT:
        return _event(_chunk("text_completion", f"cmpl-{request_id}", model, {"text": ""}))
    if path != _CHAT:
        return COMMENT
    said = {"reasoning_content": f"{words}\n"} if mode == "reasoning" else {"content": ""}
    delta = {"delta": {"role": "assistant", **said}}
    return _event(_chunk("chat.completion.chunk", f"chatcmpl-{request_id}", model, delta))


def _chunk(kind: str, name: str, model: str, part: Mapping[str, object]) -> dict[str, object]:
    """vLLM's, under the id that it will give the rest."""
    choices = [{"index": 0, **part, "finish_reason": None}]
    return {"id": name, "object": kind, "created": int(time.time()), "model": model, "choices": choices}


def _event(data: object, name: str | None = None) -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data)}\n\n".encode()


# When it goes wrong after the head was sent


async def break_off(request: web.Request, begun: web.StreamResponse, error: LlmdError) -> None:
    """Tell the error in the stream and cut the connection: a clean end would pass for success."""
    request[RECORD].refused(error)
    with contextlib.suppress(ConnectionResetError):
        await begun.write(dialects.event(error, dialect_of(request.path)))
    if request.transport is not None:
        request.transport.close()  # what is written still goes out; the chunk that ends an answer does not
