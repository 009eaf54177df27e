"""A public port whose model is cold until the test says otherwise, and a small engine behind it."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from fakes import FakeDriver, FakeLease

from supervisor.config import Config, Key, Profile, Server
from supervisor.config.secrets import digest
from supervisor.core.routing import Ask
from supervisor.errors import LlmdError
from supervisor.web.auth import Keyring
from supervisor.web.server import Server as Port

ASK: dict[str, Any] = {"model": "llama", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
ANSWER = b'data: {"choices": []}\n\ndata: [DONE]\n\n'


class Cold(FakeDriver):
    """Its leases wait until `loaded` is set, or fail with what was put in `failure`. `waited` are their patiences."""

    def prepare(self) -> Cold:
        self.loaded, self.waited, self.left = asyncio.Event(), [], asyncio.Event()
        self.failure: LlmdError | None = None
        return self

    loaded: asyncio.Event
    left: asyncio.Event
    waited: list[float | None]

    def lease_at_once(self, ask: Ask) -> FakeLease | None:
        return super().lease_at_once(ask) if self.loaded.is_set() and self.failure is None else None

    @asynccontextmanager
    async def lease(self, ask: Ask, patience: float | None = None) -> AsyncIterator[FakeLease]:
        self.waited.append(patience)
        try:
            await self.loaded.wait()
        except asyncio.CancelledError:
            self.left.set()
            raise
        if self.failure is not None:
            raise self.failure
        async with super().lease(ask, patience) as lease:
            yield lease


class World:
    def __init__(self, driver: Cold, url: str, client: aiohttp.ClientSession) -> None:
        self.driver, self.url, self.client = driver, url, client
        self.status, self.body = 200, ANSWER
        self.sent: dict[str, Any] = {}

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.sent = await request.json()
        kind = "text/event-stream" if self.status == 200 else "application/json"
        return web.Response(body=self.body, status=self.status, content_type=kind)

    def post(self, key: str = "commenting", **more: Any) -> Any:
        headers = {"Authorization": f"Bearer {key}", **more.pop("headers", {})}
        path = more.pop("path", "/v1/chat/completions")
        return self.client.post(self.url + path, headers=headers, **{"json": ASK, **more})

    def fail(self, error: LlmdError) -> None:
        self.driver.failure = error
        self.driver.loaded.set()


@asynccontextmanager
async def cold_world() -> AsyncIterator[World]:
    """Keys are named after how their streams are held."""
    folder = Path(tempfile.mkdtemp(prefix="llmd-", dir="/tmp"))
    modes = {"commenting": None, "emptying": "empty", "reasoning": "reasoning", "silent": "off"}
    config = Config(
        path=Path("llmd.toml"),
        server=Server(listen=("127.0.0.1:0",), drain=0.1, hold_after=0.05, keepalive=0.05),
        profiles={"llama_0": Profile(name="llama_0", model="llama", weights="w", gpus=(0,))},
        keys={name: Key(env=name, hold=mode) for name, mode in modes.items()},  # type: ignore[arg-type]
    )
    driver = Cold(config, engine=folder / "e").prepare()
    port = Port(driver, Keyring({digest(name): name for name in modes}))
    await port.open()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as client:
        world = World(driver, port.listening[0], client)
        app = web.Application()
        app.router.add_post("/v1/{route:.+}", world.answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.UnixSite(runner, str(folder / "e")).start()
        yield world
    driver.loaded.set()
    await port.close()
    await runner.cleanup()
    shutil.rmtree(folder)
