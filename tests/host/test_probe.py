"""Probes against small servers on real sockets, each wrong in its own way."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket as sockets
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from supervisor.host import probe
from supervisor.host.probe import ProbeFailed, health, listener, models, tiny_request, version

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Engine:
    """A server on a socket whose answers a test chooses. `asked`: the paths and bodies it was sent."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.answers: dict[str, Handler | tuple[int, Any]] = {}
        self.asked: list[tuple[str, Any]] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != "Bearer right":
            return web.json_response({"error": "Unauthorized"}, status=401)
        body = await request.json() if request.can_read_body else None
        self.asked.append((request.path, body))
        found = self.answers.get(request.path, (404, {"detail": "Not Found"}))
        if not isinstance(found, tuple):
            return await found(request)
        status, reply = found
        return web.json_response(reply, status=status)


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    place = Path(tempfile.mkdtemp(prefix="llmd-", dir="/tmp"))
    made = Engine(place / "sock")
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", made.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.UnixSite(runner, str(made.socket)).start()
    yield made
    await runner.cleanup()
    shutil.rmtree(place)


async def hang(_: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


def named(answer: object) -> str:
    """Functions by their name: their addresses differ from process to process."""
    return getattr(answer, "__name__", str(answer))


async def flood(request: web.Request) -> web.StreamResponse:
    reply = web.StreamResponse()
    await reply.prepare(request)
    while True:
        await reply.write(b"x" * 65536)


async def test_health(engine: Engine) -> None:
    engine.answers["/health"] = (200, None)
    assert await health(engine.socket, "right")
    engine.answers["/health"] = (503, None)
    assert not await health(engine.socket, "right")
    engine.answers["/health"] = hang
    assert not await health(engine.socket, "right", timeout=0.05)


async def test_health_of_nobody(tmp_path: Path) -> None:
    assert not await health(tmp_path / "sock", "right")
    (tmp_path / "sock").write_text("a file")
    assert not await health(tmp_path / "sock", "right")


@pytest.mark.parametrize(
    ("task", "path"),
    [
        ("generate", "/v1/chat/completions"),
        ("embed", "/v1/embeddings"),
        ("rerank", "/v1/rerank"),
    ],
)
async def test_the_smallest_request_of_each_task(engine: Engine, task: str, path: str) -> None:
    engine.answers[path] = (200, {})
    await tiny_request(engine.socket, "right", task, "tiny")
    ((asked, body),) = engine.asked
    assert asked == path
    assert body["model"] == "tiny"


async def test_a_base_model_is_asked_for_a_completion(engine: Engine) -> None:
    engine.answers["/v1/chat/completions"] = (400, {"error": {"message": "no chat template"}})
    engine.answers["/v1/completions"] = (200, {})
    await tiny_request(engine.socket, "right", "generate", "tiny")
    assert engine.asked[-1] == ("/v1/completions", {"model": "tiny", "prompt": "Hi", "max_tokens": 1})


async def test_an_older_reranker_is_asked_for_a_score(engine: Engine) -> None:
    engine.answers["/score"] = (200, {})
    await tiny_request(engine.socket, "right", "rerank", "tiny")
    assert [path for path, _ in engine.asked] == ["/v1/rerank", "/score"]


async def test_a_refusal_is_quoted(engine: Engine) -> None:
    engine.answers["/v1/embeddings"] = (500, {"error": {"message": "EngineCore died"}})
    with pytest.raises(ProbeFailed, match=r"tiny .*'embed' with 500: .*EngineCore died"):
        await tiny_request(engine.socket, "right", "embed", "tiny")
    with pytest.raises(ProbeFailed, match="401"):
        await tiny_request(engine.socket, "wrong", "embed", "tiny")


async def test_silence_and_absence_are_told_apart(engine: Engine, tmp_path: Path) -> None:
    engine.answers["/v1/embeddings"] = hang
    with pytest.raises(ProbeFailed, match=r"no answer .* within 0.05 s"):
        await tiny_request(engine.socket, "right", "embed", "tiny", timeout=0.05)
    with pytest.raises(ProbeFailed, match="broke off"):
        await tiny_request(tmp_path / "sock", "right", "embed", "tiny")


async def test_models_prove_the_key(engine: Engine) -> None:
    engine.answers["/v1/models"] = (200, {"data": [{"id": "llama"}, {"id": "llama_0"}]})
    assert await models(engine.socket, "right") == ["llama", "llama_0"]
    with pytest.raises(ProbeFailed, match="does not know the engine's key"):
        await models(engine.socket, "wrong")


@pytest.mark.parametrize(
    "answer", [(200, []), (200, {"data": [1]}), (200, {"data": None}), (500, {}), flood], ids=named
)
async def test_what_is_no_engine_is_told_apart(engine: Engine, answer: Handler | tuple[int, Any]) -> None:
    engine.answers["/v1/models"] = answer
    with pytest.raises(ProbeFailed, match="not as an engine does"):
        await models(engine.socket, "right")


async def test_a_long_list_of_models_is_read_to_its_end(engine: Engine) -> None:
    names = [f"model-{number:060}" for number in range(5000)]
    engine.answers["/v1/models"] = (200, {"data": [{"id": name} for name in names]})
    assert await models(engine.socket, "right") == names


async def test_the_listener_is_who_the_kernel_says(engine: Engine) -> None:
    assert listener(engine.socket) == os.getpid()
    child = await asyncio.create_subprocess_exec(
        "python3",
        "-c",
        f"import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind({str(engine.socket) + '2'!r}); "
        "s.listen(); print(flush=True); sys.stdin.read()",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert child.stdout is not None
    await child.stdout.readline()
    assert listener(Path(f"{engine.socket}2")) == child.pid
    await child.communicate(b"")
    assert listener(Path(f"{engine.socket}2")) is None


def test_a_socket_that_does_not_accept(tmp_path: Path) -> None:
    with sockets.socket(sockets.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "s"))
        assert listener(tmp_path / "s") is None


async def test_the_version(engine: Engine) -> None:
    engine.answers["/version"] = (200, {"version": "0.32.0"})
    assert await version(engine.socket, "right") == "0.32.0"


@pytest.mark.parametrize(
    "answer", [(404, {}), (200, []), (200, {"version": 3}), (200, {"version": ""}), hang, flood]
)
async def test_a_version_that_is_not_told(
    engine: Engine, answer: Handler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_MODELS_TIMEOUT", 0.2)
    engine.answers["/version"] = answer
    assert await version(engine.socket, "right") is None


async def test_the_version_of_nobody(tmp_path: Path) -> None:
    assert await version(tmp_path / "sock", "right") is None
