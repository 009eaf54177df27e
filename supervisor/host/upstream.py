"""Connections to one engine: HTTP/1.1 over its Unix socket, kept open between requests.

llhttp reads the head of an answer and finds its end. What lies between is handed on as it came from the kernel:
no callback, no copy and no coroutine a piece.
"""

from __future__ import annotations

import asyncio
import mmap
import re
from collections import deque
from functools import lru_cache
from pathlib import Path
from typing import Protocol, cast

import httptools
import msgspec

HEAD_LIMIT = 64 << 10
"""Bytes of a head; vLLM's have a few hundred."""

PIECE = 256 << 10
"""Bytes of a body that wait in a transport at most: a large upload is not held twice."""

_LINE = re.compile(rb"([!#-'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*)")
_HEADS = 64
"""Heads that are remembered: those of an engine's answers are few, and the same for many."""

IDLE = 120.0
"""Seconds that a connection is kept for the next request; llmd has its engines wait for 300."""

_NOTHING = memoryview(b"")


class Broken(Exception):
    """No answer came, or what came was no HTTP. Whether the engine did anything is unknown."""


class Gone(Broken):
    """There is no connection, or it ended, as it does when the process behind it dies."""


class Unread(Gone):
    """The engine closed without having read the request: nothing was done, and it may be sent again.

    On a Unix socket the kernel tells: a peer that closes with unread bytes before it resets the connection, one that
    has read them all ends it in peace (unix(7), `unix_release_sock`).
    """


