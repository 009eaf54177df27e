"""A connection on which plain requests and others come in any order, in any pieces: each is answered once, in turn."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import random
from collections.abc import AsyncIterator

import pytest
from wires import CHUNKED, FRAME, JSON, World, chunk, log_lines, opened, request, says, split

from supervisor.web import front
from supervisor.web.answer import Answer, Unframed
from supervisor.web.front import Front
from supervisor.web.plain import read_head
from supervisor.web.shortway import Exchange

MODELS = b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n"
ODD = request(headers=b"X-Llmd-Hops: 0\r\n", stream=False)
"""A chat that only the ordinary way takes."""
PLAIN = request(stream=False)
_MANY = 200


async def keeps(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(JSON)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with opened() as made:
        made.engine = keeps
        yield made


class Wire:
    """A client that writes what it is told and reads one answer after another."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def answer(self) -> tuple[int, bytes]:
        async with asyncio.timeout(10):
            head = await self.reader.readuntil(b"\r\n\r\n")
            status, headers, _ = split(head)
            return status, await self.reader.readexactly(int(headers[b"content-length"]))


@contextlib.asynccontextmanager
async def wired(world: World) -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    yield Wire(reader, writer)
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


def connections(world: World) -> list[Front]:
    return world.server._runner.server.connections  # type: ignore[union-attr, return-value]


def short(world: World) -> int:
    """How many went the short way: it needs no session."""
    return sum(lease.session is None for lease in world.driver.leases)


async def test_plain_requests_go_the_short_way_and_others_the_ordinary_one(world: World) -> None:
    assert read_head(PLAIN) is not None
    assert read_head(ODD) is None
    async with wired(world) as wire:
        for sent in (PLAIN, MODELS, PLAIN, PLAIN):
            wire.writer.write(sent)
            assert (await wire.answer())[0] == 200
        assert short(world) == 3
        wire.writer.write(ODD)
        assert (await wire.answer())[0] == 200
    assert (short(world), len(world.driver.leases)) == (3, 4)
    assert world.driver.held == 0


@pytest.mark.parametrize("at_once", [True, False])
async def test_requests_sent_all_at_once_are_answered_in_turn(world: World, at_once: bool) -> None:
    world.driver.at_once = at_once
    async with wired(world) as wire:
        wire.writer.write(PLAIN + MODELS + PLAIN + ODD + PLAIN)
        answers = [await wire.answer() for _ in range(5)]
    assert [status for status, _ in answers] == [200] * 5
    assert [body == b"{}" for _, body in answers] == [True, False, True, True, True]


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_the_order_and_the_pieces_each_is_answered_once_and_in_turn(
    world: World, seed: int
) -> None:
    dice = random.Random(seed)
    world.driver.at_once = dice.random() < 0.7
    asked = [dice.choice((PLAIN, PLAIN, MODELS, ODD)) for _ in range(dice.randint(2, 8))]
    sent = b"".join(asked)
    async with wired(world) as wire:
        while sent:
            size = dice.choice((1, 7, 50, 150, 400, 2000))
            wire.writer.write(sent[:size])
            sent = sent[size:]
            await asyncio.sleep(dice.choice((0, 0, 0.001)))
        for one in asked:
            status, body = await wire.answer()
            assert (status, b'"object"' in body) == (200, one is MODELS)
        assert not wire.reader._buffer  # type: ignore[attr-defined]
    assert len(world.asked) == len([one for one in asked if one is not MODELS])


async def test_a_body_in_pieces_still_goes_the_short_way(world: World) -> None:
    head = read_head(PLAIN)
    assert head is not None
    async with wired(world) as wire:
        for at in (head.size, len(PLAIN) - 1):
            wire.writer.write(PLAIN[:at])
            await asyncio.sleep(0.02)
            wire.writer.write(PLAIN[at:])
            assert (await wire.answer())[0] == 200
    assert short(world) == 2


