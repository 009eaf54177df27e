"""HTTP where aiohttp's server leaves a gap: slow heads, malformed ones, and errors that no handler foresaw.

Whatever goes wrong is answered in OpenAI's shape and told in one JSON line; a client can neither fill the log
nor hold a connection that asks for nothing.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sys
import time
import traceback
from collections.abc import Callable
from typing import Protocol, cast

from aiohttp import HttpVersion10, StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import RawRequestMessage

from supervisor.errors import BadRequest, InternalError, LlmdError
from supervisor.host.logbook import log
from supervisor.web.invitation import CONTINUE, EXPECTED, expectation, is_uninvited, part, unexpecting
from supervisor.web.openai import error_body, error_headers
from supervisor.web.record import RECORD, Record

_KEEPALIVE = 75.0
"""Seconds of silence after an answer. It also ends a head that was begun behind the request before it."""

CLIENT_TIMEOUT = 60.0
_QUIET = 1.0
_HOST = re.compile(r"([A-Za-z0-9._~%!$&'()*+,;=-]+|\[[0-9A-Fa-f:.]+\])(:\d{0,5})?")
_CLIENTS = (HttpProcessingError, web.RequestPayloadError)


class Runner(web.AppRunner):
    """Serves an application through `Connection`. The timeouts are seconds."""

    def __init__(
        self,
        app: web.Application,
        *,
        header_timeout: float,
        shutdown_timeout: float,
        client_timeout: float = CLIENT_TIMEOUT,
        connection: Connect | None = None,
    ) -> None:
        """`connection` makes them, where they are more than `Connection`."""
        self._timeouts, self._connection = (header_timeout, client_timeout), connection or Connection
        super().__init__(app, shutdown_timeout=shutdown_timeout)

    def wait_at_most(self, seconds: float) -> None:
        """For what is in flight when it is closed."""
        self._shutdown_timeout = seconds

    async def _make_server(self) -> web.Server:
        return _Server(await super()._make_server(), self._timeouts, self._connection)


class _Server(web.Server):
    """Makes connections; tells each when a request of its own begins and ends."""

    def __init__(self, application: web.Server, timeouts: tuple[float, float], connection: Connect) -> None:
        # Without handler_cancellation a request runs on after its client left.
        super().__init__(self._answer, request_factory=self._begin, handler_cancellation=True)
        self._application = application
        self._timeouts, self._connection = timeouts, connection
        self._complaints = Complaints()

    def __call__(self) -> Connection:
        return self._connection(self, self._timeouts, self._complaints)

    def _begin(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        connection: web.RequestHandler,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None],
    ) -> web.BaseRequest:
        assert isinstance(connection, Connection)
        connection.begin()
        expected = expectation(message)
        told = message if expected is None else unexpecting(message)
        request = self._application.request_factory(told, payload, connection, writer, task)
        if expected is not None:
            request[EXPECTED] = expected
        return request

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            response = await self._application.request_handler(request)
            if is_uninvited(request):
                await part(request, response)
            return response
        finally:
            assert isinstance(request.protocol, Connection)
            request.protocol.end()


class Source(Protocol):
    """What a connection's answer comes from, told when the client takes no more, when it does again, and that it is
    gone: a handler hears of that later, and nothing may be written meanwhile."""

    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def lost(self) -> None: ...


class Connection(web.RequestHandler):
    """One client's connection. It has so many seconds for each head, counted from its first byte, and so many for
    taking anything of what was written."""

    def __init__(self, server: web.Server, timeouts: tuple[float, float], complaints: Complaints) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=_KEEPALIVE,
            logger=json_logger(),
            access_log=None,  # type: ignore[arg-type]
        )
        self._header_timeout, self._client_timeout = timeouts
        self._complaints = complaints
        self.source: Source | None = None
        self.stalled = False
        self._untaken = 0
        self._stall: asyncio.Handle | None = None
        self._busy = False
        self._due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        both = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        both.set_write_buffer_limits(0)  # every byte that the kernel did not take counts as waiting
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if data and not self._busy:
            self._await_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.begin()
        self._cancel_stall()
        if self.source is not None:
            self.source.lost()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.source is not None:
            self.source.pause()
        self._stall = self._loop.call_soon(self._await_client)  # with all that is written in this turn

    def resume_writing(self) -> None:
        super().resume_writing()
        self._cancel_stall()
        if self.source is not None:
            self.source.resume()

    def _await_client(self) -> None:
        if self.transport is not None:
            self._untaken = self.transport.get_write_buffer_size()
            self._stall = self._loop.call_later(self._client_timeout, self._look_at_client)

    def _look_at_client(self) -> None:
        if self.transport is None:
            return
        if self.transport.get_write_buffer_size() < self._untaken:
            self._await_client()
            return
        self.stalled = True
        self.transport.abort()

    def _cancel_stall(self) -> None:
        if self._stall:
            self._stall.cancel()
            self._stall = None

    def begin(self) -> None:
        """A head is here; what comes now is its body."""
        self._busy = True
        if self._due:
            self._due.cancel()
            self._due = None

    def end(self) -> None:
        self._busy = False

    def _await_head(self) -> None:
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(self._header_timeout, self.force_close)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """aiohttp's hook. Raises ConnectionError where an answer has begun: it is cut, not followed by another."""
        error = exc or sys.exception()
        if isinstance(error, ConnectionError) and _left(request):
            raise error
        record = request.get(RECORD) or Record.of(None)
        if isinstance(error, HttpProcessingError):
            told: LlmdError = self._malformed(error, request)
        else:
            told = _internal(error, record)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun")
        return _refusal(told, record)

    def _malformed(self, error: HttpProcessingError, request: web.BaseRequest) -> BadRequest:
        """Its message quotes what was sent, a key perhaps: only its first words are repeated."""
        kind = type(error).__name__
        self._complaints.tell("malformed_request", kind, client=request.remote)
        words = re.split(r"[:\n]", error.message)[0]
        return BadRequest(f"malformed HTTP: {words or kind}")


