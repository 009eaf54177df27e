"""Connections to an engine, against a peer that answers byte by byte as each test says."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from supervisor.host import upstream
from supervisor.host.upstream import HEAD_LIMIT, Broken, Connection, Gone, Head, Pool, Unread

ASK = b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n"
BODY = b"{}"
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Taker:
    """All of one answer."""

    def __init__(self) -> None:
        self.head: Head | None = None
        self.body = b""
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def begin(self, head: Head) -> None:
        self.head = head

    def take(self, data: bytes, done: bool) -> None:
        self.body += data
        if done:
            self.over.set_result(None)

    def fail(self, error: Broken) -> None:
        self.over.set_exception(error)


async def asked(pool: Pool, head: bytes, body: bytes | memoryview, taker: Taker) -> Connection:
    connection = pool.free() or await pool.open()
    connection.ask(head, body, taker)
    return connection


class Peer:
    """An engine's socket. `handlers` serve its connections in order, the last one all that follow."""

    def __init__(self, socket: Path) -> None:
        self.socket, self.connections = socket, 0
        self.handlers: list[Handler] = [answer]
        self.pool = Pool(socket, "key", connect_timeout=5)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handler = self.handlers[min(self.connections, len(self.handlers) - 1)]
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            await handler(reader, writer)
        writer.close()

    async def ask(self, body: bytes = BODY) -> Taker:
        taker = Taker()
        await asked(self.pool, ASK.replace(b"2", b"%d" % len(body)), body, taker)
        async with asyncio.timeout(10):
            await taker.over
        return taker


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        await reader.readexactly(len(ASK + BODY))
        writer.write(GOOD)


