"""Bodies that no client sends by mistake: refused in OpenAI's shape, without a traceback, in little memory."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gzip
import io
import json
import shutil
import tempfile
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from fakes import FakeDriver
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from supervisor.config import Config, Profile, Server
from supervisor.errors import BadRequest
from supervisor.web.auth import Keyring
from supervisor.web.bodies import SMALL
from supervisor.web.contents import read
from supervisor.web.forms import field
from supervisor.web.routes import GENERATE, ROUTES
from supervisor.web.server import Server as Port

MIB = 1 << 20
LIMIT = 8 * MIB
PATHS = [route.path for route in ROUTES if route.body == "json"]
JSON_TYPE = {"Content-Type": "application/json"}
NAMES = ["model", "messages", "input", "prompt", "query", "documents", "tools", "stream", "max_tokens"]
NAMES += ["previous_response_id", "system", "encoding_format", "content", "text", "\ud800", "é"]
ODD = st.sampled_from(
    [b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b'"\\ud800"', b'"\xff"', b'"\\x"', b"[" * 3000]
)
PLAIN = (st.text() | st.integers() | st.none() | st.booleans()).map(lambda value: json.dumps(value).encode())


def listed(inner: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.lists(inner, max_size=3).map(lambda items: b"[" + b",".join(items) + b"]")


def held(inner: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    pairs = st.lists(
        st.tuples(st.sampled_from(NAMES).map(lambda n: json.dumps(n).encode()), inner), max_size=4
    )
    return pairs.map(lambda items: b"{" + b",".join(key + b":" + value for key, value in items) + b"}")


VALUES = st.recursive(PLAIN | ODD, lambda inner: listed(inner) | held(inner), max_leaves=8)
MODEL = st.sampled_from([b'"model":"llama",', b'"model":"bge",', b'"model":3,', b'"model":"\\ud800",', b""])
BODIES = st.builds(lambda model, rest: b"{" + model + rest[1:], MODEL, held(VALUES)) | VALUES | st.binary()


@given(BODIES)
@example(b'{"model":"llama","input":' + b"[" * 100_000)
@example(b'{"model":"llama","x":' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}")
def test_a_body_is_an_ask_or_a_bad_request(body: bytes) -> None:
    with contextlib.suppress(BadRequest):
        assert isinstance(read(body, "webui", GENERATE)[0].model, str)


@given(
    st.binary()
    | st.lists(st.sampled_from([b"--x", b"\r\n", b"--", b'name="model"', b"\r\n\r\n"])).map(b"".join)
)
def test_a_form_is_read_or_a_bad_request(data: bytes) -> None:
    with contextlib.suppress(BadRequest):
        found = field(b"--x" + data, b"--x", "model")
        assert found is None or isinstance(found, str)


class World:
    """A port and a client on one loop, which runs while something is asked."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp(prefix="llmd-", dir="/tmp"))
        self.runner.run(self.open())

    async def open(self) -> None:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{any:.*}", self.engine)
        self.engines = web.AppRunner(app, access_log=None)
        await self.engines.setup()
        await web.UnixSite(self.engines, str(self.folder / "e")).start()
        profiles = {
            f"{name}_0": Profile(name=f"{name}_0", model=name, weights="w", gpus=(0,), task=task)  # type: ignore[arg-type]
            for name, task in (("llama", "generate"), ("bge", "embed"))
        }
        server = Server(listen=("127.0.0.1:0",), max_body=LIMIT, drain=0.1)
        config = Config(path=Path("llmd.toml"), server=server, profiles=profiles)
        self.driver = FakeDriver(config, engine=self.folder / "e")
        self.port = Port(self.driver, Keyring({}, open=True))
        await self.port.open()
        self.client = aiohttp.ClientSession(self.port.listening[0])

    async def engine(self, request: web.Request) -> web.Response:
        """Takes whatever comes."""
        size = 0
        async for chunk in request.content.iter_any():
            size += len(chunk)
        return web.json_response({"size": size})

    def post(self, path: str, body: bytes, **headers: str) -> tuple[int, Any]:
        return self.runner.run(self._post(path, body, JSON_TYPE | headers))

    async def _post(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, Any]:
        async with self.client.post(path, data=io.BytesIO(body), headers=headers) as answer:
            return answer.status, await answer.json()

    def close(self) -> None:
        self.runner.run(self._close())
        self.runner.close()
        shutil.rmtree(self.folder)

    async def _close(self) -> None:
        await self.client.close()
        await self.port.close()
        await self.engines.cleanup()


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


