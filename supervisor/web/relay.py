"""One request to an engine, or a peer, and its answer back, byte for byte as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import HttpVersion11, web
from multidict import CIMultiDict

from supervisor.errors import EngineFailed, EngineUnwilling, LlmdError
from supervisor.host.upstream import Broken, Unread
from supervisor.web import dialects, heads
from supervisor.web.answer import Answer
from supervisor.web.blame import blame, translated
from supervisor.web.bodies import Body
from supervisor.web.driving import Lease
from supervisor.web.framing import chunk
from supervisor.web.holding import BEGUN, Signs
from supervisor.web.onward import is_unwilling
from supervisor.web.patience import Limits
from supervisor.web.protocol import Connection
from supervisor.web.record import RECORD, Record
from supervisor.web.routes import dialect_of


async def relay(
    request: web.Request,
    body: Body,
    lease: Lease,
    limits: Limits,
    signs: Signs,
    *,
    begun: Callable[[bytes], None] | None = None,
) -> web.StreamResponse:
    """`begun` is told what came first of an answer that is no refusal. Where the head of a stream was sent while the
    request waited, a refusal of the engine's is raised.

    Raises LlmdError as long as nothing of the engine's was sent; later the connection is cut. Only EngineDied leaves
    the request to another: what was sent to an engine that lives is never sent again, it may have been carried out.
    """
    assert isinstance(request.protocol, Connection)
    record, awaited = request[RECORD], _Awaited(request)
    answer = Answer(
        request.protocol,
        lease,
        record,
        awaited,
        limits,
        signs,
        keeps=request.keep_alive and request.version >= HttpVersion11,
        chunks=request.version >= HttpVersion11,
        held=BEGUN in request,
        first=begun,
    )
    try:
        await _asked(awaited, answer, lease, _head(request, len(body), lease, record), body)
        await awaited.over
        if answer.refusal is not None:
            return _refused(request, answer)
        return Spliced(request, record.status, answer.keeps)
    except asyncio.CancelledError:
        answer.left()
        raise
    finally:
        answer.close()
        if record.first is not None and answer.refusal is None:
            note_usage(answer, lease, record)


class _Awaited:
    """Owns an answer on behalf of a coroutine. `begins` raises what came instead of the first byte."""

    def __init__(self, request: web.Request) -> None:
        loop = asyncio.get_running_loop()
        self._request = request
        self.begins: asyncio.Future[None] = loop.create_future()
        self.over: asyncio.Future[None] = loop.create_future()

    def begin_anew(self) -> None:
        self.begins = asyncio.get_running_loop().create_future()

    def held(self) -> None:
        self._request[BEGUN] = Spliced(self._request, 200, keeps=False)

    def begun(self) -> None:
        self._request.writer.output_size += 1  # an answer has begun, should anything fail
        if not self.begins.done():
            self.begins.set_result(None)

    def failed(self, error: Broken | LlmdError) -> None:
        if not self.begins.done():
            self.begins.set_exception(error)

    def ended(self) -> None:
        for future in (self.begins, self.over):
            if not future.done():
                future.set_result(None)


async def _asked(awaited: _Awaited, answer: Answer, lease: Lease, head: bytes, body: Body) -> None:
    """Until the first byte went to the client, or the engine refused. The lease is told of what fails."""
    try:
        await _sent(awaited, answer, lease, head, body)
        if answer.refusal is not None:
            check_refusal(answer.head.status, bytes(answer.refusal), lease)
    except Broken as error:
        lease.failed(str(error))
        raise translated(error, lease) from error
    except EngineFailed as error:
        lease.failed(error.message)
        raise
    lease.answered()


async def _sent(awaited: _Awaited, answer: Answer, lease: Lease, head: bytes, body: Body) -> None:
    """A kept connection may be one that the engine is just closing: then once more, on a fresh one."""
    connection = lease.pool.free() or await lease.pool.open()
    while True:
        answer.attach(connection)
        connection.ask(head, body.data, answer)
        try:
            return await awaited.begins
        except Unread:
            if not connection.reused:
                raise
        awaited.begin_anew()
        answer.begin_anew()
        connection = await lease.pool.open()


def _refused(request: web.Request, answer: Answer) -> web.StreamResponse:
    """What the engine refuses, in the shape that the client reads. Raises it where the head of a stream is out."""
    status, said = answer.head.status, bytes(answer.refusal or b"")
    if BEGUN in request:
        raise dialects.as_error(status, said)
    kept, told = refusal(answer, request.path)
    headers = CIMultiDict((name.decode("latin-1"), value.decode("latin-1")) for name, value in kept)
    return web.Response(status=status, body=told, headers=headers)


def refusal(answer: Answer, path: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and body of what the engine refused with, as the clients of `path` read it."""
    said = bytes(answer.refusal or b"")
    told = dialects.retold(answer.head.status, said, dialect_of(path))
    if told is None:
        return heads.kept_for_client(answer.head.headers), said
    return heads.kept_of_refusal(answer.head.headers), told


def check_refusal(status: int, said: bytes, lease: Lease) -> None:
    """Raises EngineUnwilling, EngineFailed where the fault is not the request's."""
    if lease.peer and is_unwilling(status):
        raise blame(lease, f"answered {status}{dialects.quoted(said)}", EngineUnwilling)
    if status in (401, 403):  # our key, not the client's
        raise blame(lease, "did not accept llmd's key")


def note_usage(answer: Answer, lease: Lease, record: Record) -> None:
    record.prompt, record.completion = answer.passing.usage()
    lease.used(record.prompt, record.completion)


def _head(request: web.Request, length: int, lease: Lease, record: Record) -> bytes:
    """What the engine reads before the body."""
    size = None if request.method == "GET" else length
    line = f"{request.method} {lease.pool.prefix}{_target(request)} HTTP/1.1\r\n".encode()
    if lease.peer is None:
        return line + heads.for_engine(request.raw_headers) + own_head(lease, record, size)
    hops = f"x-llmd-hops: {record.hops + 1}\r\n".encode()
    return line + heads.for_peer(request.raw_headers) + hops + own_head(lease, record, size)


def own_head(lease: Lease, record: Record, length: int | None) -> bytes:
    """What llmd says itself, to the head's end. `length`: the body's; None where there is none."""
    pool = lease.pool
    size = "" if length is None else f"Content-Length: {length}\r\n"
    own = f"Host: {pool.host}\r\nAccept-Encoding: identity\r\nX-Request-Id: {record.request_id}\r\n{size}\r\n"
    return pool.credentials + own.encode()


def _target(request: web.Request) -> str:
    """An answer that is kept takes its options in the query; everything else, in its body."""
    query = request.rel_url.raw_query_string if request.method == "GET" else ""
    return f"{request.rel_url.raw_path}?{query}" if query else request.rel_url.raw_path


class Spliced(web.StreamResponse):
    """An answer that is on the wire already, or its head: aiohttp neither starts nor ends it."""

    def __init__(self, request: web.Request, status: int, keeps: bool) -> None:
        super().__init__(status=status)
        self._eof_sent, self._keep_alive = True, keeps
        self._request, self._writer = request, request.writer
        self._writer.output_size += 1  # an answer has begun, should anything fail

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Behind a head that says that a stream of events follows."""
        transport = self._request.transport
        if transport is None:
            raise ConnectionResetError
        transport.write(chunk(bytes(data)) if self._request.version >= HttpVersion11 else data)

    async def write_eof(self, data: bytes | bytearray | memoryview = b"") -> None:
        """Once the client has taken all of it; the engine has been free for long."""
        await self._writer.drain()
