"""Questions to an engine over its socket: is it well, does it serve, is it the one it should be."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket as sockets
import struct
import wave
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from supervisor.errors import EngineFailed

_REPLY_LIMIT = 1 << 20
"""Bytes of a reply that are read: a thing on the socket that is no engine may send without end."""

_MODELS_TIMEOUT = 5.0
_METRICS_TIMEOUT = 2.0
_LONGEST_VERSION = 100

_FIRST: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "generate": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1},
    ),
    "embed": ("/v1/embeddings", {"input": "Hi"}),
    "rerank": ("/v1/rerank", {"query": "Hi", "documents": ["Hi"]}),
    "classify": ("/classify", {"input": "Hi"}),
    "pool": ("/pooling", {"input": "Hi"}),
    "transcribe": ("/v1/audio/transcriptions", {}),
}
"""Task -> the route of its first request, and its body but for the model."""

_INSTEAD: Mapping[str, tuple[int, str, Mapping[str, Any]]] = {
    "generate": (400, "/v1/completions", {"prompt": "Hi", "max_tokens": 1}),
    "rerank": (404, "/score", {"text_1": "Hi", "text_2": "Hi"}),
}
"""Where that is answered with this status, another: a base model has no chat template, an older reranker a score."""


class ProbeFailed(EngineFailed):
    """The engine did not answer as one that serves would; the message has its status and words."""


async def health(socket: Path, key: str, timeout: float = 2.0) -> bool:
    """True on 200. vLLM refuses the connection while loading and answers 503 when its core is dead."""
    try:
        async with connected(socket, key, timeout) as session, session.get("/health") as reply:
            return reply.status == 200
    except (aiohttp.ClientError, OSError, TimeoutError):
        return False


async def tiny_request(socket: Path, key: str, task: str, model: str, timeout: float = 60.0) -> None:
    """The smallest real request of a task.

    Returns when it was served, raises ProbeFailed otherwise. Health says that an engine listens, only this
    that it computes.
    """
    path, fields = _FIRST[task]
    body = _speech(model) if task == "transcribe" else {"model": model, **fields}
    status, words = await _post(socket, key, path, body, timeout)
    if task in _INSTEAD and status == _INSTEAD[task][0]:
        _, path, fields = _INSTEAD[task]
        status, words = await _post(socket, key, path, {"model": model, **fields}, timeout)
    if status != 200:
        raise ProbeFailed(f"{model} answered a first request of task {task!r} with {status}: {words[:500]}")


async def models(socket: Path, key: str) -> list[str]:
    """The names served to this key. Raises ProbeFailed where the key is not the engine's, or it is no engine."""
    try:
        async with connected(socket, key, _MODELS_TIMEOUT) as session, session.get("/v1/models") as reply:
            body = await read(reply)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise ProbeFailed(f"{socket} does not answer: {error or type(error).__name__}") from error
    if reply.status == 401:
        raise ProbeFailed(f"{socket} does not know the engine's key")
    try:
        return [str(entry["id"]) for entry in json.loads(body)["data"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ProbeFailed(f"{socket} answered {reply.status}, but not as an engine does") from error


async def version(socket: Path, key: str) -> str | None:
    """vLLM's own, such as "0.32.0"; None where it is not told."""
    try:
        async with connected(socket, key, _MODELS_TIMEOUT) as session, session.get("/version") as reply:
            told = json.loads(await read(reply))["version"]
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError, KeyError, TypeError):
        return None
    return told[:_LONGEST_VERSION] if isinstance(told, str) and told else None


async def metrics(socket: Path, key: str) -> bytes | None:
    """What Prometheus would read of the engine, cut at a whole line; None where it does not answer."""
    try:
        async with connected(socket, key, _METRICS_TIMEOUT) as session, session.get("/metrics") as reply:
            return (await read(reply)).rpartition(b"\n")[0] if reply.status == 200 else None
    except (aiohttp.ClientError, OSError, TimeoutError):
        return None


def listener(socket: Path) -> int | None:
    """The pid of the process that listens on a socket, as the kernel has it; None where nobody does.

    Proof against a foreign server that was put on the socket and answers to any key.
    """
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as client:
        client.settimeout(1.0)
        try:
            client.connect(os.fspath(socket))
        except OSError:
            return None
        credentials = client.getsockopt(sockets.SOL_SOCKET, sockets.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", credentials)[0]
    return pid


def _speech(model: str) -> aiohttp.FormData:
    """A quarter of a second of silence, as 16 kHz are heard."""
    sound = io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(bytes(8000))
    form = aiohttp.FormData({"model": model})
    form.add_field("file", sound.getvalue(), filename="silence.wav", content_type="audio/wav")
    return form


async def _post(
    socket: Path, key: str, path: str, body: Mapping[str, Any] | aiohttp.FormData, timeout: float
) -> tuple[int, str]:
    sent: dict[str, Any] = {"data": body} if isinstance(body, aiohttp.FormData) else {"json": body}
    try:
        async with connected(socket, key, timeout) as session, session.post(path, **sent) as reply:
            words = await read(reply)
            return reply.status, words.decode(errors="replace")
    except TimeoutError as error:
        raise ProbeFailed(f"no answer to a first request on {path} within {timeout:g} s") from error
    except (aiohttp.ClientError, OSError) as error:
        raise ProbeFailed(f"the engine broke off a first request on {path}: {error}") from error


async def read(reply: aiohttp.ClientResponse) -> bytes:
    """A reply's body, no more than a sane one has."""
    body = bytearray()
    async for chunk in reply.content.iter_any():
        body += chunk
        if len(body) > _REPLY_LIMIT:
            break
    return bytes(body[:_REPLY_LIMIT])


@asynccontextmanager
async def connected(socket: Path, key: str, timeout: float) -> AsyncIterator[aiohttp.ClientSession]:
    """A session of `timeout` seconds, presenting the key. Raises TimeoutError."""
    async with (
        asyncio.timeout(timeout),
        aiohttp.ClientSession(
            "http://engine",
            connector=aiohttp.UnixConnector(os.fspath(socket)),
            headers={"Authorization": f"Bearer {key}"},
            timeout=aiohttp.ClientTimeout(total=None),
        ) as session,
    ):
        yield session
