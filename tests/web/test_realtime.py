"""Websockets whose engine fails: before the handshake the next one is asked, later nothing is tried again."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType, web
from fakes import FakeDriver
from wires import log_lines

from supervisor.config import Config, EngineDefaults, Profile, Server
from supervisor.web import realtime
from supervisor.web.auth import Keyring
from supervisor.web.server import Server as Port

Engine = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def speaks(request: web.Request) -> web.StreamResponse:
    """As vLLM does: first it says that it is there, then it answers."""
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    await socket.send_json({"type": "session.created"})
    async for message in socket:
        await socket.send_str(message.data)
    return socket


async def dies(request: web.Request) -> web.StreamResponse:
    assert request.transport
    request.transport.close()
    return web.Response()


async def dies_later(request: web.Request) -> web.StreamResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    await socket.send_json({"type": "session.created"})
    await socket.receive()
    return await dies(request)


async def refuses(request: web.Request) -> web.StreamResponse:
    return web.Response(status=403)


async def is_silent(request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


DIES = (dies, dies)
"""aiohttp asks one that cut it off once more, by itself."""


class World:
    """Each try meets the next of `engines`."""

    def __init__(self, folder: Path) -> None:
        self.engines: list[Engine] = []
        ear = Profile(name="ear_0", model="ear", weights="whisper", gpus=(0,), task="transcribe")
        config = Config(
            path=Path("llmd.toml"),
            server=Server(listen=("127.0.0.1:0",), drain=0.1),
            engine=EngineDefaults(first_token_timeout=0.3),
            profiles={ear.name: ear},
        )
        self.driver = FakeDriver(config, engine=folder / "e", over=True)
        self.port = Port(self.driver, Keyring({}, open=True))

    async def serve(self, request: web.Request) -> web.StreamResponse:
        return await self.engines.pop(0)(request)

    @property
    def url(self) -> str:
        return f"{self.port.listening[0]}/v1/realtime?model=ear"

    @property
    def failures(self) -> list[int]:
        """Of each lease."""
        return [len(lease.failures) for lease in self.driver.leases]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    folder = Path(tempfile.mkdtemp(prefix="llmd-", dir="/tmp"))
    made, app = World(folder), web.Application()
    app.router.add_get("/v1/realtime", made.serve)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.UnixSite(runner, str(folder / "e")).start()
    await made.port.open()
    yield made
    await made.port.close()
    await runner.cleanup()
    shutil.rmtree(folder)


def configure(world: World, **tables: Any) -> None:
    world.driver.config = world.driver.config.model_copy(update=tables)


@contextlib.asynccontextmanager
async def listening(world: World) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    async with (
        asyncio.timeout(10),
        aiohttp.ClientSession() as client,
        client.ws_connect(world.url) as socket,
    ):
        yield socket


async def refused(world: World) -> tuple[int, dict[str, Any]]:
    """The answer to a handshake, whose body aiohttp's own websockets do not read."""
    wish = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    headers = wish | {"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}
    async with (
        asyncio.timeout(10),
        aiohttp.ClientSession(headers=headers) as client,
        client.get(world.url) as answer,
    ):
        error: dict[str, Any] = (await answer.json())["error"]
        return answer.status, error


async def test_an_engine_that_dies_before_the_handshake_leaves_the_socket_to_another(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.engines = [*DIES, speaks]
    async with listening(world) as socket:
        assert await socket.receive_json() == {"type": "session.created"}
        await socket.send_json({"n": 1})
        assert await socket.receive_json() == {"n": 1}
    assert [ask.tried for ask in world.driver.asks] == [frozenset(), {"i1"}]
    assert world.failures == [1, 0]
    assert [lease.answers for lease in world.driver.leases] == [0, 1]
    await world.port.close()
    assert world.driver.held == 0
    (line,) = log_lines(capsys)
    assert line["status"] == 101


async def test_it_is_tried_once_more_and_not_again(world: World) -> None:
    world.engines = [*DIES, *DIES, speaks]
    status, error = await refused(world)
    assert (status, error["code"]) == (502, "engine_failed")
    assert (world.failures, len(world.engines)) == ([1, 1], 1)


async def test_an_engine_that_cannot_be_reached_is_known_by_its_socket(world: World) -> None:
    world.driver.engine.unlink()
    status, error = await refused(world)
    assert (status, "took no websocket" in error["message"]) == (502, True)
    assert world.failures == [1, 1]


async def test_where_the_engine_lives_nothing_is_tried_again(world: World) -> None:
    world.engines, world.driver.over = [*DIES, speaks], False
    status, _ = await refused(world)
    assert (status, world.failures, len(world.engines)) == (502, [1], 1)


async def test_after_the_first_message_nothing_is_tried_again(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.engines = [dies_later, speaks]
    async with listening(world) as socket:
        assert await socket.receive_json() == {"type": "session.created"}
        await socket.send_json({"n": 1})
        ended = await socket.receive()
        assert (ended.type, ended.data) == (WSMsgType.CLOSE, 1011)
    assert (len(world.driver.asks), len(world.engines)) == (1, 1)
    await world.port.close()
    (line,) = log_lines(capsys)
    assert (line["status"], line["error"]) == (502, "the engine of ear_0 (model 'ear') broke off a websocket")


async def test_a_message_that_is_too_long_is_not_held_and_ends_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(realtime, "_LARGEST", 1000)
    world.engines = [speaks]
    async with listening(world) as socket:
        await socket.receive_json()
        await socket.send_str("x" * 900)
        assert (await socket.receive()).data == "x" * 900
        await socket.send_str("x" * 1100)
        ended = await socket.receive()
        assert (ended.type, ended.data) == (WSMsgType.CLOSE, 1009)
    while world.driver.held:  # noqa: ASYNC110 - nothing announces it
        await asyncio.sleep(0)


async def test_a_client_that_is_cut_off_has_left(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.engines = [speaks]
    async with listening(world) as socket:
        await socket.receive_json()
        assert socket._response.connection
        assert socket._response.connection.transport
        socket._response.connection.transport.abort()
        while world.driver.held:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0)
    await world.port.close()
    (line,) = log_lines(capsys)
    assert line["status"] == 499


async def test_a_refusal_is_told_and_held_against_nobody(world: World) -> None:
    """Not every engine has the route; asking for it again and again restarts none."""
    world.engines = [refuses, speaks]
    status, error = await refused(world)
    assert (status, "it answered 403" in error["message"]) == (502, True)
    assert (world.failures, len(world.engines)) == ([0], 1)


async def test_an_engine_that_does_not_answer_the_handshake_is_given_up(world: World) -> None:
    world.engines = [is_silent, speaks]
    status, error = await refused(world)
    assert (status, error["code"]) == (504, "engine_timeout")
    assert (world.failures, len(world.engines)) == ([1], 1)


async def test_what_is_no_handshake_takes_no_place(world: World) -> None:
    async with aiohttp.ClientSession() as client, client.get(world.url) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (400, "invalid_request")
    assert world.driver.asks == []


async def test_one_that_is_left_open_gives_its_place_back(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(world, server=world.driver.config.server.model_copy(update={"request_timeout": 0.3}))
    world.engines = [speaks]
    async with listening(world) as socket:
        await socket.receive_json()
        assert (await socket.receive()).type in (WSMsgType.CLOSED, WSMsgType.CLOSE)
    await world.port.close()
    (line,) = log_lines(capsys)
    assert (line["status"], line["code"], world.driver.held) == (504, "engine_timeout", 0)


# Cancelled by a person


def cancel(world: World) -> None:
    traffic = world.port.router._traffic
    traffic.cancel(*traffic.in_flight())


async def test_one_that_waits_is_told(world: World) -> None:
    world.engines, world.driver.config = (
        [is_silent],
        world.driver.config.model_copy(update={"engine": EngineDefaults(first_token_timeout=60)}),
    )
    asking = asyncio.create_task(refused(world))
    async with asyncio.timeout(5):
        while world.engines:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0)
    cancel(world)
    status, error = await asking
    assert (status, error["code"]) == (503, "cancelled")
    assert world.failures == [0]


async def test_one_that_is_open_ends(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.engines = [speaks]
    async with listening(world) as socket:
        await socket.receive_json()
        cancel(world)
        assert (await socket.receive()).type in (WSMsgType.CLOSED, WSMsgType.CLOSE)
    await world.port.close()
    (line,) = log_lines(capsys)
    assert (line["status"], line["code"]) == (503, "cancelled")
