"""One request to an engine and its answer back, byte for byte as it comes.

A broken answer never ends cleanly: most clients take a stream that just stops for a success. It gets an error
frame, where it is a stream of events, and its connection is cut.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Mapping

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from supervisor.errors import EngineDied, EngineFailed, EngineSilent, EngineUnwilling, LlmdError, Withdrawn
from supervisor.web import dialects
from supervisor.web.bodies import Body
from supervisor.web.dialects import MARKS, Marks
from supervisor.web.driving import Lease
from supervisor.web.holding import retold
from supervisor.web.onward import broke_off, for_peer, is_unwilling
from supervisor.web.patience import Reader
from supervisor.web.record import Record
from supervisor.web.routes import dialect_of

_HOP = frozenset(
    {
        "connection",
        "content-length",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_KEYS = frozenset({"authorization", "x-api-key", "cookie"})
_PRIVILEGES = frozenset({"x-vllm-priority", "x-data-parallel-rank"})
_OURS = frozenset({"host", "expect", "accept-encoding", "content-encoding", "x-request-id"})
_NOT_FOR_ENGINES = _HOP | _KEYS | _PRIVILEGES | _OURS
"""vLLM grants the privileges to whoever asks; bodies have been decompressed when they come here."""
_NOT_FOR_CLIENTS = _HOP | {"server", "date", "x-request-id", "request-id", "set-cookie"}

_NO_LIMIT = aiohttp.ClientTimeout(total=None, sock_connect=10)
_LONGEST_REFUSAL = 1 << 20
_ENGINE = "http://engine"
"""Its socket knows no host; the name is there for HTTP."""
_FRAME = b"data: {"
_KEPT = 16 * 1024
_USAGE = re.compile(rb'"(prompt_tokens|completion_tokens|input_tokens|output_tokens)"\s*:\s*(\d+)')
_CALLED = {b"input_tokens": "prompt_tokens", b"output_tokens": "completion_tokens"}
"""What the newer APIs call them."""


class Passing:
    """Watches an answer go by: where an event tells of an error, whether the end came, what it cost."""

    def __init__(self, events: bool, marks: Marks = MARKS["openai"]) -> None:
        self.events = events
        self._marks = marks
        self.failed = False  # an error frame went by, whole
        self._closing = False  # the last event has begun to go by
        self._frames = 0
        self._in_error = False
        self._head = b""
        self._tail = b"\n"

    def pass_on(self, chunk: bytes) -> bytes:
        """What of `chunk` may go on: all, or up to the end of an error frame (vLLM sends [DONE] after it)."""
        self._frames += chunk.count(_FRAME)
        before = len(self._tail)
        seen = self._tail + chunk
        self._closing |= (
            self.events and seen.find(self._marks.end, max(0, before - len(self._marks.end))) >= 0
        )
        self._tail = seen[-_KEPT:]
        self._head += chunk[: _KEPT - len(self._head)]
        end = self._error_end(seen, before) if self.events else -1
        self.failed = end >= 0
        return seen[before:end] if self.failed else chunk

    def _error_end(self, seen: bytes, before: int) -> int:
        """Where in `seen`, of which `before` bytes went by earlier, an error frame ends; -1 if none does."""
        start = before - 1
        if not self._in_error:
            start = seen.find(self._marks.error, max(0, before - len(self._marks.error)))
            self._in_error = start >= 0
            start += 1  # the line feed there ends the frame before
        end = seen.find(b"\n\n", start) if self._in_error else -1
        return end + 2 if end >= 0 else -1

    def ended(self) -> bool:
        """Every stream of events has a last one; where that did not come whole, it was broken off."""
        return not self.events or (self._closing and self._tail.endswith(self._marks.close))

    def made(self) -> int | None:
        """Tokens so far, about: engines send most of them in a frame of their own, after one without any."""
        return max(0, self._frames - 1) if self.events else None

    def usage(self) -> dict[str, int]:
        """Token counts; near the end of most answers, near the start of a ranking."""
        for part in (self._tail, self._head):
            at = part.rfind(b'"usage"')
            if at >= 0 and (found := _USAGE.findall(part[at:])):
                return {_CALLED.get(name, name.decode()): int(count) for name, count in found}
        return {}


async def relay(
    request: web.Request,
    body: Body,
    lease: Lease,
    record: Record,
    *,
    patience: float,
    between: float,
    begun: Callable[[bytes], None] | None = None,
    held: web.StreamResponse | None = None,
) -> web.StreamResponse:
    """Give the answer's first byte `patience` seconds, each further piece `between`. `begun` is told what came
    first of an answer that is no refusal.

    `held`: the head of a stream that was sent while the request waited; a refusal of the engine's is then raised.
    Raises LlmdError as long as nothing of the engine's was sent; later the connection is cut. Only EngineDied leaves
    the request to another: what was sent to an engine that lives is never sent again, it may have been carried out.
    """
    try:
        async with (
            asyncio.timeout(patience) as limit,
            lease.session.request(
                request.method,
                _url(request, lease),
                data=body.sendable(),
                headers=_onward(request, len(body), record, lease),
                timeout=_NO_LIMIT,
                allow_redirects=False,
            ) as upstream,
        ):
            first = await upstream.content.readany()
            limit.reschedule(None)
            if lease.peer and is_unwilling(upstream.status):
                raise EngineUnwilling(
                    f"{_who(lease)} answered {upstream.status}{_words(first)}", retry_after=5
                )
            if upstream.status in (401, 403):  # our key, not the client's
                raise _failed(lease, "did not accept llmd's key")
            if upstream.status >= 400:
                said = await _said(upstream, first, between)
                if held is not None:
                    raise retold(upstream.status, said)
                return _refused(request, upstream, said, record)
            if begun:
                begun(first)
            return await _answer(request, upstream, first, lease, record, between, held)
    except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
        if limit.expired():
            raise _silent(lease, f"did not begin to answer within {patience:g} s") from error
        if record.first is None and (lease.peer or broke_off(error)):
            raise _died(lease, f"did not answer ({type(error).__name__})") from error
        raise _failed(lease, f"did not answer ({type(error).__name__})") from error


async def _answer(
    request: web.Request,
    upstream: aiohttp.ClientResponse,
    first: bytes,
    lease: Lease,
    record: Record,
    between: float,
    held: web.StreamResponse | None,
) -> web.StreamResponse:
    record.first, record.status = time.monotonic(), upstream.status
    response = held or _head(upstream, record)
    passing = Passing(upstream.content_type == "text/event-stream", MARKS[dialect_of(request.path)])
    record.streamed = passing.events
    reader = Reader(upstream.content, between)
    record.made, record.cut = passing.made, reader.withdraw
    try:
        if held is None:
            await response.prepare(request)
        broken = await _copy(first, upstream, reader, response, passing, lease)
        if broken is None:
            await response.write_eof()
        else:
            await _cut(request, response, passing, broken, record)
    except ConnectionResetError:  # the client left between two writes
        record.status = 499
    finally:
        reader.close()
        _count(passing, lease, record)
    return response


def _head(upstream: aiohttp.ClientResponse, record: Record) -> web.StreamResponse:
    response = web.StreamResponse(status=upstream.status, headers=_to_client(upstream, record))
    response.content_length = upstream.content_length
    return response


async def _said(upstream: aiohttp.ClientResponse, first: bytes, between: float) -> bytes:
    """What the engine says to its refusal. Raises TimeoutError and aiohttp's errors."""
    body = bytearray(first)
    async with asyncio.timeout(between):
        while len(body) <= _LONGEST_REFUSAL and (chunk := await upstream.content.readany()):
            body += chunk
    return bytes(body[:_LONGEST_REFUSAL])


