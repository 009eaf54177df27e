"""Clients that take nothing, leave, or ask on and on, on connections whose requests go the short way."""

from __future__ import annotations

import asyncio
import io
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from fakes import FakeLease
from wires import BODY, CHUNKED, CLIENT_TIMEOUT, DONE, JSON, World, chunk, closing, opened, request

from supervisor.core.routing import Ask
from supervisor.host.upstream import Connection, Gone, Pool
from supervisor.web.front import MOST_EARLY
from tests.standin.launch import until

PLAIN = request(stream=False)
MODELS = b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n"
LONG = PLAIN.replace(b"Length: %d" % len(BODY), b"Length: %d" % (len(BODY) + 500_000)) + b" " * 500_000


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with opened() as made:
        yield made


def fronts(world: World) -> list[Any]:
    server = world.server._runner.server
    return [] if server is None else list(server.connections)


def waiting(front: Any) -> int:
    """Bytes that were written for a client, and that the kernel did not take."""
    return 0 if front.transport is None else int(front.transport.get_write_buffer_size())


def narrow(world: World) -> socket.socket:
    """A client for whose answers the kernel has hardly any room."""
    for site in world.server._runner.sites:
        for listening in site._server.sockets:  # type: ignore[union-attr, attr-defined]
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", world.port))
    return client


def of_size(size: int) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % size + b"x" * size


