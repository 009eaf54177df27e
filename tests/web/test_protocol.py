"""HTTP as it comes from a socket: malformed, slow, smuggled; and what llmd says where it is itself at fault."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from fakes import FakeDriver
from wires import closing

from supervisor.config import Config, Profile, Server
from supervisor.web import protocol
from supervisor.web.admin import AdminServer
from supervisor.web.auth import Keyring
from supervisor.web.protocol import Complaints, Runner
from supervisor.web.server import Server as Port
from supervisor.web.traffic import Traffic

HEADER_TIMEOUT = 0.4
PATIENCE = 30
"""Seconds for what must happen, on a host that does much else."""
GOOD = b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n"


class Faulty(FakeDriver):
    def status(self) -> dict[str, Any]:
        raise RuntimeError("no one foresaw this")


@dataclass
class Answer:
    """All that came back until the connection ended; `answers` counts status lines."""

    raw: bytes
    answers: int = field(init=False)

    def __post_init__(self) -> None:
        self.answers = self.raw.count(b"HTTP/1.")

    @property
    def status(self) -> int:
        return int(self.raw.split()[1])

    @property
    def error(self) -> dict[str, Any]:
        head, _, body = self.raw.partition(b"\r\n\r\n")
        assert b"Content-Type: application/json" in head
        error: dict[str, Any] = json.loads(body)["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        return error


@dataclass
class Wire:
    """A public port and an admin socket, spoken to in bytes."""

    port: int
    socket: Path

    async def send(self, raw: bytes) -> Answer:
        return await self._send(raw, *await asyncio.open_connection("127.0.0.1", self.port))

    async def send_admin(self, raw: bytes) -> Answer:
        return await self._send(raw, *await asyncio.open_unix_connection(str(self.socket)))

    async def _send(self, raw: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Answer:
        async with closing(writer), asyncio.timeout(PATIENCE):
            writer.write(raw)
            return Answer(await reader.read())


@pytest.fixture
def driver() -> FakeDriver:
    config = Config(
        path=Path("llmd.toml"),
        server=Server(
            listen=("127.0.0.1:0",),
            admin_socket=Path(tempfile.mkdtemp(prefix="llmd-", dir="/tmp")) / "a",
            header_timeout=HEADER_TIMEOUT,
            drain=0.1,
        ),
        profiles={"llama_0": Profile(name="llama_0", model="llama", weights="w", gpus=(0,))},
    )
    return FakeDriver(config)


@pytest.fixture
async def wire(driver: FakeDriver) -> AsyncIterator[Wire]:
    port, admin = Port(driver, Keyring({}, open=True)), AdminServer(driver, Traffic())
    await port.open()
    await admin.open()
    socket = driver.config.server.admin_socket
    yield Wire(int(port.listening[0].rpartition(":")[2]), socket)
    await port.close()
    await admin.close()
    shutil.rmtree(socket.parent)


@pytest.fixture
def faulty(driver: FakeDriver) -> FakeDriver:
    driver.__class__ = Faulty
    return driver


def lines(capsys: pytest.CaptureFixture[str], event: str) -> list[dict[str, Any]]:
    """The log lines of an event. Every line there is must be JSON: a traceback as text would not be."""
    return [
        line for text in capsys.readouterr().err.splitlines() if (line := json.loads(text))["event"] == event
    ]


async def test_a_good_request_passes(wire: Wire) -> None:
    answer = await wire.send(GOOD)
    assert (answer.status, answer.answers) == (200, 1)


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"NONSENSE\r\n\r\n", "method"),
        (b"GET /health HTTP/9.9\r\nHost: a\r\n\r\n", "status line"),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n", "header"),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n", "header"),
        (b"GET /health HTTP/1.1\r\nHost : a\r\n\r\n", "header"),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n", "header"),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", "8190"),
        (b"GET /health HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 200 + b"\r\n", "headers"),
        (b"\x16\x03\x01\x02\x00", "HTTPS"),
        (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + GOOD, "Content-Length"),
        (POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + GOOD, "Transfer-Encoding"),
        (POST + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcd" + GOOD, "Content-Length"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n" + GOOD, "chunk"),
        (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + GOOD, "Transfer-Encoding"),
        (POST + b"Host: b\r\n\r\n", "Host"),
        (b"GET /health HTTP/1.1\r\n\r\n", "Host"),
    ],
)  # fmt: skip
async def test_malformed_http_is_one_400_in_openais_shape_and_one_line(
    wire: Wire, capsys: pytest.CaptureFixture[str], sent: bytes, said: str
) -> None:
    answer = await wire.send(sent)
    assert (answer.status, answer.answers) == (400, 1)
    assert answer.error["code"] == "invalid_request"
    assert said in answer.error["message"]
    (line,) = lines(capsys, "malformed_request")
    assert line["times"] == 1
    assert "traceback" not in line


@pytest.mark.parametrize(
    "sent",
    [
        *(b"GET /health HTTP/1.1\r\nHost: %s\r\n" % host for host in (b"a@b", b"a b", b"", b"a/b", b"[::1", b"a:b")),
        b"GET http://elsewhere/health HTTP/1.1\r\nHost: a\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nExpect: cake\r\n",
    ],
)  # fmt: skip
async def test_a_head_that_a_proxy_might_read_otherwise_is_refused(wire: Wire, sent: bytes) -> None:
    answer = await wire.send(sent + b"Connection: close\r\n\r\n")
    assert (answer.status, answer.answers) == (400, 1)
    assert answer.error["code"] == "invalid_request"


async def test_http_1_0_has_no_chunks(wire: Wire) -> None:
    sent = b"POST /v1/completions HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    answer = await wire.send(sent)
    assert (answer.status, answer.error["message"]) == (400, "HTTP/1.0 has no Transfer-Encoding")


@pytest.mark.parametrize("host", [b"a", b"a.example:8000", b"10.0.0.7", b"[::1]:8000", b"llm_d"])
async def test_a_host_is_a_name_or_an_address(wire: Wire, host: bytes) -> None:
    answer = await wire.send(b"GET /health HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % host)
    assert answer.status == 200


async def test_what_a_client_sent_is_not_repeated(wire: Wire, capsys: pytest.CaptureFixture[str]) -> None:
    answer = await wire.send(b"GET /health HTTP/1.1\r\nAuthorization: Bearer sesame\x00\r\n\r\n")
    assert answer.status == 400
    told = capsys.readouterr().err
    assert "malformed_request" in told
    assert "sesame" not in told + answer.raw.decode()


def test_a_flood_is_a_line_a_second_of_each_kind(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 0.1, 0.2, 0.9, 1.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    complaints = Complaints()
    for kind in ("Line", "Line", "Host", "Line", "Line"):
        complaints.tell("malformed_request", kind)
    told = [(line["kind"], line["times"]) for line in lines(capsys, "malformed_request")]
    assert told == [("Line", 1), ("Host", 1), ("Line", 3)]


@pytest.mark.parametrize("sent", [b"", b"GET /hea", b"GET /health HTTP/1.1\r\nHost: a\r\n"])
async def test_a_head_that_does_not_end_closes_the_connection(wire: Wire, sent: bytes) -> None:
    began = time.monotonic()
    answer = await wire.send(sent)
    assert answer.raw == b""
    assert time.monotonic() - began > HEADER_TIMEOUT * 0.9


async def test_a_head_that_trickles_is_not_waited_for(wire: Wire) -> None:
    """Bytes now and then do not start the time anew; nor does a good request before them."""
    reader, writer = await asyncio.open_connection("127.0.0.1", wire.port)
    async with closing(writer), asyncio.timeout(PATIENCE):
        await _ask(reader, writer)
        began = time.monotonic()
        writer.write(b"GET /health HTTP/1.1\r\nX: ")
        trickle = asyncio.create_task(_trickle(writer))
        with contextlib.suppress(ConnectionResetError):  # a byte may have been on its way
            assert await reader.read() == b""
        assert time.monotonic() - began >= HEADER_TIMEOUT * 0.9
        trickle.cancel()


async def _trickle(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"y")
        await asyncio.sleep(HEADER_TIMEOUT / 10)


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One request and its answer on a connection that stays."""
    writer.write(GOOD.replace(b"Connection: close\r\n", b""))
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))


