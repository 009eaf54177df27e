"""Answers as they go by, between an engine and a client that are both spoken for in bytes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator

import pytest
from wires import (
    BODY,
    CHUNKED,
    CLIENT_TIMEOUT,
    DONE,
    ERROR,
    EVENTS,
    FRAME,
    JSON,
    World,
    chunk,
    log_lines,
    opened,
    request,
    says,
    split,
)  # fmt: skip

from supervisor.host.upstream import HEAD_LIMIT


@pytest.fixture(params=[True, False], ids=["short", "ordinary"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    async with opened() as made:
        made.driver.at_once = request.param
        yield made


async def test_chunks_pass_as_they_came(world: World) -> None:
    sent = chunk(FRAME) + b"E;ext=1\r\n" + FRAME[:14] + b"\r\n" + chunk(FRAME[14:] + DONE) + b"0\r\n\r\n"
    world.engine = says(CHUNKED, sent[:7], sent[7:])
    status, headers, body = split(await world.ask())
    assert (status, headers[b"transfer-encoding"], body) == (200, b"chunked", sent)
    assert headers[b"connection"] == b"close"


async def test_nothing_of_a_connection_of_the_engine_reaches_the_client(world: World) -> None:
    world.engine = says(
        JSON.replace(
            b"\r\n\r\n",
            b"\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nServer: uvicorn\r\nSet-Cookie: a=b\r\nX-Own: 1\r\n\r\n",
        )
    )
    _, headers, body = split(await world.ask(stream=False))
    assert {b"x-hop", b"keep-alive", b"server", b"set-cookie"}.isdisjoint(headers)
    assert (headers[b"x-own"], headers[b"content-length"], body) == (b"1", b"2", b"{}")


async def test_nothing_of_a_connection_of_the_client_reaches_the_engine(world: World) -> None:
    await world.ask(headers=b"Connection: X-Hop\r\nX-Hop: 1\r\nTE: trailers\r\nX-Own: 1\r\n", stream=False)
    (asked,) = world.asked
    head = asked.lower()
    assert b"x-hop" not in head
    assert b"te: " not in head
    assert b"x-own: 1\r\n" in head
    assert head.count(b"content-length") == head.count(b"\r\nhost") == head.count(b"\r\nauthorization") == 1


async def test_no_answer_is_compressed_on_its_way(world: World) -> None:
    """Whatever the client takes: what is compressed is gathered, and its errors are not seen here."""
    await world.ask(headers=b"Accept-Encoding: gzip, br\r\n")
    (asked,) = world.asked
    assert asked.lower().count(b"accept-encoding") == asked.count(b"Accept-Encoding: identity\r\n") == 1


@pytest.mark.parametrize(
    "head", [CHUNKED, CHUNKED.replace(b"\r\n\r\n", b"\r\nX-Accel-Buffering: yes\r\n\r\n")]
)
async def test_a_proxy_before_llmd_is_told_to_gather_no_stream(world: World, head: bytes) -> None:
    """nginx, where it compresses them, would keep tokens and signs of life back to the end."""
    world.engine = says(head, chunk(FRAME + DONE) + b"0\r\n\r\n")
    got = await world.ask()
    assert (split(got)[1][b"x-accel-buffering"], got.lower().count(b"x-accel")) == (b"no", 1)
    world.engine = says(JSON)
    assert b"x-accel" not in (await world.ask(stream=False)).lower()


async def test_http_1_0_has_the_body_without_chunks(world: World) -> None:
    world.engine = says(CHUNKED, chunk(FRAME), chunk(DONE), b"0\r\n\r\n")
    _, headers, body = split(await world.ask(b"1.0"))
    assert b"transfer-encoding" not in headers
    assert body == FRAME + DONE


async def test_an_answer_that_ends_with_its_connection_gets_chunks_of_ours(world: World) -> None:
    world.engine = says(EVENTS + b"Connection: close\r\n\r\n", FRAME, DONE)
    status, headers, body = split(await world.ask())
    assert (status, headers[b"transfer-encoding"]) == (200, b"chunked")
    assert body == chunk(FRAME) + chunk(DONE) + b"0\r\n\r\n"


async def test_what_llmd_knows_nothing_of_comes_to_the_engine_to_the_byte(world: World) -> None:
    """Structured output among it, whose keys have an order."""
    body = b' {"model":"llama",  "response_format":{"type":"json_schema","json_schema":{"z":1,"a":2.50}},"odd":[1e2]}\n'
    asked = request(headers=b"Connection: close\r\n", stream=False)
    asked = asked.removesuffix(BODY).replace(b"Length: %d" % len(BODY), b"Length: %d" % len(body)) + body
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    async with asyncio.timeout(5):
        writer.write(asked)
        assert b" 200 " in await reader.readline()
    writer.close()
    await writer.wait_closed()
    assert [got.partition(b"\r\n\r\n")[2] for got in world.asked] == [body]


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize(
    "pieces",
    [
        (CHUNKED, chunk(FRAME)),
        (CHUNKED, chunk(FRAME), b"0\r\n\r\n"),
        (CHUNKED, chunk(FRAME), b"0\r\n", b"\r\n"),
        (CHUNKED, chunk(FRAME), b"0\r\n\r", b"\n"),
        (CHUNKED, chunk(FRAME) + b"0\r\n\r\n"),
        (CHUNKED, chunk(FRAME) + b"zz\r\n"),
        (EVENTS + b"Connection: close\r\n\r\n", FRAME),
    ],
)
async def test_a_stream_without_its_end_never_ends_well(
    world: World, pieces: tuple[bytes, ...], version: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    world.engine = says(*pieces)
    status, _, body = split(await world.ask(version))
    assert status in (200, 502)
    assert not body.endswith(b"0\r\n\r\n") or status == 502
    assert b"[DONE]" not in body
    if status == 200:
        assert FRAME in body
        assert ERROR in body.partition(b"\r\n0\r\n")[0] or body.endswith((b"0\r\n", b"0\r\n\r"))
    (line,) = log_lines(capsys)
    assert line["status"] == 502


async def test_in_the_middle_of_a_chunk_there_is_a_cut_and_nothing_else(world: World) -> None:
    world.engine = says(CHUNKED, chunk(FRAME), b"ff\r\ndata: {")
    _, _, body = split(await world.ask())
    assert body == chunk(FRAME) + b"ff\r\ndata: {"


async def test_an_error_inside_is_passed_on_and_what_follows_is_not(world: World) -> None:
    error = b'data: {"error": {"message": "EngineDead"}}\n\n'
    world.engine = says(CHUNKED, chunk(FRAME), chunk(error) + chunk(DONE) + b"0\r\n\r\n")
    _, _, body = split(await world.ask())
    assert body == (chunk(FRAME) + chunk(error)).removesuffix(b"\r\n")


@pytest.mark.parametrize(
    "junk",
    [
        b"NOT HTTP AT ALL\r\n\r\n\x00\xff",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\ndata",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * (HEAD_LIMIT + 1),
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * (HEAD_LIMIT // 4),
        CHUNKED + b"0\r\n\r\n",
        b"",
    ],
)
async def test_junk_is_a_502(world: World, junk: bytes) -> None:
    world.engine = says(junk)
    status, _, body = split(await world.ask())
    assert status == 502
    assert json.loads(body)["error"]["code"] == "engine_failed"
    (lease,) = world.driver.leases
    assert (len(lease.failures), lease.answers) == (1, 0)


@pytest.mark.parametrize("blank", [b"\r\n", b"\n", b"\r\n\r\n"])
@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (JSON, b"{}"),
        (CHUNKED + chunk(FRAME) + chunk(DONE) + b"0\r\n\r\n", chunk(FRAME) + chunk(DONE) + b"0\r\n\r\n"),
        (CHUNKED + chunk(DONE) + b"0\r\nX: 1\r\n\r\n", chunk(DONE) + b"0\r\nX: 1\r\n\r\n"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    ],
    ids=["length", "chunks", "trailers", "nothing"],
)
async def test_blank_lines_behind_an_answer_stay_here(
    world: World, answer: bytes, body: bytes, blank: bytes
) -> None:
    """They would stand before the client's next answer."""
    world.engine = says(answer + blank)
    assert split(await world.ask(stream=b"[DONE]" in answer))[2] == body


