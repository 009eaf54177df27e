"""Held requests on a real port: what a client is sent while it waits, and how it hears that it waited in vain."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cold import ANSWER, ASK, World, cold_world

from supervisor.config import Config
from supervisor.core.routing import Ask
from supervisor.errors import NotAvailable
from supervisor.web.holding import COMMENT, sign, signs_of, stated_timeout

DEAD = NotAvailable("llama_0 failed to start: CUDA out of memory", retry_after=30)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with cold_world() as world:
        yield world


async def frames(answer: aiohttp.ClientResponse, count: int) -> list[bytes]:
    return [await answer.content.readuntil(b"\n\n") for _ in range(count)]


async def rest(answer: aiohttp.ClientResponse) -> bytes:
    """What comes until the connection is cut. Fails where it ends cleanly."""
    got = bytearray()
    with pytest.raises(aiohttp.ClientPayloadError):
        await drain(answer, got)
    return bytes(got)


async def drain(answer: aiohttp.ClientResponse, into: bytearray) -> None:
    while chunk := await answer.content.readany():
        into += chunk


async def test_a_held_stream_begins_early_stays_alive_and_goes_on_with_the_answer(world: World) -> None:
    async with world.post() as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        assert answer.headers["x-request-id"] == answer.headers["request-id"]
        assert (answer.headers["Cache-Control"], answer.headers["X-Accel-Buffering"]) == ("no-cache", "no")
        assert await frames(answer, 3) == [b": keepalive\n\n"] * 3  # some clients take other words for events
        world.driver.loaded.set()
        got = await answer.content.read()
    assert got.replace(COMMENT, b"") == ANSWER


async def test_an_engine_that_is_there_at_once_answers_with_its_own_head(world: World) -> None:
    world.driver.loaded.set()
    async with world.post() as answer:
        assert answer.headers["x-llmd-profile"] == "llama_0"
        assert await answer.content.read() == ANSWER


@pytest.mark.parametrize(
    ("key", "delta"),
    [
        ("emptying", {"role": "assistant", "content": ""}),
        ("reasoning", {"role": "assistant", "reasoning_content": "Loading llama: 45 %\n"}),
    ],
)
async def test_each_key_has_its_way_of_being_held(world: World, key: str, delta: dict[str, str]) -> None:
    async with world.post(key, headers={"x-request-id": "r1"}) as answer:
        (frame,) = await frames(answer, 1)
    chunk = json.loads(frame.removeprefix(b"data: "))
    assert (chunk["object"], chunk["id"], chunk["model"]) == ("chat.completion.chunk", "chatcmpl-r1", "llama")
    assert chunk["choices"] == [{"index": 0, "delta": delta, "finish_reason": None}]


@pytest.mark.parametrize("more", [{"key": "silent"}, {"json": ASK | {"stream": False}}])
async def test_silence_keeps_the_status_for_the_end(world: World, more: dict[str, Any]) -> None:
    asked = asyncio.create_task(world.post(**more).__aenter__())
    while not world.driver.waited:  # noqa: ASYNC110 - nothing announces it
        await asyncio.sleep(0.01)
    done, _ = await asyncio.wait([asked], timeout=0.3)
    assert not done, "nothing is sent while it is held"
    world.fail(DEAD)
    answer = await asked
    assert (answer.status, answer.headers["Retry-After"]) == (503, "30")
    answer.close()


async def test_a_quick_refusal_keeps_its_status(world: World) -> None:
    world.fail(NotAvailable("too large"))
    async with world.post() as answer:
        assert (answer.status, answer.headers["x-should-retry"]) == (503, "false")


async def test_a_load_that_fails_ends_the_stream_with_an_error_and_a_cut(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    async with world.post() as answer:
        await frames(answer, 1)
        world.fail(DEAD)
        got = (await rest(answer)).replace(COMMENT, b"")
    assert json.loads(got.removeprefix(b"data: "))["error"]["code"] == "model_not_available"
    assert b"CUDA out of memory" in got
    line = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert (line["status"], line["error"]) == (503, "model_not_available")


async def test_an_engine_that_is_gone_when_the_wait_is_over_is_told_in_the_stream(world: World) -> None:
    world.driver.engine = Path("/nowhere")
    async with world.post() as answer:
        await frames(answer, 1)
        world.driver.loaded.set()
        got = await rest(answer)
    assert b'"code": "engine_failed"' in got
    assert b"[DONE]" not in got


async def test_what_the_engine_refuses_after_the_wait_is_told_in_its_words(world: World) -> None:
    world.status, world.body = 400, b'{"error": {"message": "too long by 7", "param": "input_tokens"}}'
    async with world.post() as answer:
        await frames(answer, 1)
        world.driver.loaded.set()
        got = (await rest(answer)).replace(COMMENT, b"")
    error = json.loads(got.removeprefix(b"data: "))["error"]
    assert (error["message"], error["param"]) == ("too long by 7", "input_tokens")


async def test_a_client_that_leaves_while_held_gives_up_its_place(world: World) -> None:
    async with aiohttp.ClientSession() as leaving:
        headers = {"Authorization": "Bearer commenting"}
        answer = await leaving.post(world.url + "/v1/chat/completions", json=ASK, headers=headers)
        await frames(answer, 1)
        answer.close()
    async with asyncio.timeout(5):
        await world.driver.left.wait()


async def test_a_client_that_leaves_before_the_head_gives_up_its_place(world: World) -> None:
    async with aiohttp.ClientSession() as leaving:
        headers = {"Authorization": "Bearer silent"}
        asked = asyncio.create_task(
            leaving.post(world.url + "/v1/chat/completions", json=ASK, headers=headers)
        )
        while not world.driver.waited:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.01)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
    async with asyncio.timeout(5):
        await world.driver.left.wait()


@pytest.mark.parametrize(
    ("key", "headers", "patience"),
    [
        ("commenting", {}, 290),
        ("commenting", {"x-stainless-read-timeout": "20"}, 290),  # comments keep it from giving up
        ("silent", {}, 290),
        ("silent", {"x-stainless-read-timeout": "20"}, 19),
        ("silent", {"X-Stainless-Timeout": "600"}, 290),
        ("silent", {"timeout": "1"}, 0.5),
    ],
)
async def test_a_client_that_says_how_long_it_waits_is_told_before(
    world: World, key: str, headers: dict[str, str], patience: float
) -> None:
    world.driver.at_once = False
    world.driver.loaded.set()
    async with world.post(key, headers=headers) as answer:
        await answer.read()
    assert world.driver.waited == [patience]


async def test_signs_of_life_come_more_often_than_an_impatient_client_needs(world: World) -> None:
    server = world.driver.config.server.model_copy(update={"hold_after": 60.0, "keepalive": 60.0})
    world.driver.config = world.driver.config.model_copy(update={"server": server})
    async with world.post(headers={"x-stainless-read-timeout": "0.4"}) as answer:
        assert await frames(answer, 2) == [COMMENT] * 2


async def test_ids_of_people_and_chats_are_logged_and_nothing_else_of_them(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.driver.loaded.set()
    headers = {
        "X-OpenWebUI-User-Id": "u-1",
        "X-OpenWebUI-Chat-Id": "c-2",
        "X-OpenWebUI-User-Email": "ann@example.org",
        "X-OpenWebUI-User-Name": "Ann",
    }
    async with world.post(headers=headers) as answer:
        await answer.read()
    out = capsys.readouterr().err
    line = json.loads(out.splitlines()[-1])
    assert (line["person"], line["chat"]) == ("u-1", "c-2")
    assert [ask.person for ask in world.driver.asks] == ["u-1"], "who takes turns with others of this key"
    assert "Ann" not in out
    async with world.post(headers={"X-OpenWebUI-Chat-Id": "Dear diary, today"}) as answer:
        await answer.read()
    assert "diary" not in capsys.readouterr().err


async def test_nobody_waits_to_hear_that_a_url_will_not_be_fetched(world: World) -> None:
    image = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}
    ask = ASK | {"messages": [{"role": "user", "content": [image]}]}
    async with world.post(json=ask) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (400, "invalid_request")
    assert world.driver.waited == []


async def test_tools_without_a_parser_are_dropped_and_it_is_said(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.driver.loaded.set()
    async with world.post(json=ASK | {"tools": [{"type": "function"}], "tool_choice": "auto"}) as answer:
        assert (answer.status, answer.headers["x-llmd-dropped"]) == (200, "tools")
        await answer.read()
    assert world.sent == ASK
    assert json.loads(capsys.readouterr().err.splitlines()[-1])["dropped"] == "tools"


@pytest.mark.parametrize(("parser", "least", "most"), [(None, 0, 10), ("hermes", 2000, 3000)])
async def test_tools_weigh_where_an_engine_gets_them(
    world: World, parser: str | None, least: int, most: int
) -> None:
    """Else the 25 KB of Open WebUI's would lead every chat to the longest context, and spoil what is learned."""
    config = world.driver.config
    profiles = {n: p.model_copy(update={"tool_parser": parser}) for n, p in config.profiles.items()}
    world.driver.config = config.model_copy(update={"profiles": profiles})
    world.driver.loaded.set()
    tools = [{"type": "function", "function": {"name": "look", "description": "x" * 10_000}}]
    async with world.post(json=ASK | {"tools": tools}) as answer:
        await answer.read()
    (ask,) = world.driver.asks
    assert least <= ask.tokens <= most
    assert ask.letters is not None
    assert 4 * least <= ask.letters <= 4 * most