async def test_a_connection_between_two_requests_has_more_time(wire: Wire) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", wire.port)
    async with closing(writer):
        await _ask(reader, writer)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(HEADER_TIMEOUT * 2):
                await reader.read(1)
        await _ask(reader, writer)


async def test_a_head_begun_behind_a_request_ends_with_the_silence_after_its_answer(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "_KEEPALIVE", HEADER_TIMEOUT)
    answer = await wire.send(GOOD.replace(b"Connection: close\r\n", b"") + b"GET /hea")
    assert (answer.status, answer.answers) == (200, 1)


async def test_a_bug_is_a_500_in_openais_shape_and_one_traceback(
    faulty: FakeDriver, wire: Wire, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = await wire.send(GOOD.replace(b"Host", b"X-Request-Id: mine\r\nHost"))
    assert answer.status == 500
    assert answer.error["code"] == "internal_error"
    assert answer.error["message"] == "internal error of llmd, request id mine; see its log"
    assert b"x-request-id: mine" in answer.raw
    (line,) = lines(capsys, "internal_error")
    assert (line["level"], line["request_id"]) == ("ERROR", "mine")
    assert line["traceback"].endswith("RuntimeError: no one foresaw this\n")


async def test_a_bug_behind_a_recorded_route_is_counted(
    faulty: FakeDriver, wire: Wire, capsys: pytest.CaptureFixture[str]
) -> None:
    await wire.send(GOOD.replace(b"/health", b"/v1/models"))
    (line,) = lines(capsys, "request")
    assert (line["status"], line["error"]) == (500, "internal_error")


async def test_a_bug_on_the_admin_socket_is_told_the_same_way(
    faulty: FakeDriver, wire: Wire, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = await wire.send_admin(GOOD.replace(b"/health", b"/status"))
    assert answer.status == 500
    assert answer.error["message"].startswith("internal error of llmd, request id ")
    (line,) = lines(capsys, "internal_error")
    assert line["request_id"] in answer.error["message"]


async def test_malformed_http_on_the_admin_socket(wire: Wire) -> None:
    answer = await wire.send_admin(b"NONSENSE\r\n\r\n")
    assert (answer.status, answer.error["code"]) == (400, "invalid_request")


async def _begin_then(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"begun")
    raise RuntimeError("in the middle")


async def _too_late(request: web.Request) -> web.StreamResponse:
    raise TimeoutError("nobody waited for this")


@pytest.fixture
async def bare(tmp_path: Path) -> AsyncIterator[Wire]:
    """The connection alone, without a guard before the handlers."""
    app = web.Application()
    app.router.add_get("/begun", _begin_then)
    app.router.add_get("/late", _too_late)
    runner = Runner(app, header_timeout=5, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield Wire(site.port, tmp_path)
    await runner.cleanup()


async def test_an_answer_that_has_begun_is_cut(bare: Wire, capsys: pytest.CaptureFixture[str]) -> None:
    answer = await bare.send(GOOD.replace(b"/health", b"/begun"))
    assert answer.answers == 1
    assert answer.raw.endswith(b"begun\r\n")  # and no chunk of length 0 after it
    (line,) = lines(capsys, "internal_error")
    assert "in the middle" in line["traceback"]


async def test_a_stray_timeout_is_a_bug_too(bare: Wire, capsys: pytest.CaptureFixture[str]) -> None:
    answer = await bare.send(GOOD.replace(b"/health", b"/late"))
    assert answer.status == 500
    (line,) = lines(capsys, "internal_error")
    assert "nobody waited for this" in line["traceback"]


async def test_the_admin_socket_invites_a_client_that_waits_for_it(wire: Wire) -> None:
    reader, writer = await asyncio.open_unix_connection(str(wire.socket))
    async with closing(writer), asyncio.timeout(PATIENCE):
        writer.write(b"POST /loans HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert await reader.readline() == b"HTTP/1.1 100 Continue\r\n"
        writer.write(b"{}")
        await reader.readline()
        assert (await reader.readline()).startswith(b"HTTP/1.1 400")