async def test_blank_lines_that_are_of_the_body_go_on(world: World) -> None:
    world.engine = says(JSON.replace(b"2\r\n\r\n{}", b"6\r\n\r\n{}\r\n"), b"\r\n")
    assert split(await world.ask(stream=False))[2] == b"{}\r\n\r\n"


async def test_an_engine_that_answers_is_told_of(world: World) -> None:
    await world.ask(stream=False)
    (lease,) = world.driver.leases
    assert (lease.failures, lease.answers) == ([], 1)


async def keeps(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(JSON)


async def test_connections_to_the_engine_are_kept(world: World) -> None:
    world.engine = keeps
    for _ in range(3):
        await world.ask(stream=False)
    (pool,) = world.driver.pools.values()
    assert len(pool._all) == 1


async def test_a_kept_connection_that_was_closing_is_no_failure(world: World) -> None:
    """The engine closes it without having read the second request: it is asked again, on another."""
    go_on = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(JSON)
        await go_on.wait()

    world.engine = handler
    await world.ask(stream=False)
    world.engine = keeps
    asking = asyncio.create_task(world.ask(stream=False))
    async with asyncio.timeout(5):
        while len(world.driver.leases) < 2:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0)
    go_on.set()
    status, _, _ = split(await asking)
    assert status == 200
    assert len(world.asked) == 2