@pytest.mark.parametrize("at_once", [True, False])
async def test_who_takes_nothing_of_a_last_answer_is_cut_off(world: World, at_once: bool) -> None:
    async def whole(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(of_size(60 << 10))
        await writer.drain()

    world.engine, world.driver.at_once = whole, at_once
    with narrow(world) as client:
        client.sendall(request(headers=b"Connection: close\r\n", stream=False))
        await until(lambda: world.asked)
        await until(lambda: not fronts(world))
    assert world.driver.held == 0


@pytest.mark.parametrize("at_once", [True, False])
async def test_who_leaves_the_last_few_bytes_of_a_stream_untaken_is_cut_off(
    world: World, at_once: bool
) -> None:
    """Fewer than a stream under way may have waiting."""

    async def fills(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED)
        full = 0
        while full < 100:  # the kernel makes more room for small pieces after a while
            full += 1
            if not any(waiting(front) > 2000 for front in fronts(world)):
                full = 0
                writer.write(chunk(b"data: " + b"x" * 500 + b"\n\n"))
            await asyncio.sleep(0.003)
        left.extend(map(waiting, fronts(world)))
        writer.write(chunk(DONE) + b"0\r\n\r\n")

    left: list[int] = []
    world.engine, world.driver.at_once = fills, at_once
    with narrow(world) as client:
        client.sendall(request())
        await until(lambda: left)
        await until(lambda: not fronts(world))
    assert 2000 < left[0] < 4096
    assert world.driver.held == 0


@pytest.mark.parametrize("at_once", [True, False])
async def test_who_takes_the_last_piece_of_a_stream_slowly_is_not_cut_off(
    world: World, at_once: bool
) -> None:
    """However little was waiting as it came."""
    last = chunk(b"data: " + b"x" * (60 << 10) + b"\n\n") + chunk(DONE) + b"0\r\n\r\n"

    async def fills(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED)
        while not any(map(waiting, fronts(world))):
            writer.write(chunk(b"data: " + b"x" * 500 + b"\n\n"))
            await asyncio.sleep(0.003)
        writer.write(last)

    world.engine, world.driver.at_once = fills, at_once
    with narrow(world) as client:
        client.sendall(request())
        await until(lambda: any(waiting(front) > len(last) // 2 for front in fronts(world)))
        got = b""
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(20):
            while not got.endswith(b"0\r\n\r\n"):
                piece = await loop.sock_recv(client, 2000)
                assert piece, len(got)
                got += piece
                await asyncio.sleep(CLIENT_TIMEOUT / 10)
    assert got.endswith(last)


@pytest.mark.parametrize("at_once", [True, False])
async def test_who_takes_nothing_and_asks_again_is_given_little(world: World, at_once: bool) -> None:
    """The first answer comes whole, and is more than the kernel holds; the second has no end."""

    async def first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        world.engine = pours
        writer.write(of_size(60 << 10))

    async def pours(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED)
        for _ in range(1000):
            writer.write(chunk(b"data: " + b"x" * (1 << 20) + b"\n\n"))
            await writer.drain()

    world.engine, world.driver.at_once = first, at_once
    most = 0
    with narrow(world) as client:
        client.sendall(PLAIN + request())
        await until(lambda: world.asked)
        async with asyncio.timeout(10):
            while held := [waiting(front) for front in fronts(world)]:
                most = max(most, *held)
                await asyncio.sleep(0.002)
    assert 0 < most < 1 << 20
    assert world.driver.held == 0


async def test_a_port_that_closes_does_not_wait_for_a_client_that_left(world: World) -> None:
    async def hangs(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    world.engine = hangs
    world.server._runner._shutdown_timeout = 30
    _reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    writer.write(PLAIN)
    await until(lambda: world.asked)
    closing = asyncio.create_task(world.server._runner.cleanup())
    await until(lambda: any(front._drained for front in fronts(world)))
    writer.transport.abort()
    async with asyncio.timeout(5):
        await closing


@pytest.mark.parametrize("at_once", [True, False])
async def test_what_is_cancelled_by_a_person_is_no_failure_of_its_engine(world: World, at_once: bool) -> None:
    async def hangs(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    world.engine, world.driver.at_once = hangs, at_once
    asking = asyncio.create_task(world.ask(stream=False))
    await until(lambda: world.asked)
    traffic = world.server.router._traffic
    (number,) = traffic.in_flight()
    traffic.cancel(number)
    assert (await asking).startswith(b"HTTP/1.1 503 ")
    assert [lease.failures for lease in world.driver.leases] == [[]]


@pytest.mark.parametrize("at_once", [True, False])
async def test_what_waits_again_for_an_engine_can_be_cancelled(world: World, at_once: bool) -> None:
    """Where the first one died."""
    waits, lease = asyncio.Event(), world.driver.lease

    async def dies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        world.driver.lease = waiting_for_ever  # type: ignore[method-assign, assignment]
        writer.close()

    @asynccontextmanager
    async def waiting_for_ever(ask: Ask, patience: float | None = None) -> AsyncIterator[FakeLease]:
        waits.set()
        await asyncio.Event().wait()
        async with lease(ask, patience) as found:
            yield found

    world.engine, world.driver.over, world.driver.at_once = dies, True, at_once
    asking = asyncio.create_task(world.ask(stream=False))
    async with asyncio.timeout(5):
        await waits.wait()
        traffic = world.server.router._traffic
        traffic.cancel(*traffic.in_flight())
        assert (await asking).startswith(b"HTTP/1.1 503 ")


async def test_a_long_request_behind_one_that_goes_elsewhere_is_read_on(world: World) -> None:
    """It was held back while the first place had the other."""
    go_on = asyncio.Event()

    async def dies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await go_on.wait()
        world.engine = answers
        writer.close()

    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(JSON)

    world.engine, world.driver.over = dies, True
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    at = MOST_EARLY + 10
    writer.write(PLAIN)
    await until(lambda: world.asked)
    writer.write(LONG[:at])
    await until(lambda: any(len(front._early) == at for front in fronts(world)))
    go_on.set()
    writer.write(LONG[at:])
    async with asyncio.timeout(5):
        for _ in range(2):
            assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(2) == b"{}"
    writer.close()


@pytest.mark.parametrize("fails", [True, False])
async def test_a_request_cancelled_while_it_connects_is_answered_once(
    world: World, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """What becomes of the connection is nobody's business then."""
    go_on, opened_at_last = asyncio.Event(), Pool.open

    async def slowly(pool: Pool) -> Connection:
        await go_on.wait()
        go_on.clear()
        if fails:
            raise Gone("cannot be reached")
        return await opened_at_last(pool)

    monkeypatch.setattr(Pool, "open", slowly)
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    writer.write(PLAIN)
    traffic = world.server.router._traffic
    await until(traffic.in_flight)
    traffic.cancel(*traffic.in_flight())
    assert b" 503 " in await reader.readuntil(b"\r\n\r\n")
    await reader.readuntil(b"}}")
    go_on.set()
    await until(lambda: not go_on.is_set())
    writer.write(MODELS)
    async with asyncio.timeout(5):
        assert (await reader.readuntil(b"\r\n")) == b"HTTP/1.1 200 OK\r\n"
    writer.close()
    assert (world.driver.held, world.asked) == (0, [])
    assert world.driver.leases[0].failures == []


@pytest.mark.parametrize("path", ["/ui/signin", "/models/load", "/v1/embeddings", "/v1/responses/x/cancel"])
async def test_no_place_that_reads_a_body_waits_for_one_without_end(path: str) -> None:
    """None has anything to do with an engine's time limits; where no body is read, the answer is there at once."""
    kind = "application/x-www-form-urlencoded" if path.startswith("/ui/") else "application/json"
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nOrigin: http://a\r\nConnection: close\r\nContent-Type: {kind}\r\n"
    async with opened(llama_cpp=True) as world:
        reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
        async with closing(writer), asyncio.timeout(5):
            writer.write(head.encode() + b"Content-Length: 9\r\n\r\n")
            status = (await reader.readline()).split()[1]
    assert status == (b"404" if path.endswith("cancel") else b"408")


async def test_a_body_that_a_button_does_not_take_is_too_large() -> None:
    async with (
        opened(llama_cpp=True) as world,
        aiohttp.ClientSession(world.server.listening[0]) as client,
        client.post("/models/load", data=io.BytesIO(bytes(2 << 20))) as answer,
    ):
        assert (answer.status, (await answer.json())["error"]["code"]) == (413, "body_too_large")
