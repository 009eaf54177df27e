"""Expect: 100-continue. A client is invited to send its body when that will be read; one that is refused never is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from wires import BODY, JSON, World, closing, opened, split

from supervisor.config.secrets import digest

CHAT = b"POST /v1/chat/completions HTTP/1.1\r\n"
KEY = b"Authorization: Bearer sesame\r\n"
INVITATION = b"HTTP/1.1 100 Continue\r\n\r\n"


async def keeps(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(JSON)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with opened(llama_cpp=True) as made:
        made.server.router._keyring.change({digest("sesame"): "webui"}, open=False)
        made.engine = keeps
        yield made


def head(line: bytes = CHAT, length: int = len(BODY), more: bytes = KEY) -> bytes:
    told = (
        b"Host: a\r\nContent-Type: application/json\r\nExpect: 100-Continue\r\nContent-Length: %d\r\n%s\r\n"
    )
    return line + told % (length, more)


async def said(world: World, *sent: bytes) -> bytes:
    """Everything that comes back until llmd ends the connection, which it does at once."""
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    async with closing(writer), asyncio.timeout(5):
        for piece in sent:
            writer.write(piece)
            await writer.drain()
        return await reader.read()


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (head(more=b""), 401, "invalid_api_key"),
        (head(more=b"x-api-key: tahini\r\n"), 401, "invalid_api_key"),
        (head(b"POST /v1/nothing HTTP/1.1\r\n"), 404, "route_not_found"),
        (head(b"DELETE /v1/models HTTP/1.1\r\n"), 405, "method_not_allowed"),
        (head(length=1 << 40), 413, "body_too_large"),
        (head().replace(b"Host: a", b"Host: a@b"), 400, "invalid_request"),
        (head().replace(b"100-Continue", b"cake"), 400, "invalid_request"),
        (head(b"POST /ui/signin HTTP/1.1\r\n"), 403, "forbidden"),
    ],
)
async def test_who_is_refused_by_the_head_is_told_at_once_and_not_invited(
    world: World, sent: bytes, status: int, code: str
) -> None:
    found, headers, body = split(await said(world, sent))
    assert (found, json.loads(body)["error"]["code"]) == (status, code)
    assert json.loads(body)["error"].keys() == {"message", "type", "param", "code"}
    assert headers[b"connection"] == b"close"
    assert world.asked == []


async def test_anthropics_clients_are_refused_in_their_shape(world: World) -> None:
    _, _, body = split(await said(world, head(b"POST /v1/messages HTTP/1.1\r\n", more=b"")))
    assert json.loads(body)["type"] == "error"


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_good_one_is_invited_answered_and_may_ask_again(world: World, at_once: bool) -> None:
    world.driver.at_once = at_once
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    async with closing(writer), asyncio.timeout(5):
        for number in (1, 2):
            writer.write(head())
            assert await reader.readuntil(b"\r\n\r\n") == INVITATION
            assert len(world.asked) == number - 1
            writer.write(BODY)
            status, headers, _ = split(await reader.readuntil(b"\r\n\r\n"))
            assert (status, await reader.readexactly(int(headers[b"content-length"]))) == (200, b"{}")
            assert world.asked[-1].endswith(BODY)
            assert b"expect" not in world.asked[-1].lower()


@pytest.mark.parametrize("path", [b"/ui/signin", b"/models/load"])
async def test_every_place_that_reads_a_body_invites_to_it(world: World, path: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    async with closing(writer), asyncio.timeout(5):
        writer.write(head(b"POST %s HTTP/1.1\r\n" % path, more=KEY + b"Origin: http://a\r\n"))
        assert await reader.readuntil(b"\r\n\r\n") == INVITATION


async def test_who_sends_its_body_at_once_needs_no_invitation(world: World) -> None:
    got = await said(world, head(more=KEY + b"Connection: close\r\n") + BODY)
    assert (got.count(b"HTTP/1.1"), split(got)[0]) == (1, 200)


async def test_who_sends_its_body_all_the_same_still_reads_why_it_is_refused(world: World) -> None:
    large = 1 << 20
    found, _, body = split(await said(world, head(length=large, more=b""), bytes(large)))
    assert (found, json.loads(body)["error"]["code"]) == (401, "invalid_api_key")


async def test_http_1_0_knows_no_invitation(world: World) -> None:
    old = head(CHAT.replace(b"1.1", b"1.0"))
    got = await said(world, old, BODY)
    assert (got.count(b"HTTP/1."), split(got)[0]) == (1, 200)