async def test_a_request_that_was_read_is_never_sent_again(world: World) -> None:
    world.engine = keeps
    await world.ask(stream=False)
    world.engine = says()
    status, _, _ = split(await world.ask(stream=False))
    assert status == 502
    assert len(world.asked) == 2


async def pours(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """10 GB, should anybody take them."""
    writer.write(CHUNKED)
    piece = chunk(b"data: " + b"x" * (1 << 20) + b"\n\n")
    for _ in range(10_000):
        writer.write(piece)
        await writer.drain()


async def test_a_client_that_never_reads_holds_little_and_is_cut_off(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.engine = pours
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", world.port))
        client.sendall(request())
        most = 0
        async with asyncio.timeout(20):
            while not world.left.is_set():
                sizes = [
                    connection.transport.get_write_buffer_size()
                    for connection in world.server._runner.server.connections  # type: ignore[union-attr]
                    if connection.transport is not None
                ]
                most = max(most, *sizes, 0)
                await asyncio.sleep(0.01)
    assert 0 < most < 1 << 20
    assert world.driver.held == 0
    (line,) = log_lines(capsys)
    assert (line["status"], line["error"]) == (499, "client_stalled")


async def test_a_client_that_reads_slowly_is_no_stalled_one(world: World) -> None:
    sent = chunk(b"data: " + b"x" * (8 << 20) + b"\n\n") + chunk(DONE) + b"0\r\n\r\n"
    world.engine = says(CHUNKED + sent)
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port, limit=1 << 16)
    writer.write(request())
    got = b""
    async with asyncio.timeout(10):
        while not got.endswith(b"0\r\n\r\n"):
            got += await reader.read(1 << 20)
            await asyncio.sleep(CLIENT_TIMEOUT / 20)
    assert split(got)[2] == sent
    writer.close()
    await writer.wait_closed()


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def test_a_body_that_does_not_come_is_a_408_and_takes_no_slot(world: World) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    writer.write(request()[:-5])
    async with asyncio.timeout(5):
        status, _, body = split(await reader.read())
    assert (status, json.loads(body)["error"]["code"]) == (408, "request_timeout")
    assert world.driver.leases == []
    writer.close()
    await writer.wait_closed()


async def test_a_body_that_trickles_is_a_408_too(world: World) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 9999\r\n\r\n")

    async def trickle() -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b" ")
                await asyncio.sleep(0.02)

    trickling = asyncio.create_task(trickle())
    async with asyncio.timeout(5):
        head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408")
    trickling.cancel()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_a_body_that_moves_on_may_take_longer_than_the_limit(world: World) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    body = BODY + b" " * (20 << 10)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body))
    for at in range(0, len(body), 2 << 10):  # in twice the limit
        writer.write(body[at : at + (2 << 10)])
        await asyncio.sleep(0.06)
    async with asyncio.timeout(5):
        head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    writer.close()
    await writer.wait_closed()


async def test_an_engine_that_never_answers_is_a_504(world: World) -> None:
    world.engine = silent
    status, _, body = split(await world.ask())
    assert (status, json.loads(body)["error"]["code"]) == (504, "engine_timeout")
    assert len(world.asked) == 1


async def test_a_request_takes_no_longer_in_all_than_it_may(world: World) -> None:
    async def drips(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED)
        while True:
            writer.write(chunk(FRAME))
            await writer.drain()
            await asyncio.sleep(0.05)

    world.engine = drips
    began = asyncio.get_running_loop().time()
    _, _, body = split(await world.ask())
    assert b"server.request_timeout" in body
    assert asyncio.get_running_loop().time() - began >= 1.9


async def test_small_writes_are_not_held_back(world: World) -> None:
    world.engine = keeps
    _, writer = await asyncio.open_connection("127.0.0.1", world.port)
    writer.write(request(stream=False))
    async with asyncio.timeout(5):
        while not world.asked:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0)
    (connection,) = world.server._runner.server.connections  # type: ignore[union-attr]
    peer = connection.transport.get_extra_info("socket")
    assert peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    writer.close()
    await writer.wait_closed()
