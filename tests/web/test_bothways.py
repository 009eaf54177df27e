"""A plain request goes the short way where an engine is free, the ordinary way where none is: nobody can tell which.

Each request is sent both ways, to the same engine, and everything that is left of it is compared: what the client
got, what the engine got, the line in the log, what is kept of it, what people see of it, what was counted.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from wires import BODY, CHUNKED, DONE, FRAME, JSON, Handler, World, chunk, log_lines, opened, says, split

from supervisor.errors import EngineFailed, NotAvailable, Overloaded
from supervisor.host.activity import Request

CHAT = "/v1/chat/completions"
USED = b'{"usage": {"prompt_tokens": 3, "completion_tokens": 2}}'
MEASURED = ("timestamp", "latency_ms", "ttft_ms", "time", "at", "ttft_s", "latency_s", "latency", "ttft")
"""What no two requests have alike."""

LAST = b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
HEALTHY = b"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\nx-request-id"
"""What it is answered with."""

COUNT = re.compile(r"_(count|total)[{ ]")


def of_json(status: int, body: bytes, headers: bytes = b"") -> bytes:
    head = b"HTTP/1.1 %d Whatever\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n"
    return head % (status, headers, len(body)) + body


def asked(body: bytes = BODY, path: str = CHAT, headers: bytes = b"") -> bytes:
    head = b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nX-Request-Id: same\r\n%sContent-Length: %d\r\n\r\n"
    return head % (path.encode(), headers, len(body)) + body


def streamed(*extra: tuple[str, Any]) -> bytes:
    whole = {"model": "llama", "messages": [{"role": "user", "content": "tell me"}], "stream": True}
    return json.dumps(whole | dict(extra)).encode()


async def says_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def falls_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(CHUNKED + chunk(FRAME))
    await reader.read()


async def never_ends(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A refusal without an end."""
    writer.write(b"HTTP/1.1 500 Oh\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(1000):
        writer.write(chunk(b"x" * (1 << 16)))
        await writer.drain()


async def ends_late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Its last event is out, its last chunk is not yet."""
    writer.write(CHUNKED + chunk(FRAME) + chunk(DONE))
    await reader.read()


ANSWERS = {
    "json": (asked(), says(JSON)),
    "used": (asked(), says(of_json(200, USED))),
    "stream": (asked(streamed()), says(CHUNKED, chunk(FRAME), chunk(FRAME), chunk(DONE), b"0\r\n\r\n")),
    "cut stream": (asked(streamed()), says(CHUNKED, chunk(FRAME))),
    "no end": (asked(streamed()), says(CHUNKED, chunk(FRAME) + b"0\r\n\r\n")),
    "error inside": (asked(streamed()), says(CHUNKED, chunk(b'data: {"error": {"message": "x"}}\n\n'))),
    "people": (
        asked(headers=b"X-OpenWebUI-User-Id: u1\r\nX-OpenWebUI-Chat-Id: c1\r\nX-Session-ID: s\r\n"),
        says(JSON),
    ),
    "headers": (asked(), says(of_json(200, b"{}", b"X-Model: 7\r\nX-Request-Id: theirs\r\nSet-Cookie: a=b\r\n"))),
    "by its profile": (asked(BODY.replace(b'"llama"', b'"llama_0"')), says(JSON)),
    "empty": (asked(), says(of_json(200, b""))),
    "204": (asked(), says(b"HTTP/1.1 204 No Content\r\n\r\n")),
    "307": (asked(), says(of_json(307, b"", b"Location: /elsewhere\r\n"))),
    "400": (asked(), says(of_json(400, b'{"error": {"message": "no", "type": "t", "param": null, "code": 400}}'))),
    "detail": (asked(), says(of_json(404, b'{"detail": "Not Found"}'))),
    "401": (asked(), says(of_json(401, b'{"error": "Unauthorized"}'))),
    "429": (asked(), says(of_json(429, b"{}", b"Retry-After: 3\r\n"))),
    "500": (asked(), says(of_json(500, b"Internal Server Error"))),
    "500 in pieces": (asked(), says(of_json(500, b"")[:-2], b"\r\n")),
    "500 cut": (asked(), says(of_json(500, b"Internal Server Error")[:-5])),
    "500 chunked": (
        asked(),
        says(b"HTTP/1.1 500 Oh\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n", chunk(b"{") + chunk(b"}"), b"0\r\n\r\n"),
    ),
    "500 until close": (asked(), says(b"HTTP/1.1 500 No\r\nContent-Type: text/plain\r\n\r\n", b"oh")),
    "500 without end": (asked(), never_ends),
    "silent": (asked(), says_nothing),
    "silent stream": (asked(streamed()), says_nothing),
    "falls silent": (asked(streamed()), falls_silent),
    "own reason": (asked(), says(JSON.replace(b"200 OK", b"299 Odd"))),
    "folded": (asked(), says(of_json(200, b"{}", b"X-Folded: a\r\n b\r\n"))),
    "two lengths": (asked(), says(of_json(200, b"{}", b"Content-Length: 3\r\n"))),
    "both": (asked(), says(of_json(200, b"{}", b"Transfer-Encoding: chunked\r\n"))),
    "gzip": (asked(), says(of_json(200, b"{}", b"Transfer-Encoding: gzip, chunked\r\n"))),
    "chunk extension": (
        asked(),
        says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;a=b\r\n{}\r\n0\r\n\r\n"),
    ),
    "204 with a length": (asked(), says(b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n{}")),
    "204 chunked": (asked(), says(b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n")),
    "blank line behind": (asked(), says(JSON + b"\r\n")),
    "blank line behind chunks": (
        asked(),
        says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n\r\n"),
    ),
    "anthropic stream": (
        asked(streamed(), path="/v1/messages"),
        says(CHUNKED, chunk(b'event: message_stop\ndata: {"type": "message_stop"}\n\n') + b"0\r\n\r\n"),
    ),
    "completions": (asked(json.dumps({"model": "llama", "prompt": "a"}).encode(), "/v1/completions"), says(JSON)),
    "anthropic": (asked(path="/v1/messages"), says(of_json(400, b'{"error": {"message": "no"}}'))),
    "anthropic 401": (asked(path="/v1/messages"), says(of_json(401, b"{}"))),
    "anthropic cut": (asked(streamed(), path="/v1/messages"), says(CHUNKED, chunk(FRAME))),
    "anthropic junk": (asked(path="/v1/messages"), says(b"NOT HTTP\r\n\r\n")),
    "until close": (asked(), says(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n", b"{}")),
    "junk": (asked(), says(b"NOT HTTP AT ALL\r\n\r\n\x00\xff")),
    "interim": (asked(), says(b"HTTP/1.1 103 Early Hints\r\n\r\n", JSON)),
    "nothing": (asked(), says()),
    "head alone": (asked(), says(CHUNKED)),
    "half a head": (asked(), says(b"HTTP/1.1 200 OK\r\nContent-")),
    "trailers": (asked(streamed()), says(CHUNKED, chunk(FRAME) + chunk(DONE) + b"0\r\nX-Late: 1\r\n\r\n")),
    "chunk of junk": (asked(), says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\ndata")),
    "too long": (asked(), says(JSON + b"HTTP/1.1 200 OK\r\n\r\n")),
    "close": (asked(headers=b"Connection: close\r\n"), says(JSON)),
}  # fmt: skip


async def answer(world: World, sent: bytes) -> bytes:
    """All that comes before the answer to `LAST`, or the connection's end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    got = b""
    async with asyncio.timeout(10):
        writer.write(sent if b"Connection: close" in sent else sent + LAST)
        got = await reader.read()
    writer.close()
    return got.partition(HEALTHY)[0]


def without(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in MEASURED}


async def remains(world: World, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What llmd knows of the one request, and what its engine was sent."""
    (line,) = [line for line in log_lines(capsys) if line["request_id"] == "same"]
    router = world.server.router
    await asyncio.sleep(0)
    assert world.driver.held == 0
    assert not router._traffic.in_flight()
    (lease,) = world.driver.leases
    lines = (await router._metrics.text()).decode().splitlines()
    counted = [line for line in lines if line.startswith("llmd_") and COUNT.search(line)]
    return {
        "asked": world.asked,
        "ask": world.driver.asks,
        "line": without(line),
        "kept": [
            without({name: getattr(kept, name) for name in Request.__annotations__})
            for kept in world.driver.register.noted
        ],
        "seen": [without(one) for one in router._traffic.recent().values()],
        "outcome": {name: without(dict(one)) for name, one in world.driver.outcomes.items()},
        "lease": (lease.prompt, lease.output, lease.failures, lease.answers),
        "counted": counted,
    }


async def left_of(
    world: World, sent: bytes, engine: Handler, capsys: pytest.CaptureFixture[str]
) -> dict[str, Any]:
    world.engine = engine
    got = await answer(world, sent)
    status, headers, body = split(got)
    for name in (b"date", b"server"):  # aiohttp's own
        headers.pop(name, None)
    return {
        "status": status,
        "headers": headers,
        "body": body,
        **await remains(world, capsys),
    }


@pytest.mark.parametrize("case", ANSWERS)
async def test_nobody_can_tell_which_way_a_request_went(
    case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sent, engine = ANSWERS[case]
    found = []
    for at_once in (True, False):
        async with opened() as world:
            world.driver.at_once = at_once
            found.append(await left_of(world, sent, engine, capsys))
            assert [lease.session is None for lease in world.driver.leases] == [at_once]
    short, ordinary = found
    for name, value in short.items():
        assert value == ordinary[name], name


def cuts(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


def closes_its_side(writer: asyncio.StreamWriter) -> None:
    """As a close looks from afar; but the connection is still read here."""
    writer.write_eof()


@pytest.mark.parametrize("leaves", [cuts, closes_its_side])
@pytest.mark.parametrize(
    ("engine", "stream", "seen", "status"),
    [
        (says_nothing, True, b"", 499),
        (says_nothing, False, b"", 499),
        (falls_silent, True, FRAME, 499),
        (ends_late, True, DONE, 200),
    ],
)
async def test_nobody_can_tell_which_way_a_request_went_whose_client_left(
    engine: Handler,
    stream: bool,
    seen: bytes,
    status: int,
    leaves: Callable[[asyncio.StreamWriter], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Who leaves on the last event has all of the answer."""
    found = []
    for at_once in (True, False):
        async with opened() as world:
            world.engine, world.driver.at_once = engine, at_once
            reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
            writer.write(asked(streamed()) if stream else asked())
            async with asyncio.timeout(5):
                while not world.asked:  # noqa: ASYNC110 - nothing announces it
                    await asyncio.sleep(0)
                if seen:
                    await reader.readuntil(seen)
                leaves(writer)
                await world.left.wait()
                await reader.read()  # to its end
                writer.close()
                while not world.driver.register.noted:  # noqa: ASYNC110
                    await asyncio.sleep(0)
            found.append(await remains(world, capsys))
    assert found[0] == found[1]
    assert found[0]["line"]["status"] == status


REFUSALS = {
    "another mode": NotAvailable("llama is not served in mode night", retry_after=3600),
    "the breaker is open": NotAvailable("llama_0 restarts", retry_after=10),
    "squeezed": NotAvailable("GPU 0 has 0.10 GiB free", retry_after=30),
    "quarantined": NotAvailable("GPU 0 is quarantined"),
    "a full queue": Overloaded("every place is taken", retry_after=0.25),
    "a failed start": EngineFailed("llama_0 failed to start", log=("CUDA out of memory",)),
}


@pytest.mark.parametrize("why", REFUSALS)
async def test_a_kept_connection_hears_what_has_changed_as_any_other(
    why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three requests on one connection, the second of them refused: by the core, whichever way the others go."""
    found = []
    for at_once in (True, False):
        async with opened() as world:
            world.driver.at_once, world.engine = at_once, keeps
            reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
            answers = []
            async with asyncio.timeout(5):
                for refusal in (None, REFUSALS[why], None):
                    world.driver.refusal = refusal
                    writer.write(asked())
                    answers.append(await one_answer(reader))
            writer.close()
            assert world.driver.held == 0
            found.append((answers, [without(line) for line in log_lines(capsys)]))
            assert [status for status, _, _ in answers] == [200, REFUSALS[why].status, 200]
    assert found[0] == found[1]


async def keeps(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(JSON)


async def one_answer(reader: asyncio.StreamReader) -> tuple[int, dict[bytes, bytes], bytes]:
    status, headers, _ = split(await reader.readuntil(b"\r\n\r\n"))
    for name in (b"date", b"server", b"content-type"):  # aiohttp's own
        headers.pop(name, None)
    return status, headers, await reader.readexactly(int(headers[b"content-length"]))