# Shapes


@pytest.mark.parametrize(
    ("mode", "path", "start"),
    [
        ("comment", "/v1/messages", COMMENT),
        ("empty", "/v1/messages", b'event: ping\ndata: {"type": "ping"}\n\n'),
        ("reasoning", "/v1/messages", b"event: ping\n"),
        ("empty", "/v1/completions", b'data: {"id": "cmpl-r"'),
        ("reasoning", "/v1/completions", b'data: {"id": "cmpl-r"'),
        ("empty", "/v1/responses", COMMENT),
        ("reasoning", "/v1/responses", COMMENT),
    ],
)
def test_signs_of_life_are_events_that_the_route_has(mode: Any, path: str, start: bytes) -> None:
    said = sign(mode, path, "llama", "r", "Loading")
    assert said.startswith(start)
    assert said.endswith(b"\n\n")


@pytest.mark.parametrize("text", ["", "soon", "nan", "inf", "-1", "0"])
def test_no_number_of_seconds_is_no_timeout(text: str) -> None:
    assert stated_timeout({"timeout": text}) is None


def test_whoever_says_that_it_waits_for_no_time_is_not_flooded() -> None:
    ask, config = Ask("llama", "webui", stream=True), Config(path=Path("llmd.toml"))
    signs = [signs_of(config, ask, stated).every for stated in (1e-9, 0.4, 1e9, None)]
    assert signs == [0.1, 0.2, config.server.keepalive, config.server.keepalive]