def _refused(
    request: web.Request, upstream: aiohttp.ClientResponse, said: bytes, record: Record
) -> web.StreamResponse:
    """What the engine refuses, in the shape that the client reads."""
    record.first, record.status = time.monotonic(), upstream.status
    told = dialects.retold(upstream.status, said, dialect_of(request.path))
    return web.Response(status=upstream.status, body=told or said, headers=_to_client(upstream, record))


async def _copy(
    chunk: bytes,
    upstream: aiohttp.ClientResponse,
    reader: Reader,
    response: web.StreamResponse,
    passing: Passing,
    lease: Lease,
) -> LlmdError | None:
    """Until the end, or what went wrong on the engine's side. Raises ConnectionResetError for the client's."""
    while chunk:
        await response.write(passing.pass_on(chunk))
        if passing.failed:
            return _failed(lease, "broke off with an error")
        try:
            chunk = await reader.read()
        except TimeoutError:
            return _silent(lease, "fell silent in the middle of its answer")
        except Withdrawn as error:
            return error
        except (aiohttp.ClientError, OSError):
            return _failed(lease, "died in the middle of its answer")
    if passing.ended():
        return None
    return _failed(lease, "ended its answer too early")


async def _cut(
    request: web.Request, response: web.StreamResponse, passing: Passing, why: LlmdError, record: Record
) -> None:
    record.status, record.error, record.code = why.status, why.message, why.code
    if passing.events and not passing.failed:
        await response.write(b"\n\n" + dialects.event(why, dialect_of(request.path)))
    if request.transport is not None:
        request.transport.close()  # what is written still goes out; the chunk that ends an answer does not


