"""Clients that ask before they send a body (Expect: 100-continue): invited when it is about to be read, not before.

aiohttp would invite them before anyone has looked at key, route and length, so it is not told what they expect.
"""

from __future__ import annotations

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.http_parser import RawRequestMessage
from multidict import CIMultiDict, CIMultiDictProxy

CONTINUE = "100-continue"

EXPECTED = web.RequestKey("expected", str)
"""What a client waits for; it is forgotten when the client is invited."""

_INVITATION = b"HTTP/1.1 100 Continue\r\n\r\n"


def expectation(message: RawRequestMessage) -> str | None:
    """HTTP/1.0 has none, whatever is sent."""
    return message.headers.get(hdrs.EXPECT) if message.version >= HttpVersion11 else None


def unexpecting(message: RawRequestMessage) -> RawRequestMessage:
    """The same head, as if nothing were expected."""
    headers = CIMultiDict(message.headers)
    headers.popall(hdrs.EXPECT, None)
    return message._replace(headers=CIMultiDictProxy(headers))


def invite(request: web.BaseRequest) -> None:
    """Have a client that waits for it send its body."""
    waits = request.pop(EXPECTED, None) is not None and not request.content.is_eof()
    if waits and request.transport is not None:
        request.transport.write(_INVITATION)


def is_uninvited(request: web.BaseRequest) -> bool:
    """Whether its client still waits for word, or sends its body all the same."""
    return EXPECTED in request and not request.content.is_eof()


async def part(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Answer, and end the connection from here: nobody could tell a late body from another request. It stays open for
    a while to what the client had under way, or a reset might cost it the answer."""
    response.force_close()
    await response.prepare(request)
    await response.write_eof()
    if request.transport is not None:
        request.transport.write_eof()
