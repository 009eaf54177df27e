"""Clients that leave at any moment, hundreds of them, at a whole daemon: everything that they had comes back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import struct
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.daemon import KEY, QUICK, Llmd, profile, told, until

CLIENTS, EACH = 20, 20
AT_ONCE = struct.pack("ii", 1, 0)
"""SO_LINGER: a close is a reset."""


@pytest.fixture
def llmd() -> Iterator[Llmd]:
    paced = profile("tiny", max_concurrent=8, env={"STANDIN_TOKENS_PER_SECOND": "400"})
    made = Llmd({"tiny_0": paced}, **QUICK)
    try:
        made.start()
        assert made.run("start", "tiny_0").returncode == 0
        yield made
    finally:
        made.close()


def request(dice: random.Random) -> bytes:
    """A short one or a long one, streamed or whole; now and then one that only the ordinary way takes."""
    ask = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": dice.choice((1, 5, 100)),
        "stream": dice.random() < 0.6,
    }
    odd = "X-Llmd-Hops: 0\r\n" if dice.random() < 0.2 else ""
    body = json.dumps(ask)
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/json\r\n{odd}Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


async def visit(port: int, dice: random.Random) -> None:
    """Ask once or twice, part of a request perhaps, read a little, and leave politely or not."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(dice.randint(1, 2)):
        asked = request(dice)
        writer.write(asked[: dice.randint(1, len(asked))] if dice.random() < 0.2 else asked)
        with contextlib.suppress(TimeoutError, ConnectionError):
            await asyncio.wait_for(reader.read(dice.choice((1, 1000, 100_000))), dice.choice((0, 0.005, 0.1)))
    way = dice.random()
    if way < 0.2:  # to the daemon that looks like a close, so it ends the connection
        writer.write_eof()
        async with asyncio.timeout(20):
            await reader.read()
    elif way < 0.7:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
        writer.transport.abort()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def visits(port: int) -> None:
    async def client(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(EACH):
            await visit(port, dice)

    await asyncio.gather(*map(client, range(CLIENTS)))


def held(llmd: Llmd) -> dict[str, Any]:
    """What requests hold of the daemon and of its engine."""
    door, engine = llmd.door("tiny_0"), llmd.engine("tiny_0")
    counters = json.loads(told(door.socket, "/standin", Authorization=f"Bearer {door.key}"))
    return {
        "in flight": engine["in_flight"],
        "queued": engine["queued"],
        "at the engine": counters["in_flight"],
        "clients": clients(llmd),
    }


def clients(llmd: Llmd) -> int:
    """Connections that the daemon has to its clients."""
    assert llmd.process
    port = int(llmd.url.rpartition(":")[2])
    return sum(
        connection.laddr.port == port and connection.status != "LISTEN"
        for connection in psutil.Process(llmd.process.pid).net_connections("tcp")
    )


def test_whatever_clients_leave_behind_comes_back(llmd: Llmd) -> None:
    port = int(llmd.url.rpartition(":")[2])
    before = held(llmd)
    assert set(before.values()) == {0}
    asyncio.run(visits(port))
    until(lambda: held(llmd) == before, 20, lambda: f"{held(llmd)}\n{llmd.text()}")

    def left() -> list[dict[str, Any]]:
        return [line for line in llmd.logged() if line["event"] == "request" and line["status"] == 499]

    until(lambda: len(left()) > 20, 5, llmd.text)
    assert all(line.startswith("{") for line in llmd.log.read_text().splitlines()), "no traceback"
    assert not [line for line in llmd.logged() if line["event"] in ("internal_error", "http")]
