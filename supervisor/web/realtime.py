"""A websocket to an engine: what either side says is passed to the other, until one of them ends it."""

from __future__ import annotations

import asyncio
from urllib.parse import urlencode

import aiohttp
from aiohttp import WSMsgType, web

from supervisor.errors import EngineFailed
from supervisor.host.peers import HOPS
from supervisor.web.answer import who
from supervisor.web.driving import Lease
from supervisor.web.record import Record

_HEARTBEAT = 30.0
"""Seconds between pings; a side that does not answer them is gone."""
_LARGEST = 16 << 20
"""Bytes of a message: three minutes of speech at once."""
_BROKEN = 1011
"""An end that neither side wanted; RFC 6455, 7.4.1."""

Side = web.WebSocketResponse | aiohttp.ClientWebSocketResponse


async def relay_socket(request: web.Request, lease: Lease, record: Record) -> web.StreamResponse:
    """Raises EngineFailed as long as the client's handshake was not answered."""
    url, headers = _asked(request, lease, record)
    try:
        engine = await lease.session.ws_connect(
            url, heartbeat=_HEARTBEAT, max_msg_size=_LARGEST, headers=headers
        )
    except (aiohttp.ClientError, OSError) as error:
        what = f"{who(lease)} took no websocket ({type(error).__name__})"
        raise EngineFailed(what, log=lease.log_tail(), retry_after=5) from error
    async with engine:
        client = web.WebSocketResponse(heartbeat=_HEARTBEAT, max_msg_size=_LARGEST)
        client.headers.update(record.headers())
        await client.prepare(request)
        record.status = 101
        await _both_ways(client, engine)
    return client


def _asked(request: web.Request, lease: Lease, record: Record) -> tuple[str, dict[str, str]]:
    """Where, and with which headers. A peer has several models, and counts how often a request was passed on."""
    headers = {"X-Request-Id": record.request_id}
    if lease.peer is None:
        return f"http://engine{request.path}", headers
    url = f"{lease.peer.url}{request.path}?{urlencode({'model': record.model})}"
    return url, headers | {HOPS: str(record.hops + 1)}


async def _both_ways(client: web.WebSocketResponse, engine: aiohttp.ClientWebSocketResponse) -> None:
    """Until the first of the two is at its end; the other is told how it ended."""
    ways = {asyncio.create_task(_pass(client, engine)), asyncio.create_task(_pass(engine, client))}
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
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
    """The code that the other side hears. 1005 and 1006 are not for the wire."""
    code = side.close_code
    return code if code is not None and code not in (1005, 1006) else _BROKEN if code == 1006 else 1000
