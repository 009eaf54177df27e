"""How long the relay waits for an engine, through a real runner: 504 before the first byte, an error and a cut after."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from fakes import FakeDriver, FakeLease, engine_of

from supervisor.config import Config, EngineDefaults, Peer, Profile, Server
from supervisor.config.secrets import digest
from supervisor.core.routing import Ask
from supervisor.host.upstream import Pool
from supervisor.web.auth import Keyring
from supervisor.web.patience import limits_of
from supervisor.web.server import Server as Port

KEY = {"Authorization": "Bearer sesame"}
ASK: dict[str, Any] = {"model": "llama", "messages": []}
FRAME = b'data: {"choices": []}\n\n'
PIECE = b"x" * (1 << 20)


class Slow:
    """An engine whose answer stops before its head, after it, or after a frame, until it is told to go on."""

    def __init__(self) -> None:
        self.stops_at, self.asked = "", 0
        self.left, self.go_on = asyncio.Event(), asyncio.Event()
        self.pieces = 0

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        try:
            return await self.answer(request)
        except (asyncio.CancelledError, ConnectionResetError):
            self.left.set()
            raise

    async def answer(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await self.at("start")
        await response.prepare(request)
        await self.at("head")
        await response.write(FRAME)
        await self.at("frame")
        for _ in range(self.pieces):
            await response.write(PIECE)
        usage = {"prompt_tokens": 5, "completion_tokens": 3}
        await response.write(b"data: " + json.dumps({"usage": usage}).encode() + b"\n\ndata: [DONE]\n\n")
        return response

    async def at(self, place: str) -> None:
        if self.stops_at == place:
            await self.go_on.wait()


class Place:
    def __init__(self, engine: Slow, driver: FakeDriver, url: str, client: aiohttp.ClientSession) -> None:
        self.engine, self.driver, self.url, self.client = engine, driver, url, client

    def post(self, **more: Any) -> Any:
        url = f"{self.url}/v1/chat/completions"
        return self.client.post(url, headers=KEY, json=ASK | more)


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    engine = Slow()
    async with engine_of({"POST /v1/chat/completions": engine.chat}) as socket:
        config = Config(
            path=Path("llmd.toml"),
            server=Server(listen=("127.0.0.1:0",), drain=0.1),
            engine=EngineDefaults(first_token_timeout=0.4, token_timeout=0.4, answer_timeout=0.8),
            profiles={"llama_0": Profile(name="llama_0", model="llama", weights="w", gpus=(0,))},
        )
        driver = FakeDriver(config, engine=socket)
        port = Port(driver, Keyring({digest("sesame"): "webui"}))
        await port.open()
        async with aiohttp.ClientSession() as client:
            yield Place(engine, driver, port.listening[0], client)
        engine.go_on.set()
        await port.close()


async def drain(answer: aiohttp.ClientResponse, into: bytearray) -> None:
    while chunk := await answer.content.readany():
        into += chunk


@pytest.mark.parametrize("where", ["start", "head"])
async def test_an_answer_that_does_not_begin_is_a_504_and_is_not_asked_for_again(
    place: Place, where: str
) -> None:
    place.engine.stops_at = where
    async with place.post(stream=True) as answer:
        assert answer.status == 504
        error = (await answer.json())["error"]
    assert error["code"] == "engine_timeout"
    assert "did not begin to answer within 0.4 s" in error["message"]
    await asyncio.wait_for(place.engine.left.wait(), 5)
    assert place.engine.asked == 1
    assert place.driver.held == 0


async def test_what_is_not_streamed_has_longer(place: Place) -> None:
    place.engine.stops_at = "start"
    async with place.post() as answer:
        assert answer.status == 504
        assert "within 0.8 s" in (await answer.json())["error"]["message"]


def test_which_limit_is_whose() -> None:
    slow = Profile(name="slow_0", model="slow", weights="w", gpus=(0,), first_token_timeout=900.0)
    config = Config(path=Path("llmd.toml"), profiles={"slow_0": slow})
    leases = [FakeLease(name, Pool(Path("/nowhere"), None, 1.0), None) for name in ("llama_0", "slow_0")]
    streamed = [limits_of(Ask("m", stream=True), config, lease).first for lease in leases]
    assert streamed == [config.engine.first_token_timeout, 900.0]
    whole = [limits_of(Ask("m"), config, lease).first for lease in leases]
    assert whole == [config.engine.answer_timeout] * 2
    leases[0].peer = Peer(url="http://dgx:8000", timeout=7.0)
    assert limits_of(Ask("m"), config, leases[0]).first == 7.0


async def test_silence_between_two_tokens_ends_with_an_error_and_a_cut(place: Place) -> None:
    place.engine.stops_at = "frame"
    got = bytearray()
    async with place.post(stream=True) as answer:
        assert answer.status == 200
        with pytest.raises(aiohttp.ClientError):
            await drain(answer, got)
    assert got.startswith(FRAME)
    assert b'"code": "engine_timeout"' in got
    assert b"fell silent in the middle of its answer" in got
    assert b"[DONE]" not in got
    await asyncio.wait_for(place.engine.left.wait(), 5)
    assert place.engine.asked == 1


async def test_a_client_that_reads_slowly_is_no_silence_of_the_engine(place: Place) -> None:
    """More than fits any buffer waits for a client that is slower than the limit."""
    place.engine.pieces = 32
    async with place.post(stream=True) as answer:
        await asyncio.sleep(1.2)  # longer than the limit: time is what is tested
        got = await answer.read()
    assert got.endswith(b"data: [DONE]\n\n")


async def test_the_tokens_of_an_answer_are_told_with_its_lease(place: Place) -> None:
    async with place.post(stream=True) as answer:
        await answer.read()
    (lease,) = place.driver.leases
    assert (lease.prompt, lease.output) == (5, 3)