class Complaints:
    """At most one line a second of each kind, with the number of times since the last one."""

    def __init__(self) -> None:
        self._untold: dict[str, int] = {}
        self._told: dict[str, float] = {}

    def tell(self, event: str, kind: str, **fields: object) -> None:
        """`kind` is one of few names, never a client's text: each is remembered."""
        times, now = self._untold.get(kind, 0) + 1, time.monotonic()
        self._untold[kind] = times
        if now - self._told.get(kind, -_QUIET) >= _QUIET:
            self._untold[kind], self._told[kind] = 0, now
            log(event, "WARNING", kind=kind, times=times, **fields)


Connect = Callable[[web.Server, tuple[float, float], Complaints], Connection]


def check_head(request: web.BaseRequest) -> None:
    """What aiohttp lets pass and a proxy before llmd might read otherwise. Raises BadRequest."""
    hosts = request.headers.getall("Host", [])
    old = request.version == HttpVersion10
    if len(hosts) > 1 or (not hosts and not old) or not all(map(_HOST.fullmatch, hosts)):
        raise BadRequest("one Host header is needed, with a name or an address")
    if not request.raw_path.startswith("/"):
        raise BadRequest("the request line must hold a path: llmd is no proxy")
    if old and "Transfer-Encoding" in request.headers:
        raise BadRequest("HTTP/1.0 has no Transfer-Encoding")
    if request.get(EXPECTED, CONTINUE).lower() != CONTINUE:
        raise BadRequest(f"nothing but {CONTINUE} can be expected here")


def _left(request: web.BaseRequest) -> bool:
    return request.transport is None or request.transport.is_closing()


def _internal(error: BaseException | None, record: Record) -> InternalError:
    log("internal_error", "ERROR", request_id=record.request_id, traceback=_trace(error))
    return InternalError(f"internal error of llmd, request id {record.request_id}; see its log")


def _refusal(error: LlmdError, record: Record) -> web.Response:
    headers = {**error_headers(error), **record.headers()}
    response = web.json_response(error_body(error), status=error.status, headers=headers)
    response.force_close()
    return response


def json_logger() -> logging.Logger:
    """For what aiohttp logs by itself: JSON lines too, and none about a client's fault."""
    logger = logging.getLogger("llmd.http")
    if not logger.handlers:
        logger.addFilter(_is_ours)
        logger.addHandler(_Lines())
    return logger


def _is_ours(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], _CLIENTS))


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        log("http", record.levelname, message=record.getMessage(), traceback=_trace(error))


def _trace(error: BaseException | None) -> str:
    return "".join(traceback.format_exception(error)) if error else ""
