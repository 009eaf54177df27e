"""An engine and a client that are both spoken for in bytes, with a real port between them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeDriver

from supervisor.config import Config, EngineDefaults, Profile, Server
from supervisor.web.auth import Keyring
from supervisor.web.server import Server as Port

CLIENT_TIMEOUT = 0.4
BODY = json.dumps({"model": "llama", "messages": []}).encode()
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = EVENTS + b"Transfer-Encoding: chunked\r\n\r\n"
FRAME = b'data: {"x": 1}\n\n'
DONE = b"data: [DONE]\n\n"
JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
ERROR = b'data: {"error"'

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def says(*pieces: bytes) -> Handler:
    """Answers one request, piece by piece, and closes."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)  # so that each piece is read on its own

    return handler


@contextlib.asynccontextmanager
async def closing(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    try:
        yield
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


class World:
    def __init__(self, folder: Path, **server: Any) -> None:
        self.engine: Handler = says(JSON)
        self.asked: list[bytes] = []
        self.left = asyncio.Event()
        self.config = Config(
            path=Path("llmd.toml"),
            server=Server(
                listen=("127.0.0.1:0",),
                drain=0.1,
                body_timeout=0.3,
                client_timeout=CLIENT_TIMEOUT,
                request_timeout=2.0,
                **server,
            ),
            engine=EngineDefaults(first_token_timeout=0.5, token_timeout=1.5, answer_timeout=0.5),
            profiles={"llama_0": Profile(name="llama_0", model="llama", weights="w", gpus=(0,))},
        )
        self.driver = FakeDriver(self.config, engine=folder / "e")
        self.server = Port(self.driver, Keyring({}, open=True))

    @property
    def port(self) -> int:
        return int(self.server.listening[0].rpartition(":")[2])

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.partition(b"Content-Length: ")[2].split(b"\r\n")[0])
                self.asked.append(head + await reader.readexactly(length))
                engine = self.engine
                await engine(reader, writer)
                if engine.__name__ == "handler":
                    break
        self.left.set()
        writer.close()

    async def ask(self, version: bytes = b"1.1", headers: bytes = b"", stream: bool = True) -> bytes:
        """Everything that came back until the connection ended."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        async with asyncio.timeout(10):
            writer.write(request(version, headers + b"Connection: close\r\n", stream))
            got = await reader.read()
        writer.close()
        await writer.wait_closed()
        return got


def request(version: bytes = b"1.1", headers: bytes = b"", stream: bool = True) -> bytes:
    body = BODY.replace(b"}", b', "stream": true}') if stream else BODY
    head = b"POST /v1/chat/completions HTTP/%s\r\nHost: a\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n"
    return head % (version, headers, len(body)) + body


@contextlib.asynccontextmanager
async def opened(**server: Any) -> AsyncIterator[World]:
    folder = Path(tempfile.mkdtemp(prefix="llmd-", dir="/tmp"))
    made = World(folder, **server)
    engine = await asyncio.start_unix_server(made.serve, str(folder / "e"))
    await made.server.open()
    yield made
    await made.server.close()
    for pool in made.driver.pools.values():
        pool.close()
    engine.close()
    await engine.wait_closed()
    shutil.rmtree(folder)


def split(got: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
    head, _, body = got.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    headers = dict(line.lower().split(b": ", 1) for line in lines[1:])
    return int(lines[0].split()[1]), headers, body


def log_lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    return [line for line in lines if line["event"] == "request"]