LARGE = json.dumps({"model": "llama", "messages": [{"role": "user", "content": "x" * (3 << 20)}]}).encode()
UPLOAD = PLAIN.partition(b"Content-Length")[0] + b"Content-Length: %d\r\n\r\n" % len(LARGE) + LARGE


async def test_a_large_body_goes_the_short_way_and_is_not_kept_once_it_is_answered(world: World) -> None:
    async with wired(world) as wire:
        wire.writer.write(PLAIN)
        await wire.answer()
        [way] = {connection._short for connection in connections(world)}
        for number in (2, 3):
            wire.writer.write(UPLOAD)
            assert (await wire.answer())[0] == 200
            assert (short(world), way.gathered) == (number, 0)
        wire.writer.write(UPLOAD.replace(b'"llama"', b'"nope!"'))
        assert ((await wire.answer())[0], way.gathered) == (404, 0)
    async with wired(world) as wire:
        wire.writer.write(UPLOAD[:-1])
        while not way.gathered:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0)
    while connections(world):  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert way.gathered == 0
    assert [len(asked) > len(LARGE) for asked in world.asked] == [False, True, True]


@pytest.mark.parametrize("spare", [0, 1])
async def test_a_body_over_the_limit_is_refused_whichever_way_it_came(spare: int) -> None:
    length = len(PLAIN.partition(b"\r\n\r\n")[2])
    async with opened(max_body=length + spare - 1) as world:
        world.engine = keeps
        async with wired(world) as wire:
            wire.writer.write(PLAIN)
            status, body = await wire.answer()
    assert status == (200 if spare else 413)
    assert spare or json.loads(body)["error"]["code"] == "body_too_large"


async def test_large_bodies_beyond_what_may_be_in_memory_go_the_ordinary_way(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front, "MOST_GATHERED", len(LARGE) - 1)
    async with wired(world) as wire:
        for sent in (PLAIN, UPLOAD):
            wire.writer.write(sent)
            assert (await wire.answer())[0] == 200
    assert (short(world), len(world.driver.leases)) == (1, 2)
    assert world.asked[1].endswith(LARGE)


async def test_a_body_that_does_not_come_is_a_408_and_takes_no_slot(world: World) -> None:
    async with wired(world) as wire:
        wire.writer.write(PLAIN[:-1])
        status, body = await wire.answer()
    assert (status, json.loads(body)["error"]["code"]) == (408, "request_timeout")
    assert world.driver.leases == []


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (PLAIN.replace(b'"llama"', b'"nope!"'), 404),
        (PLAIN.replace(b'"messages"', b'"messages": '), 400),
        (PLAIN.replace(b"{", b"[", 1), 400),
    ],
)
async def test_what_is_refused_is_refused_by_the_ordinary_way(world: World, sent: bytes, status: int) -> None:
    async with wired(world) as wire:
        length = len(sent.partition(b"\r\n\r\n")[2])
        wire.writer.write(
            sent.replace(b"Length: %d" % len(PLAIN.partition(b"\r\n\r\n")[2]), b"Length: %d" % length)
        )
        assert (await wire.answer())[0] == status
        (front,) = world.server._runner.server.connections  # type: ignore[union-attr]
        async with asyncio.timeout(5):
            while not front._is_free():  # type: ignore[attr-defined]  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(0)
        wire.writer.write(PLAIN)
        assert (await wire.answer())[0] == 200
    assert short(world) == 1