def says(*pieces: bytes, closes: bool = True) -> Handler:
    """Reads one request and sends the pieces, each on its own."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(ASK + BODY))
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if not closes:
            await reader.read()

    return handler


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    folder = Path(tempfile.mkdtemp(prefix="llmd-", dir="/tmp"))
    made = Peer(folder / "e")
    server = await asyncio.start_unix_server(made.serve, str(folder / "e"))
    yield made
    made.pool.close()
    server.close()
    await server.wait_closed()
    shutil.rmtree(folder)


async def test_a_connection_serves_one_request_after_another(peer: Peer) -> None:
    for _ in range(3):
        assert (await peer.ask()).body == b"ok"
    assert peer.connections == 1


async def test_requests_at_once_have_a_connection_each(peer: Peer) -> None:
    takers = await asyncio.gather(*(peer.ask() for _ in range(3)))
    assert [taker.body for taker in takers] == [b"ok"] * 3
    assert peer.connections == 3


@pytest.mark.parametrize("size", [1, 5, 1000])
async def test_a_head_comes_in_pieces_as_the_network_likes(peer: Peer, size: int) -> None:
    whole = b"HTTP/1.1 200 OK\r\nX-A: b\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    peer.handlers = [
        says(*(whole[at : at + size] for at in range(0, len(whole), size)), closes=False),
    ]
    taker = await peer.ask()
    assert taker.head is not None
    assert (taker.head.status, taker.head.chunked, dict(taker.head.headers)[b"x-a"]) == (200, True, b"b")
    assert taker.body == b"3\r\nabc\r\n0\r\n\r\n"  # as it came


@pytest.mark.parametrize(
    "junk",
    [
        b"NOT HTTP AT ALL\r\n\r\n\x00\xff",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nx: a\r\n folded\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nx: a\nset-cookie: b\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nno colon\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nx : a\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\ndata",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * HEAD_LIMIT,
        GOOD + b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno",
        GOOD + b"junk",
    ],
)
async def test_junk_is_broken(peer: Peer, junk: bytes) -> None:
    peer.handlers = [says(junk, closes=False)]
    with pytest.raises(Broken) as caught:
        await peer.ask()
    assert not isinstance(caught.value, Unread)


async def test_an_answer_that_stops_short_is_broken(peer: Peer) -> None:
    peer.handlers = [says(GOOD[:-1])]
    with pytest.raises(Broken, match="died in the middle"):
        await peer.ask()


async def test_an_engine_that_read_the_request_and_closed_may_have_carried_it_out(peer: Peer) -> None:
    peer.handlers = [says()]
    with pytest.raises(Broken) as caught:
        await peer.ask()
    assert not isinstance(caught.value, Unread)


async def test_an_engine_that_closed_without_reading_did_nothing(peer: Peer) -> None:
    """As one that closes an idle connection while the next request is on its way."""
    go_on = asyncio.Event()

    async def closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(ASK + BODY))
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(GOOD)
        await go_on.wait()

    peer.handlers = [closes, answer]
    await peer.ask()
    taker = Taker()
    connection = await asked(peer.pool, ASK, BODY, taker)
    assert connection.reused
    go_on.set()
    with pytest.raises(Unread):
        await taker.over


async def test_a_connection_that_the_engine_closed_is_not_used_again(peer: Peer) -> None:
    peer.handlers = [says(GOOD), answer]
    await peer.ask()
    async with asyncio.timeout(5):
        while peer.pool._all:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0)
    assert (await peer.ask()).body == b"ok"
    assert peer.connections == 2


async def test_what_comes_unasked_closes_the_connection(peer: Peer) -> None:
    go_on = asyncio.Event()

    async def speaks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(ASK + BODY))
        writer.write(GOOD)
        await go_on.wait()
        writer.write(b"and another thing")
        await reader.read()

    peer.handlers = [speaks, answer]
    await peer.ask()
    go_on.set()
    async with asyncio.timeout(5):
        while peer.pool._all:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert (await peer.ask()).body == b"ok"


async def test_a_large_body_does_not_wait_in_memory_twice(peer: Peer) -> None:
    body, go_on = b"x" * (8 << 20), asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await go_on.wait()
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        await reader.readexactly(len(ASK) + 6 + len(body))
        writer.write(GOOD)

    peer.handlers = [slow]
    taker = Taker()
    connection = await asked(peer.pool, ASK.replace(b"2", b"%d" % len(body)), body, taker)
    assert connection.transport.get_write_buffer_size() <= 2 * upstream.PIECE
    go_on.set()
    async with asyncio.timeout(10):
        await taker.over
    assert taker.body == b"ok"


async def test_a_connection_keeps_nothing_of_a_body_that_it_sent(peer: Peer) -> None:
    body = bytearray(4 * upstream.PIECE)
    head = ASK.replace(b"2", b"%d" % len(body))

    async def reads(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(head) + len(body))
        writer.write(GOOD)
        await reader.read()

    peer.handlers = [reads]
    taker = Taker()
    connection = await asked(peer.pool, head, memoryview(body), taker)
    async with asyncio.timeout(10):
        await taker.over
    assert not connection.transport.is_closing()
    body.clear()  # raises BufferError while somebody looks at it


async def test_a_connection_that_is_cut_keeps_nothing_of_its_body(
    peer: Peer, request: pytest.FixtureRequest
) -> None:
    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.Event().wait()

    peer.handlers = [never]
    gc.disable()  # it would find them some day
    request.addfinalizer(gc.enable)
    body = bytearray(16 * upstream.PIECE)
    connection = await asked(peer.pool, ASK.replace(b"2", b"%d" % len(body)), memoryview(body), Taker())
    connection.abort()
    del connection
    async with asyncio.timeout(10):
        while body:
            await asyncio.sleep(0)
            with contextlib.suppress(BufferError):  # somebody looks at it still
                body.clear()


async def test_an_answer_before_the_whole_request_was_read_ends_the_connection(peer: Peer) -> None:
    async def hasty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(GOOD)
        await writer.drain()
        await asyncio.Event().wait()

    peer.handlers = [hasty]
    taker = Taker()
    connection = await asked(peer.pool, ASK, b"x" * (32 << 20), taker)
    async with asyncio.timeout(10):
        await taker.over
    assert taker.body == b"ok"
    assert connection.transport.is_closing()


async def test_an_idle_connection_is_not_kept_for_ever(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "IDLE", 0.05)
    await peer.ask()
    async with asyncio.timeout(5):
        while peer.pool._all:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_an_engine_that_is_not_there_is_told_at_once() -> None:
    folder = Path(tempfile.mkdtemp(prefix="llmd-", dir="/tmp"))
    pool = Pool(folder / "nowhere", "key", connect_timeout=60)
    async with asyncio.timeout(5):
        with pytest.raises(Gone, match="cannot be reached"):
            await asked(pool, ASK, BODY, Taker())
    shutil.rmtree(folder)


class Deaf(Pool):
    async def _connect(self) -> Connection:
        await asyncio.Event().wait()
        raise AssertionError


async def test_an_engine_that_takes_no_connection_is_waited_for_so_long() -> None:
    pool = Deaf(Path("/nowhere"), "key", connect_timeout=0.1)
    async with asyncio.timeout(5):
        with pytest.raises(Gone, match=r"took no connection within 0\.1 s"):
            await asked(pool, ASK, BODY, Taker())
