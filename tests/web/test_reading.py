"""A stream whose engine has taken the request and reads a long prompt: signs of life until its first byte, and what
becomes of it when the engine fails before that. By both ways through llmd."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from wires import CHUNKED, DONE, EVENTS, FRAME, Handler, World, chunk, log_lines, opened, request, says, split

from supervisor.config import Key
from supervisor.web.holding import COMMENT

SIGN = chunk(COMMENT)
LAST = b"0\r\n\r\n"


@pytest.fixture(params=[True, False], ids=["short", "ordinary"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    async with opened() as made:
        made.driver.at_once = request.param
        configure(made, keepalive=0.1)
        yield made


def configure(world: World, **server: Any) -> None:
    config = world.driver.config
    world.driver.config = config.model_copy(update={"server": config.server.model_copy(update=server)})


class Reading:
    """Sends `head`, then `then` when it is told to go on, and closes."""

    def __init__(self, *then: bytes, head: bytes = CHUNKED) -> None:
        self.head, self.then, self.go_on = head, then, asyncio.Event()

    def handler(self) -> Handler:
        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(self.head)
            await self.go_on.wait()
            for piece in self.then:
                writer.write(piece)

        return handler


async def reading(world: World, engine: Reading, sent: bytes, until: bytes = COMMENT * 2) -> bytes:
    """All that came, of an engine that goes on once the client has seen signs of life."""
    world.engine = engine.handler()
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    writer.write(sent)
    got = b""
    async with asyncio.timeout(5):
        while until not in bare(got):
            piece = await reader.read(1 << 16)
            assert piece, got
            got += piece
        engine.go_on.set()
        got += await reader.read()
    writer.close()
    return got


def bare(got: bytes) -> bytes:
    return got.replace(SIGN, COMMENT)


CLOSING = request(headers=b"Connection: close\r\n")


async def test_signs_of_life_come_until_the_first_byte_and_the_answer_behind_them_as_it_is(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = chunk(FRAME) + chunk(DONE) + LAST
    status, headers, body = split(await reading(world, Reading(answer), CLOSING))
    assert (status, headers[b"content-type"]) == (200, b"text/event-stream")
    assert headers[b"x-llmd-profile"] == b"llama_0"
    assert body.startswith(SIGN * 2)
    assert body.removeprefix(SIGN * 2).replace(SIGN, b"") == answer
    (line,) = log_lines(capsys)
    assert (line["status"], line["request_id"].encode()) == (200, headers[b"x-request-id"])
    assert line["ttft_ms"] >= 200, "they are no tokens"
    assert world.driver.held == 0


@pytest.mark.parametrize(
    ("head", "then"),
    [(CHUNKED, chunk(FRAME + DONE) + LAST), (EVENTS + b"\r\n", FRAME + DONE)],
    ids=["chunks", "until close"],
)
async def test_whatever_frames_the_answer_frames_them(world: World, head: bytes, then: bytes) -> None:
    _, _, body = split(await reading(world, Reading(then, head=head), CLOSING))
    assert body.replace(SIGN, b"") == chunk(FRAME + DONE) + LAST


async def test_http_1_0_gets_them_without_chunks(world: World) -> None:
    engine = Reading(chunk(FRAME + DONE) + LAST)
    _, _, body = split(await reading(world, engine, request(b"1.0")))
    assert body.replace(COMMENT, b"") == FRAME + DONE


async def test_the_connection_serves_the_next_request(world: World) -> None:
    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED)
        await asyncio.sleep(0.15)
        writer.write(chunk(FRAME) + chunk(DONE) + LAST)

    world.engine = engine
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    async with asyncio.timeout(5):
        for _ in range(2):
            writer.write(request())
            assert SIGN + chunk(FRAME) + chunk(DONE) in await reader.readuntil(b"\r\n" + LAST)
    writer.close()


async def test_an_engine_that_dies_while_it_reads_leaves_the_stream_to_another(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.driver.over = True

    class Dying(Reading):
        def handler(self) -> Handler:
            async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                writer.write(CHUNKED)
                await self.go_on.wait()
                world.engine = says(CHUNKED, chunk(FRAME + DONE) + LAST)

            return handler

    status, headers, body = split(await reading(world, Dying(), CLOSING))
    assert (status, body.replace(SIGN, b"")) == (200, chunk(FRAME + DONE) + LAST)
    assert [ask.tried for ask in world.driver.asks] == [frozenset(), {"i1"}]
    (line,) = log_lines(capsys)
    assert line["status"] == 200
    assert line["request_id"].encode() == headers[b"x-request-id"], "whichever way it went on"
    assert line["ttft_ms"] >= 200, "from its arrival"
    assert world.driver.held == 0


@pytest.mark.parametrize("over", [True, False], ids=["dead", "alive"])
async def test_one_that_fails_with_nobody_to_take_its_place_is_told_in_the_stream(
    world: World, over: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    world.driver.over = over
    got = await reading(world, Reading(), CLOSING)
    told_of_failure(got, "engine_failed")
    (line,) = log_lines(capsys)
    assert (line["status"], line["error"]) == (502, "engine_failed")
    assert world.driver.held == 0


async def test_one_that_reads_for_too_long_is_told_of_in_the_stream(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Reading()
    world.engine = engine.handler()
    told_of_failure(await world.ask(), "engine_timeout")
    (line,) = log_lines(capsys)
    assert (line["status"], line["error"]) == (504, "engine_timeout")


async def test_one_that_ends_without_a_word_is_told_of_in_the_stream(world: World) -> None:
    told_of_failure(await reading(world, Reading(LAST), CLOSING), "engine_failed")


def told_of_failure(got: bytes, code: str) -> None:
    """In an error frame behind the signs of life, and cut."""
    status, _, body = split(got)
    assert (status, body[: len(SIGN)]) == (200, SIGN)
    size, _, frame = body.replace(SIGN, b"").partition(b"\r\n")
    assert int(size, 16) == len(frame) - 2, "one whole chunk, and none that ends the answer"
    assert json.loads(frame.removeprefix(b"data: "))["error"]["code"] == code


async def test_a_refusal_keeps_its_status_however_late_it_comes(world: World) -> None:
    """Nothing is sent before the engine has said that a stream follows."""
    refusal = b'{"error": {"message": "no", "type": "t", "param": null, "code": 400}}'
    head = b"HTTP/1.1 400 No\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"

    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.3)
        writer.write(head % len(refusal) + refusal)

    world.engine = engine
    status, _, body = split(await world.ask())
    assert (status, body) == (400, refusal)


async def test_what_is_not_streamed_is_not_touched(world: World) -> None:
    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n")
        await asyncio.sleep(0.3)
        writer.write(b"{}")

    world.engine = engine
    status, _, body = split(await world.ask(stream=False))
    assert (status, body) == (200, b"{}")


@pytest.mark.parametrize(
    ("mode", "delta"),
    [
        ("empty", {"role": "assistant", "content": ""}),
        ("reasoning", {"role": "assistant", "reasoning_content": "Reading the prompt\n"}),
    ],
)
async def test_they_are_what_the_key_wants(world: World, mode: Any, delta: dict[str, str]) -> None:
    config = world.driver.config.model_copy(update={"keys": {"default": Key(env="X", hold=mode)}})
    world.driver.config = config
    sent = request(headers=b"Connection: close\r\nX-Request-Id: r1\r\n")
    engine = Reading(chunk(FRAME) + chunk(DONE) + LAST)
    got = await reading(world, engine, sent, until=b'"chatcmpl-r1"')
    _, _, body = split(got)
    first = json.loads(body.split(b"\r\n")[1].removeprefix(b"data: "))
    assert first["choices"] == [{"index": 0, "delta": delta, "finish_reason": None}]


async def test_a_key_that_wants_silence_has_it(world: World) -> None:
    configure(world, hold="off")

    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED)
        await asyncio.sleep(0.3)
        writer.write(chunk(FRAME) + chunk(DONE) + LAST)

    world.engine = engine
    _, _, body = split(await world.ask())
    assert body == chunk(FRAME) + chunk(DONE) + LAST


async def test_an_impatient_client_gets_them_more_often(world: World) -> None:
    configure(world, keepalive=60.0)
    sent = request(headers=b"Connection: close\r\nx-stainless-read-timeout: 0.2\r\n")
    _, _, body = split(await reading(world, Reading(chunk(FRAME) + chunk(DONE) + LAST), sent))
    assert body.startswith(SIGN * 2)


async def test_a_client_that_leaves_meanwhile_stops_the_engine(world: World) -> None:
    engine = Reading()
    world.engine = engine.handler()
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    writer.write(request())
    async with asyncio.timeout(5):
        await reader.readuntil(COMMENT)
        writer.transport.abort()
        while world.driver.held:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0)
    engine.go_on.set()
    (lease,) = world.driver.leases
    assert lease.failures == []


async def test_a_person_who_cancels_it_is_heard_of_in_the_stream(world: World) -> None:
    world.engine = Reading().handler()
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    writer.write(CLOSING)
    async with asyncio.timeout(5):
        got = await reader.readuntil(COMMENT)
        traffic = world.server.router._traffic
        (number,) = traffic.in_flight()
        traffic.cancel(number)
        got += await reader.read()
    writer.close()
    told_of_failure(got, "cancelled")