async def test_a_client_that_leaves_gives_back_its_lease_and_the_engine_sees_it(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    async def hangs(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + chunk(FRAME))
        await reader.read()

    world.engine = hangs
    async with wired(world) as wire:
        wire.writer.write(request())
        async with asyncio.timeout(5):
            await wire.reader.readuntil(b"data: ")
        assert world.driver.held == 1
    async with asyncio.timeout(5):
        await world.left.wait()
    assert world.driver.held == 0
    (line,) = log_lines(capsys)
    assert line["status"] == 499


@pytest.mark.parametrize("over", [True, False])
async def test_an_engine_that_dies_before_its_answer_leaves_the_request_to_another(
    world: World, over: bool
) -> None:
    """Once, by the ordinary way; where it lives, the client is told."""
    world.engine, world.driver.over = says(), over
    reached = asyncio.Event()

    async def second(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.set()
        writer.write(JSON)

    async def first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        world.engine = second
        writer.close()

    world.engine = first
    async with wired(world) as wire:
        wire.writer.write(PLAIN)
        status, _ = await wire.answer()
        assert (status, reached.is_set()) == ((200, True) if over else (502, False))
        wire.writer.write(PLAIN)
        assert (await wire.answer())[0] == 200
    assert world.driver.held == 0
    if over:
        assert world.driver.asks[1].tried == frozenset({"i1"})


@pytest.mark.parametrize("status", [b"200 OK", b"400 Bad Request"])
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_request_leaves_nothing_for_the_garbage_collector(
    world: World, at_once: bool, status: bytes
) -> None:
    """A daemon that serves thousands a second looks for cycles seldom."""

    async def tells(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(JSON.replace(b"200 OK", status))

    world.engine, world.driver.at_once = tells, at_once
    async with wired(world) as wire:
        for _ in range(5):
            wire.writer.write(PLAIN)
            await wire.answer()
        gc.collect()
        gc.disable()
        for _ in range(_MANY):
            wire.writer.write(PLAIN)
            await wire.answer()
        answers = [found for found in gc.get_objects() if isinstance(found, Answer | Exchange | Unframed)]
        lost = gc.collect()
        gc.enable()
    assert len(answers) <= 2
    assert lost < _MANY, "less than one object a request"


async def test_a_body_is_let_go_of_where_its_engine_dies(
    world: World, request: pytest.FixtureRequest
) -> None:
    """Though an error that was raised holds on to much of what it passed."""

    async def dies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    world.engine = dies
    gc.collect()
    gc.disable()
    request.addfinalizer(gc.enable)
    async with wired(world) as wire:
        wire.writer.write(PLAIN)
        assert (await wire.answer())[0] == 502
        assert not [found for found in gc.get_objects() if isinstance(found, Exchange) and found._body]


async def test_a_stream_outlives_the_time_that_a_silent_connection_is_kept(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supervisor.web.protocol._KEEPALIVE", 0.1)
    world.engine = says(CHUNKED, *[chunk(FRAME)] * 40, chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
    async with wired(world) as wire, asyncio.timeout(5):
        wire.writer.write(request())
        got = await wire.reader.readuntil(b"0\r\n\r\n")
        assert got.count(FRAME) == 40
        assert await wire.reader.read() == b""  # and then it ends


async def test_a_port_that_closes_waits_for_what_is_under_way(world: World) -> None:
    go_on = asyncio.Event()

    async def waits(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await go_on.wait()
        writer.write(JSON)

    world.engine = waits
    world.server._runner._shutdown_timeout = 5
    async with wired(world) as wire:
        wire.writer.write(PLAIN)
        async with asyncio.timeout(5):
            while not world.asked:  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(0)
        closing = asyncio.create_task(world.server.close())
        await asyncio.sleep(0.05)
        assert not closing.done()
        go_on.set()
        assert (await wire.answer())[0] == 200
        await closing


async def test_a_kept_request_of_many_bytes_behind_another_is_not_read_on_and_on(world: World) -> None:
    go_on = asyncio.Event()

    async def waits(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await go_on.wait()
        writer.write(JSON)

    world.engine = waits
    async with wired(world) as wire:
        wire.writer.write(PLAIN + MODELS * 100_000)
        async with asyncio.timeout(5):
            while not world.asked:  # noqa: ASYNC110
                await asyncio.sleep(0)
        (front,) = world.server._runner.server.connections  # type: ignore[union-attr]
        for _ in range(50):
            await asyncio.sleep(0.001)
        assert len(front._early) < 1 << 20  # type: ignore[attr-defined]
        go_on.set()
        assert (await wire.answer())[0] == 200
        assert (await wire.answer())[0] == 200
