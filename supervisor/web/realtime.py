"""A websocket to an engine, or a peer: what either side says is passed to the other, until one of them ends it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from urllib.parse import urlencode

import aiohttp
from aiohttp import WSMsgType, web

from supervisor.errors import BadRequest, EngineFailed, EngineSilent, EngineUnwilling, LlmdError, Withdrawn
from supervisor.host.peers import HOPS
from supervisor.host.upstream import Broken, Gone
from supervisor.web.blame import blame, translated
from supervisor.web.driving import Lease
from supervisor.web.onward import is_unwilling
from supervisor.web.patience import CANCELLED, TOO_LONG, Limits
from supervisor.web.record import RECORD, Record

_HEARTBEAT = 30.0
"""Seconds between pings; a side that does not answer them is gone."""
_LARGEST = 16 << 20
"""Bytes of a message: three minutes of speech at once."""
_BROKEN, _CUT = 1011, 1006
"""An end that neither side wanted, as it is told and as it is met; RFC 6455, 7.4.1."""

Side = web.WebSocketResponse | aiohttp.ClientWebSocketResponse


def check_handshake(request: web.Request) -> None:
    """Raises BadRequest for what is none."""
    if not web.WebSocketResponse().can_prepare(request):
        raise BadRequest(f"{request.path} is for websockets")


async def relay_socket(request: web.Request, lease: Lease, limits: Limits) -> web.StreamResponse:
    """Raises LlmdError as long as the client's handshake was not answered. Only EngineDied leaves it to another."""
    record = request[RECORD]
    async with await _reached(request, lease, record, limits) as engine:
        client = web.WebSocketResponse(heartbeat=_HEARTBEAT, max_msg_size=_LARGEST)
        client.headers.update(record.headers())
        await client.prepare(request)
        cut = partial(_cut, request)
        record.status, record.cut = 101, partial(cut, Withdrawn(CANCELLED))
        with _for_so_long(record.started + limits.total, partial(cut, EngineSilent(f"it {TOO_LONG}"))):
            await _both_ways(client, engine, partial(_note_end, record, lease))
    return client


async def _reached(
    request: web.Request, lease: Lease, record: Record, limits: Limits
) -> aiohttp.ClientWebSocketResponse:
    """The lease is told of what fails; not of a refusal: an engine without this route refuses everyone."""
    url, headers = _asked(request, lease, record)
    try:
        async with asyncio.timeout(limits.first):
            engine = await lease.session.ws_connect(
                url, heartbeat=_HEARTBEAT, max_msg_size=_LARGEST, headers=headers
            )
    except aiohttp.WSServerHandshakeError as error:
        raise _refusal(error.status, lease) from error
    except (aiohttp.ClientError, OSError) as error:
        told = _failure(error, lease, limits)
        lease.failed(told.message)
        raise told from error
    lease.answered()
    return engine


def _asked(request: web.Request, lease: Lease, record: Record) -> tuple[str, dict[str, str]]:
    """Where, and with which headers. A peer has several models, and counts how often a request was passed on."""
    headers = {"X-Request-Id": record.request_id}
    if lease.peer is None:
        return f"http://engine{request.path}", headers
    url = f"{lease.peer.url}{request.path}?{urlencode({'model': record.model})}"
    return url, headers | {HOPS: str(record.hops + 1)}


def _refusal(status: int, lease: Lease) -> EngineFailed:
    kind = EngineUnwilling if lease.peer and is_unwilling(status) else EngineFailed
    return blame(lease, f"took no websocket: it answered {status}", kind)


def _failure(error: aiohttp.ClientError | OSError, lease: Lease, limits: Limits) -> EngineFailed:
    kind = type(error).__name__
    if isinstance(error, aiohttp.ClientConnectionError | ConnectionError):
        return translated(Gone(f"took no websocket ({kind})"), lease)
    if isinstance(error, TimeoutError):
        return blame(lease, f"did not take a websocket within {limits.first:g} s", EngineSilent)
    return translated(Broken(f"took no websocket ({kind})"), lease)


def _cut(request: web.Request, why: LlmdError) -> None:
    request[RECORD].broke_off(why)
    if request.transport is not None:
        request.transport.close()


@contextmanager
def _for_so_long(deadline: float, cut: Callable[[], None]) -> Iterator[None]:
    """`deadline` is monotonic. Who says nothing more would keep its place for ever."""
    timer = asyncio.get_running_loop().call_later(max(0.0, deadline - time.monotonic()), cut)
    try:
        yield
    finally:
        timer.cancel()


def _note_end(record: Record, lease: Lease, client: Side, engine: Side) -> None:
    """A client that said goodbye, or heard it, has not left."""
    record.whole = client.close_code not in (None, _CUT) or engine.close_code is not None
    if engine.close_code == _CUT:
        record.broke_off(blame(lease, "broke off a websocket"))


async def _both_ways(
    client: web.WebSocketResponse,
    engine: aiohttp.ClientWebSocketResponse,
    ended: Callable[[Side, Side], None],
) -> None:
    """Until the first of the two is at its end; the other is told how it ended."""
    ways = {asyncio.create_task(_pass(client, engine)), asyncio.create_task(_pass(engine, client))}
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ended(client, engine)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        await engine.close(code=_told(client))
        await client.close(code=_told(engine))


async def _pass(source: Side, target: Side) -> None:
    async for message in source:
        if message.type is WSMsgType.TEXT:
            await target.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await target.send_bytes(message.data)


def _told(side: Side) -> int:
    """The code that the other side hears. 1005, which is none, and 1006 are not for the wire."""
    code = side.close_code
    return _BROKEN if code == _CUT else 1000 if code in (None, 1005) else code