def refused(found: tuple[int, Any], *statuses: int) -> None:
    status, said = found
    assert status in (statuses or range(400, 500)), said
    assert isinstance(said["error"]["message"], str)
    assert {"type", "message"} <= set(said["error"])


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(path=st.sampled_from(PATHS), body=BODIES)
def test_whatever_comes_is_answered_or_refused(
    world: World, path: str, body: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = world.post(path, body)
    if status != 200:
        refused((status, said))
    assert "Traceback" not in capsys.readouterr().err


BAD = {
    "deep": b'{"model":"llama","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "NaN": b'{"model":"llama","temperature":NaN}',
    "surrogate": b'{"model":"llama","prompt":"\\ud800"}',
    "latin-1": b'{"model":"llama","prompt":"\xe9"}',
    "nothing": b"",
    "list": b"[]",
    "no model": b'{"messages":[]}',
    "null": b'{"model":null}',
    "object": b'{"model":{"a":1}}',
    "cut": b'{"model":"llama","messages":[',
}


@pytest.mark.parametrize("kind", BAD)
def test_known_abuse_is_refused_and_leaves_no_traceback(
    world: World, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    leases = len(world.driver.asks)
    refused(world.post("/v1/chat/completions", BAD[kind]), 400)
    told = world.post("/v1/messages", BAD[kind])
    assert (told[0], told[1]["type"]) == (400, "error")
    assert len(world.driver.asks) == leases
    assert "Traceback" not in capsys.readouterr().err


def bomb(size: int) -> bytes:
    squeezed = zlib.compressobj(wbits=31)
    return b"".join([squeezed.compress(bytes(MIB)) for _ in range(size // MIB)] + [squeezed.flush()])


def test_a_gzip_bomb_bursts_at_the_limit(world: World) -> None:
    body = bomb(512 * MIB)
    assert len(body) < MIB
    tracemalloc.start()
    try:
        refused(world.post("/v1/chat/completions", body, **{"Content-Encoding": "gzip"}), 400, 413)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * LIMIT


def test_a_body_that_was_compressed_comes_to_the_engine_as_it_is(world: World) -> None:
    body = json.dumps({"model": "llama", "prompt": "a " * 1000}).encode()
    found = world.post("/v1/completions", gzip.compress(body), **{"Content-Encoding": "gzip"})
    assert found == (200, {"size": len(body)})


@pytest.mark.parametrize("size", [SMALL - 1, SMALL, SMALL + 1, 3 * SMALL, LIMIT])
def test_a_body_up_to_the_limit_is_passed_on_whole(world: World, size: int) -> None:
    head, end = b'{"model":"llama","prompt":"', b'"}'
    body = head + b"x" * (size - len(head) - len(end)) + end
    assert world.post("/v1/completions", body) == (200, {"size": size})


def test_a_body_over_the_limit_is_refused_however_it_is_sent(world: World) -> None:
    refused(world.post("/v1/completions", b"x" * (LIMIT + 1)), 413)

    async def chunked() -> tuple[int, Any]:
        async def pieces() -> Any:
            for _ in range(LIMIT // MIB + 1):
                yield bytes(MIB)

        async with world.client.post("/v1/completions", data=pieces(), headers=JSON_TYPE) as answer:
            return answer.status, await answer.json()

    refused(world.runner.run(chunked()), 413)


def test_a_full_disk_is_told_and_small_bodies_go_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    body = b'{"model":"llama","prompt":"%s"}'
    status, said = world.post("/v1/completions", body % (b"x" * SMALL))
    assert (status, said["error"]["code"]) == (503, "model_not_available")
    assert "No space left" in said["error"]["message"]
    assert world.post("/v1/completions", body % b"x")[0] == 200