def _count(passing: Passing, lease: Lease, record: Record) -> None:
    usage = passing.usage()
    record.prompt, record.completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    lease.used(record.prompt, record.completion)


def _failed(lease: Lease, what: str) -> EngineFailed:
    return EngineFailed(f"{_who(lease)} {what}", log=lease.log_tail(), retry_after=5)


def _words(body: bytes) -> str:
    """A peer's own words for an error, where it has OpenAI's shape."""
    try:
        return f": {json.loads(body)['error']['message']}"[:500]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def _who(lease: Lease) -> str:
    return f"the peer {lease.profile}" if lease.peer else f"the engine of {lease.profile}"


def _died(lease: Lease, what: str) -> EngineDied:
    return EngineDied(f"{_who(lease)} {what}", log=lease.log_tail(), retry_after=5)


def _silent(lease: Lease, what: str) -> EngineSilent:
    return EngineSilent(f"{_who(lease)} {what}", log=lease.log_tail(), retry_after=5)


def _onward(request: web.Request, length: int, record: Record, lease: Lease) -> CIMultiDict[str]:
    kept = _to_engine(request, length, record)
    return for_peer(kept, record.hops) if lease.peer else kept


def _url(request: web.Request, lease: Lease) -> URL:
    """An answer that is kept takes its options in the query; everything else, in its body."""
    query = request.rel_url.raw_query_string if request.method == "GET" else ""
    base = URL(lease.peer.url if lease.peer else _ENGINE)
    path = base.raw_path.rstrip("/") + request.rel_url.raw_path
    return base.with_path(path, encoded=True).with_query(URL(f"?{query}", encoded=True).query)


def _to_engine(request: web.Request, length: int, record: Record) -> CIMultiDict[str]:
    kept = _without(request.headers, _NOT_FOR_ENGINES)
    if length:
        kept["Content-Length"] = str(length)
    kept["Accept-Encoding"] = "identity"
    kept["X-Request-Id"] = record.request_id
    # A kept connection that the engine is just closing would look like its death.
    kept["Connection"] = "close"
    return kept


def _to_client(upstream: aiohttp.ClientResponse, record: Record) -> CIMultiDict[str]:
    kept = _without(upstream.headers, _NOT_FOR_CLIENTS)
    kept.update(record.headers())
    return kept


def _without(headers: Mapping[str, str], names: frozenset[str]) -> CIMultiDict[str]:
    named = {name.strip().lower() for name in headers.get("Connection", "").split(",")}
    return CIMultiDict((k, v) for k, v in headers.items() if k.lower() not in names | named)
