"""llama.cpp's model routes at the root, behind `server.llama_cpp`: Open WebUI's buttons to load and unload speak them.

Whoever has a key may press them, which is why they are off by default.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import Callable
from typing import Any

import msgspec
from aiohttp import web

from supervisor.core.lifecycle import COMING, State
from supervisor.core.routing import LONGEST_NAME
from supervisor.core.why import profiles_called
from supervisor.errors import BadRequest, LlmdError
from supervisor.web import catalogue
from supervisor.web.driving import Driver
from supervisor.web.invitation import invite
from supervisor.web.patience import comes, hurried
from supervisor.web.record import RECORD
from supervisor.web.ui.stream import SILENCE, drop, open_events, put

_AT_ONCE = 0.5
"""Seconds in which a refused start is told as such; a start itself goes on behind the answer."""

PAUSE = 0.5
"""Seconds between two looks for changes that a stream of them tells."""

_VALUES = {State.READY: "loaded", State.SLEEPING: "sleeping", **dict.fromkeys(COMING, "loading")}
Json = dict[str, Any]

_BEST = ("loaded", "loading", "sleeping", "unloaded")


class Named(msgspec.Struct):
    """The body of a load or an unload."""

    model: str


class LlamaCpp:
    """`identify` gives the source of a request, or raises Unauthorized."""

    def __init__(self, driver: Driver, identify: Callable[[web.Request], str]) -> None:
        self._driver, self._identify = driver, identify
        self._starts: set[asyncio.Task[LlmdError | None]] = set()
        self._closing = asyncio.Event()

    def add_to(self, app: web.Application) -> None:
        app.router.add_get("/models", self._list)
        app.router.add_get("/models/sse", self._changes)
        app.router.add_post("/models/load", self._load)
        app.router.add_post("/models/unload", self._unload)
        app.on_shutdown.append(self._close)

    async def _close(self, app: web.Application) -> None:
        self._closing.set()

    async def _list(self, request: web.Request) -> web.StreamResponse:
        request[RECORD].source = self._identify(request)
        own = catalogue.entries(self._driver, abroad=False)
        data = [entry | {"status": {"value": self._value(name)}} for name, entry in own.items()]
        return web.json_response({"object": "list", "data": data})

    async def _changes(self, request: web.Request) -> web.StreamResponse:
        """How far every model is, and then each change, until the client leaves."""
        request[RECORD].source = self._identify(request)
        response = await open_events(request)
        told: dict[str, Any] = {}
        with contextlib.suppress(ConnectionError, TimeoutError):
            for look in itertools.count(1):
                found = self._picture()
                if lines := [_event(name, now) for name, now in found.items() if told.get(name) != now]:
                    await put(response, b"".join(lines))
                elif not look % round(SILENCE / PAUSE):
                    await put(response, b": still here\n\n")
                told = found
                if await comes(self._closing, PAUSE):
                    break
        drop(request)
        return response

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
            await self._driver.operators.start(profile)
        except LlmdError as error:
            return error
        return None

    async def _unload(self, request: web.Request) -> web.StreamResponse:
        """What runs ends first, within the profile's drain."""
        name = await self._named(request)
        for profile in profiles_called(name, self._driver.config):
            if self._engines()[profile]["state"] != State.COLD:
                await self._driver.operators.stop(profile)
        return web.json_response({"success": True})

    async def _named(self, request: web.Request) -> str:
        record = request[RECORD]
        record.source = self._identify(request)
        invite(request)
        with hurried(request, self._driver.config.server.body_timeout):
            body = await request.read()
        try:
            record.model = msgspec.json.decode(body, type=Named).model[:LONGEST_NAME]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequest(f'this takes {{"model": NAME}}: {error}', param="model") from None
        profiles_called(record.model, self._driver.config)  # raises ModelNotFound
        return record.model

    def _engines(self) -> dict[str, Json]:
        return {engine["profile"]: engine for engine in self._driver.status()["engines"]}

    def _value(self, name: str) -> str:
        return self._how_far(name, self._engines())

    def _how_far(self, name: str, engines: dict[str, Json]) -> str:
        """llama.cpp's word for how far the best of a model's profiles is."""
        states = [State(engines[profile]["state"]) for profile in profiles_called(name, self._driver.config)]
        return min((_VALUES.get(state, "unloaded") for state in states), key=_BEST.index)

    def _picture(self) -> dict[str, Json]:
        """Every name but adapters', which come and go with their profile."""
        profiles, engines = self._driver.config.profiles, self._engines()
        names = dict.fromkeys([*(profile.model for profile in profiles.values()), *profiles])
        return {name: self._told(name, engines) for name in names}

    def _told(self, name: str, engines: dict[str, Json]) -> Json:
        """With its stage and, from 0 to 1, how much of that is done."""
        status = self._how_far(name, engines)
        for profile in profiles_called(name, self._driver.config):
            engine = engines[profile]
            if status == "loading" and engine.get("stage"):
                progress = {"current": engine["stage"], "value": round(engine["percent"] / 100, 2)}
                return {"status": status, "progress": progress}
        return {"status": status}


def _event(name: str, told: Json) -> bytes:
    return f"data: {json.dumps({'model': name, 'event': 'status_change', 'data': told})}\n\n".encode()
