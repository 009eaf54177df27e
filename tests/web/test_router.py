"""The public port through a real runner, against an engine on a Unix socket that answers and fails in each way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from fakes import FakeDriver, engine_of

from supervisor.config import Config, Profile, Server
from supervisor.config.secrets import digest
from supervisor.errors import NotAvailable
from supervisor.web.auth import Keyring
from supervisor.web.server import Server as Port
from tests.standin.launch import until

KEY = {"Authorization": "Bearer sesame"}
ASK = {"model": "llama", "messages": [{"role": "user", "content": "a secret prompt"}]}
USAGE = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
FRAME = b'data: {"choices": []}\n\n'


class Engine:
    """`how` says what it does to a chat; `headers` are those it was sent."""

    def __init__(self) -> None:
        self.how = "whole"
        self.headers: dict[str, str] = {}
        self.arrived, self.left, self.go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.headers = {name.lower(): value for name, value in request.headers.items()}
        self.arrived.set()
        if self.how == "mute once":
            self.how, mute = "whole", request.transport
            assert mute is not None
            mute.close()
            return web.Response()
        if self.how == "whole":
            return web.json_response({"echo": await request.json(), "usage": USAGE})
        if self.how == "unauthorized":
            return web.json_response({}, status=401)
        try:
            return await self.stream(request)
        except asyncio.CancelledError:
            self.left.set()
            raise

    async def stream(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        if self.how == "mute":
            request.transport.close()
            return web.Response()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(FRAME)
        await self.go_on.wait()
        if self.how == "die":
            request.transport.close()
        elif self.how == "error":
            await response.write(b'data: {"error": {"message": "dead"}}\n\ndata: [DONE]\n\n')
        elif self.how == "end":
            await response.write(b'data: {"usage": ' + json.dumps(USAGE).encode() + b"}\n\n")
            await response.write(b"data: [DONE]\n\n")
        return response


class World:
    def __init__(self, engine: Engine, driver: FakeDriver, url: str, client: aiohttp.ClientSession) -> None:
        self.engine, self.driver, self.url, self.client = engine, driver, url, client

    def post(self, path: str = "/v1/chat/completions", **more: Any) -> Any:
        return self.client.post(self.url + path, **{"json": ASK, "headers": KEY, **more})

    def get(self, path: str) -> Any:
        return self.client.get(self.url + path, headers=KEY)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    engine = Engine()
    async with engine_of({"POST /v1/chat/completions": engine.chat}) as socket:
        config = Config(
            path=Path("llmd.toml"),
            server=Server(listen=("127.0.0.1:0",), max_body=1 << 16, drain=0.1),
            profiles={"llama_0": Profile(name="llama_0", model="llama", weights="w", gpus=(0,))},
        )
        driver = FakeDriver(config, engine=socket)
        port = Port(driver, Keyring({digest("sesame"): "webui"}))
        await port.open()
        async with aiohttp.ClientSession() as client:
            yield World(engine, driver, port.listening[0], client)
        engine.go_on.set()
        await port.close()


async def drain(answer: aiohttp.ClientResponse, into: bytearray) -> None:
    while chunk := await answer.content.readany():
        into += chunk


def logged(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    (line,) = [line for line in lines if line["event"] == "request"]
    return dict(line)


async def test_an_answer_comes_back_whole(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    async with world.post() as answer:
        assert answer.status == 200
        assert (await answer.json())["echo"] == ASK
        assert answer.headers["x-llmd-profile"] == "llama_0"
        assert answer.headers["x-llmd-queue-ms"] == "250"
        assert answer.headers["x-request-id"] == answer.headers["request-id"]
    await until(lambda: world.driver.held == 0)
    out = capsys.readouterr().err
    line = json.loads(out.splitlines()[-1])
    assert (line["model"], line["profile"], line["source"]) == ("llama", "llama_0", "webui")
    assert (line["prompt"], line["completion"], line["tokens"], line["status"]) == (5, 3, 8, 200)
    assert "secret" not in out
    assert "sesame" not in out


async def test_an_engine_is_asked_by_a_name_that_it_knows(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.driver.at_once = False
    monkeypatch.setattr("supervisor.web.router.names_of", lambda profile: (profile.model,))
    async with world.post(json=ASK | {"model": "llama_0"}) as answer:
        assert (await answer.json())["echo"] == ASK


async def test_what_is_kept_of_a_request_is_who_what_and_how_it_ended(world: World) -> None:
    async with world.post(headers=KEY | {"X-Request-Id": "r1"}) as answer:
        await answer.read()
    async with world.post(headers={}) as answer:
        assert answer.status == 401
    async with world.get("/v1/models") as answer:
        assert answer.status == 200
    async with world.post(json={"model": "gone"}) as answer:
        assert answer.status == 404
    good, bad = (
        world.driver.register.noted
    )  # of strangers, and of those who asked for no model, nothing is kept
    assert (good.request_id, good.source, good.model, good.profile) == ("r1", "webui", "llama", "llama_0")
    assert (good.path, good.status, good.code, good.hit) == ("/v1/chat/completions", 200, None, "warm")
    assert (good.prompt, good.completion, good.queue_ms) == (5, 3, 250)
    assert (bad.model, bad.profile, bad.status, bad.code) == ("gone", None, 404, "model_not_found")


async def test_keys_and_privileges_stay_here(world: World) -> None:
    sent = KEY | {
        "Cookie": "a=b",
        "X-Vllm-Priority": "-9",
        "X-data-parallel-rank": "1",
        "X-Request-Id": "mine",
    }
    async with world.post(headers=sent) as answer:
        assert answer.headers["x-request-id"] == "mine"
    assert world.engine.headers["authorization"] == "Bearer engine"
    assert world.engine.headers["x-request-id"] == "mine"
    assert not {"cookie", "x-vllm-priority", "x-data-parallel-rank"} & set(world.engine.headers)


@pytest.mark.parametrize("how", ["whole", "end"])
async def test_the_tokens_that_the_engine_counted_are_told_with_the_lease(world: World, how: str) -> None:
    world.engine.how = how
    world.engine.go_on.set()
    async with world.post() as answer:
        await answer.read()
    await until(lambda: world.driver.held == 0)
    (lease,) = world.driver.leases
    assert (lease.prompt, lease.output) == (USAGE["prompt_tokens"], USAGE["completion_tokens"])


async def test_a_stream_comes_piece_by_piece(world: World) -> None:
    world.engine.how = "end"
    async with world.post() as answer:
        assert await answer.content.readuntil(b"\n\n") == FRAME  # before the engine goes on
        world.engine.go_on.set()
        assert (await answer.content.read()).endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("how", ["die", "error", "short"])
async def test_a_broken_stream_ends_with_an_error_and_a_cut(world: World, how: str) -> None:
    world.engine.how = how
    world.engine.go_on.set()
    got = bytearray()
    async with world.post() as answer:
        with pytest.raises(aiohttp.ClientPayloadError):
            await drain(answer, got)
    assert got.startswith(FRAME)
    assert b'data: {"error"' in got
    assert b"[DONE]" not in got
    await until(lambda: world.driver.held == 0)


@pytest.mark.parametrize("how", ["mute", "unauthorized"])
async def test_a_failure_before_the_first_byte_is_told(world: World, how: str) -> None:
    world.engine.how = how
    async with world.post() as answer:
        error = (await answer.json())["error"]
        assert (answer.status, error["code"]) == (502, "engine_failed")
        assert "CUDA out of memory" in error["message"]


async def test_an_engine_that_died_before_the_first_byte_is_replaced_unseen(world: World) -> None:
    world.engine.how, world.driver.over = "mute once", True
    async with world.post() as answer:
        assert answer.status == 200
        assert (await answer.json())["echo"] == ASK
    assert len(world.driver.leases) == 2


@pytest.mark.parametrize(("over", "leases"), [(True, 2), (False, 1)])
async def test_once_and_only_if_it_is_dead(world: World, over: bool, leases: int) -> None:
    world.engine.how, world.driver.over = "mute", over
    async with world.post() as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (502, "engine_failed")
    assert len(world.driver.leases) == leases


async def test_never_after_the_first_byte(world: World) -> None:
    world.engine.how, world.driver.over = "die", True
    world.engine.go_on.set()
    got = bytearray()
    async with world.post() as answer:
        with pytest.raises(aiohttp.ClientPayloadError):
            await drain(answer, got)
    assert got.startswith(FRAME)
    assert len(world.driver.leases) == 1


async def test_what_became_of_a_request_is_told_for_those_who_ask_why(world: World) -> None:
    async with world.post(headers=KEY | {"X-Request-Id": "mine"}) as answer:
        await answer.read()
    await until(lambda: world.driver.outcomes)
    assert world.driver.outcomes["mine"]["status"] == 200
    assert world.driver.outcomes["mine"]["completion"] == 3


async def test_an_engine_that_is_not_there_is_told(world: World) -> None:
    world.driver.engine = Path("/nowhere")
    async with world.post() as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (502, "engine_failed")


async def test_a_client_that_leaves_stops_the_engine(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.engine.how = "end"
    async with aiohttp.ClientSession() as leaving:
        answer = await leaving.post(world.url + "/v1/chat/completions", json=ASK, headers=KEY)
        await answer.content.readuntil(b"\n\n")
        answer.close()
    async with asyncio.timeout(5):
        await world.engine.left.wait()
    await until(lambda: world.driver.held == 0)
    assert logged(capsys)["status"] == 499


@pytest.mark.parametrize(
    ("path", "more", "status", "code"),
    [
        ("/v1/chat/completions", {"headers": {}}, 401, "invalid_api_key"),
        ("/v1/chat/completions", {"json": None, "data": b"{"}, 400, "invalid_request"),
        ("/v1/chat/completions", {"json": None, "data": b"x" * (1 << 17)}, 413, "body_too_large"),
        ("/v1/chat/completions", {"json": {"model": "gone"}}, 404, "model_not_found"),
        ("/v1/embeddings", {}, 400, "wrong_task"),
        ("/sleep", {}, 404, "route_not_found"),
        ("/v1/models", {}, 405, "method_not_allowed"),
        ("/v1/chat/completions", {"headers": [*KEY.items(), *KEY.items()]}, 400, "invalid_request"),
    ],
)
async def test_every_refusal_has_openais_shape(
    world: World, path: str, more: dict[str, Any], status: int, code: str
) -> None:
    async with world.post(path, **more) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (status, code)
        assert answer.headers["x-should-retry"] == "false"
    assert not world.engine.arrived.is_set()


async def test_a_name_without_an_end_is_not_kept(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    async with world.post(json={"model": "x" * 10_000}) as answer:
        assert answer.status == 404
    assert logged(capsys)["model"] == "x" * 200
    (kept,) = world.driver.register.noted
    assert kept.model == "x" * 200


async def test_a_refusal_says_when_to_come_back(world: World) -> None:
    world.driver.refusal = NotAvailable("night", retry_after=600)
    async with world.post() as answer:
        assert (answer.status, answer.headers["Retry-After"]) == (503, "59")


async def test_models_are_listed_and_found(world: World) -> None:
    async with world.get("/v1/models") as answer:
        assert [entry["id"] for entry in (await answer.json())["data"]] == ["llama", "llama_0"]
    async with world.get("/v1/models/llama") as answer:
        assert (await answer.json())["status"] == {"value": "ready"}
    async with world.get("/v1/models/org%2Fgone") as answer:
        assert answer.status == 404
        assert "'org/gone'" in (await answer.json())["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/llama"])
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"x-api-key": "wrong"}])
async def test_a_wrong_key_is_told_so_by_the_list_of_models_too(
    world: World, path: str, headers: dict[str, str]
) -> None:
    async with world.client.get(world.url + path, headers=headers) as answer:
        assert (answer.status, answer.content_type) == (401, "application/json")
        assert (await answer.json())["error"]["code"] == "invalid_api_key"


async def test_health_and_metrics(world: World) -> None:
    async with world.post() as answer:
        await answer.read()
    async with world.get("/health") as answer:
        said = await answer.json()
        assert said["status"] == "healthy"
        assert said["models"]["llama_0"]["vram_used"] == "12.3 GB"
    async with world.get("/metrics") as answer:
        text = await answer.text()
    assert 'llmd_requests_total{model="llama",source="webui",status="200"} 1.0' in text
    assert 'llmd_engine_state{profile="llama_0",state="ready"} 1.0' in text
    assert "vllm:" not in text  # server.engine_metrics is off


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nno header\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer sesame\r\n"
        b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
    ],
)
async def test_a_malformed_request_leaves_no_traceback(
    world: World, sent: bytes, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(world.url.rpartition(":")[2]))
    writer.write(sent)
    assert b" 400 " in await asyncio.wait_for(reader.readline(), 5)
    await asyncio.wait_for(reader.read(), 5)  # to the end of the connection
    writer.close()
    await writer.wait_closed()
    assert not caplog.records
    assert "Traceback" not in capsys.readouterr().err