class Head(msgspec.Struct, frozen=True):
    """Of an answer. `length` is its body's where it is told, `kind` its media type; `raw` is the head as it came,
    `headers` its fields with their names in lower case."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    length: int | None
    chunked: bool
    raw: bytes
    kind: bytes = b""

    @property
    def until_close(self) -> bool:
        """Nothing but the end of the connection ends the body."""
        return not self.chunked and self.length is None and self.status not in (204, 304)


class Receiver(Protocol):
    """Takes one answer in: `begin` once, `take` for every piece, or `fail` in place of either."""

    def begin(self, head: Head) -> None: ...
    def take(self, data: bytes, done: bool) -> None: ...
    def fail(self, error: Broken) -> None: ...


class Connection(asyncio.Protocol):
    """One request at a time. `reused`: it served another before this one."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._receiver: Receiver | None = None
        self._begun = b""
        self._head: Head | None = None
        self._heads_ended = 0
        self._complete = False
        self._overrun = False
        self._keeps = False
        self._left = 0  # of a body whose length is told; its other bytes go by uncounted
        self._rest = _NOTHING
        self._full = False
        self.reused = False
        self.idle_since = 0.0

    # Of asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._parser = httptools.HttpResponseParser(self)

    def data_received(self, data: bytes) -> None:
        receiver = self._receiver
        if receiver is None:  # nobody asked
            self.transport.abort()
            return
        try:
            if self._head is None:
                data = self._read_head(data, receiver)
                if self._head is None:
                    return
            if data:
                self._parser.feed_data(data)
            if self._overrun:
                raise Broken("went on after the end of its answer")
        except httptools.HttpParserError as error:
            self._break(Broken(f"sent what is no HTTP ({type(error).__name__})"))
        except Broken as error:
            self._break(error)
        else:
            if self._complete:
                self._finish(data, receiver)
            elif data:
                self._left -= len(data)
                receiver.take(data, False)

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.lost(self)
        del self._parser  # they hold each other, and with them what was not sent
        receiver, self._receiver = self._receiver, None
        if receiver is None:
            return
        if self._head and self._head.until_close and exc is None:
            receiver.take(b"", True)
        elif self._head or self._begun or not isinstance(exc, ConnectionResetError | BrokenPipeError):
            receiver.fail(Gone("died in the middle of its answer" if self._head else "did not answer"))
        else:
            receiver.fail(Unread("closed the connection before it read the request"))

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._send_on()

    # Of httptools

    def on_message_begin(self) -> None:
        self._overrun = self._complete

    def on_headers_complete(self) -> None:
        self._heads_ended += 1

    def on_message_complete(self) -> None:
        self._complete = True
        self._keeps = self._parser.should_keep_alive()  # known here alone

    # Of whoever asks

    def ask(self, head: bytes, body: bytes | mmap.mmap | memoryview, receiver: Receiver) -> None:
        """Send a request; `receiver` hears of the answer from now on."""
        self._receiver, self._head = receiver, None
        self._heads_ended, self._complete = 0, False
        if len(body) <= PIECE:
            self.transport.write(b"".join((head, body)))
        else:
            self.transport.write(head)
            self._rest = memoryview(body)
            self._send_on()

    def hold(self) -> None:
        """Read no more until `go_on`: whoever takes the answer has enough."""
        if not self._complete:
            self.transport.pause_reading()

    def go_on(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def abort(self) -> None:
        """Whoever asked is gone: the engine sees it at once."""
        self._receiver = None
        self.transport.abort()

    def _send_on(self) -> None:
        while self._rest and not self._full and not self.transport.is_closing():
            piece = self._rest[:PIECE]
            self._rest = self._rest[PIECE:] or _NOTHING  # an empty view of it would keep it all
            self.transport.write(piece)

    def _read_head(self, data: bytes, receiver: Receiver) -> bytes:
        """What follows the head, once all of it is here. Raises Broken."""
        self._begun = data = self._begun + data if self._begun else data
        end = data.find(b"\r\n\r\n") + 4
        if end < 4 and len(data) <= HEAD_LIMIT:
            return b""
        if not 4 <= end <= HEAD_LIMIT:
            raise Broken(f"sent a head of more than {HEAD_LIMIT >> 10} KiB")
        raw, self._begun = data[:end], b""
        self._parser.feed_data(raw)
        if self._heads_ended != 1 or self._parser.get_status_code() < 200:
            raise Broken("sent no head of an answer")
        self._head = _head(self._parser.get_status_code(), raw)
        self._left = self._head.length or 0
        receiver.begin(self._head)
        return data[end:]

    def _within(self, data: bytes) -> bytes:
        """The last piece of an answer without the blank lines that llhttp forgives behind it."""
        assert self._head
        self._left -= len(data)
        if self._head.chunked:
            end = data.rstrip(b"\r\n")
            return end + b"\r\n\r\n" if end else data
        return data if self._head.until_close or self._left >= 0 else data[: self._left]

    def _break(self, error: Broken) -> None:
        receiver, self._receiver = self._receiver, None
        self.transport.abort()
        if receiver is not None:
            receiver.fail(error)

    def _finish(self, data: bytes, receiver: Receiver) -> None:
        """With the last piece. Whoever takes it may ask for the next answer."""
        data = self._within(data)
        self._receiver = None
        if self._rest or not self._keeps:
            self.transport.abort()
        else:
            self._pool.put(self)
        receiver.take(data, True)


@lru_cache(maxsize=_HEADS)
def _head(status: int, raw: bytes) -> Head:
    """Of what llhttp took for one. Raises Broken for a coding that is none of ours to undo."""
    length, chunked, kind = None, False, b""
    headers = tuple(map(_field, raw.split(b"\r\n")[1:-2]))
    for name, value in headers:
        if name == b"content-length":  # llhttp has seen to it that there is one, of digits
            length = int(value)
        elif name == b"transfer-encoding":
            chunked = value.lower() == b"chunked"
            if not chunked:
                raise Broken("sent a transfer coding that nobody asked for")
        elif name == b"content-type":
            kind = value.lower()
    return Head(status, headers, length, chunked, raw, kind)


def _field(line: bytes) -> tuple[bytes, bytes]:
    """Raises Broken for a line that is none, or that goes on in the next."""
    found = _LINE.fullmatch(line)
    if found is None:
        raise Broken("sent a head with a line in it that is no field")
    return found[1].lower(), found[2].rstrip(b" \t")


class Pool:
    """All connections to one engine. `connect_timeout` is seconds."""

    host, prefix = "engine", ""
    """Its socket knows no host; HTTP wants a name. What paths begin with there."""

    def __init__(self, socket: Path, key: str | None, connect_timeout: float) -> None:
        self._socket, self._connect_timeout = socket, connect_timeout
        self.credentials = f"Authorization: Bearer {key}\r\n".encode() if key else b""
        self._idle: deque[Connection] = deque()
        self._all: set[Connection] = set()
        self._expiry: asyncio.TimerHandle | None = None

    def free(self) -> Connection | None:
        """The one used last: the others grow old and go."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.transport.is_closing():
                return connection
        return None

    async def open(self) -> Connection:
        """A new one. Raises Gone."""
        try:
            async with asyncio.timeout(self._connect_timeout):
                connection = await self._connect()
        except TimeoutError:
            raise Gone(f"took no connection within {self._connect_timeout:g} s") from None
        except OSError as error:
            raise Gone(f"cannot be reached ({type(error).__name__})") from error
        self._all.add(connection)
        return connection

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_unix_connection(lambda: Connection(self), str(self._socket))
        return connection

    def close(self) -> None:
        for connection in list(self._all):
            connection.transport.abort()
        if self._expiry:
            self._expiry.cancel()

    def put(self, connection: Connection) -> None:
        connection.reused, connection.idle_since = True, asyncio.get_running_loop().time()
        self._idle.append(connection)
        if self._expiry is None:
            self._expiry = asyncio.get_running_loop().call_later(IDLE, self._expire)

    def lost(self, connection: Connection) -> None:
        self._all.discard(connection)
        if connection.reused and connection in self._idle:
            self._idle.remove(connection)

    def _expire(self) -> None:
        loop = asyncio.get_running_loop()
        while self._idle and self._idle[0].idle_since + IDLE <= loop.time():
            self._idle.popleft().transport.abort()
        self._expiry = loop.call_later(IDLE / 2, self._expire) if self._idle else None
