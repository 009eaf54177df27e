"""llama.cpp's model routes at the root, behind `server.llama_cpp`: Open WebUI's buttons to load and unload speak them.

Whoever has a key may press them, which is why they are off by default.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec
from aiohttp import web

from supervisor.core.lifecycle import COMING, State
from supervisor.core.why import profiles_called
from supervisor.errors import BadRequest, LlmdError
from supervisor.web.driving import Driver
from supervisor.web.openai import model_entries
from supervisor.web.record import RECORD

_AT_ONCE = 0.5
"""Seconds in which a refused start is told as such; a start itself goes on behind the answer."""

_VALUES = {State.READY: "loaded", State.SLEEPING: "sleeping", **dict.fromkeys(COMING, "loading")}
_BEST = ("loaded", "loading", "sleeping", "unloaded")


class Named(msgspec.Struct):
    """The body of a load or an unload."""

    model: str


class LlamaCpp:
    """`identify` gives the source of a request, or raises Unauthorized."""

    def __init__(self, driver: Driver, identify: Callable[[web.Request], str]) -> None:
        self._driver, self._identify = driver, identify
        self._starts: set[asyncio.Task[LlmdError | None]] = set()

    def add_to(self, app: web.Application) -> None:
        app.router.add_get("/models", self._list)
        app.router.add_post("/models/load", self._load)
        app.router.add_post("/models/unload", self._unload)

    async def _list(self, request: web.Request) -> web.StreamResponse:
        request[RECORD].source = self._identify(request)
        created = int(time.time() - (time.monotonic() - self._driver.started_at))
        entries = model_entries(self._driver.config, self._driver.status()["engines"], created)
        data = [entry | {"status": {"value": self._value(name)}} for name, entry in entries.items()]
        return web.json_response({"object": "list", "data": data})

    async def _load(self, request: web.Request) -> web.StreamResponse:
        """Answers before the model is loaded, as llama.cpp does; the list tells when it is."""
        name = await self._named(request)
        if self._value(name) not in ("loaded", "loading"):
            await self._start(profiles_called(name, self._driver.config)[0])
        return web.json_response({"success": True})

    async def _start(self, profile: str) -> None:
        start = asyncio.create_task(self._tried(profile))
        self._starts.add(start)
        start.add_done_callback(self._starts.discard)
        done, _ = await asyncio.wait({start}, timeout=_AT_ONCE)
        if done and (refusal := start.result()):
            raise refusal

    async def _tried(self, profile: str) -> LlmdError | None:
        """Why it did not come up. Told later than at once, it is in the log."""
        try:
            await self._driver.start(profile)
        except LlmdError as error:
            return error
        return None

    async def _unload(self, request: web.Request) -> web.StreamResponse:
        """What runs ends first, within the profile's drain."""
        name = await self._named(request)
        for profile in profiles_called(name, self._driver.config):
            if self._states()[profile] != State.COLD:
                await self._driver.stop(profile)
        return web.json_response({"success": True})

    async def _named(self, request: web.Request) -> str:
        record = request[RECORD]
        record.source = self._identify(request)
        try:
            record.model = msgspec.json.decode(await request.read(), type=Named).model[:200]
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadRequest(f'this takes {{"model": NAME}}: {error}', param="model") from None
        profiles_called(record.model, self._driver.config)  # raises ModelNotFound
        return record.model

    def _states(self) -> dict[str, str]:
        return {engine["profile"]: engine["state"] for engine in self._driver.status()["engines"]}

    def _value(self, name: str) -> str:
        """llama.cpp's word for how far the best of a model's profiles is."""
        states = self._states()
        values = {
            _VALUES.get(State(states[p]), "unloaded") for p in profiles_called(name, self._driver.config)
        }
        return min(values, key=_BEST.index)
