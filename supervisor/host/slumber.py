"""vLLM's sleep mode over an engine's socket: put it to sleep, wake it, ask whether it sleeps.

The routes are there with VLLM_SERVER_DEV_MODE=1. Level 1 moves the weights to host memory, level 2 drops them:
then they are read again between two partial wakes, for an engine woken without that answers in gibberish. Every
step may be repeated: vLLM passes over what is awake already.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp

from supervisor.host import probe
from supervisor.host.probe import ProbeFailed

_WEIGHTS, _KV_CACHE, _ALL = "/wake_up?tags=weights", "/wake_up?tags=kv_cache", "/wake_up"
_RPC = "/collective_rpc"
_RELOAD = {"method": "reload_weights"}


async def fall_asleep(socket: Path, key: str, level: int, timeout: float) -> None:
    """Returns when the engine says that it sleeps, which does not prove that memory came back. Raises ProbeFailed."""
    await _call("POST", socket, key, f"/sleep?level={level}", timeout)


async def wake_up(socket: Path, key: str, level: int, timeout: float) -> None:
    """Returns when all of it is awake, with its weights. Raises ProbeFailed."""
    end = time.monotonic() + timeout
    for path in (_ALL,) if level == 1 else (_WEIGHTS, _RPC, _KV_CACHE):
        body = _RELOAD if path == _RPC else None
        await _call("POST", socket, key, path, end - time.monotonic(), body)
    if await is_sleeping(socket, key, end - time.monotonic()):
        raise ProbeFailed("it was woken and says that it sleeps")


async def is_sleeping(socket: Path, key: str, timeout: float) -> bool:
    """Waits for a sleep or wake that is under way. Raises ProbeFailed."""
    words = await _call("GET", socket, key, "/is_sleeping", timeout)
    try:
        return bool(json.loads(words)["is_sleeping"])
    except (ValueError, KeyError, TypeError) as error:
        raise ProbeFailed(f"/is_sleeping answered {words[:200]!r}") from error


async def _call(
    method: str, socket: Path, key: str, path: str, timeout: float, body: Mapping[str, Any] | None = None
) -> str:
    try:
        async with (
            probe.connected(socket, key, timeout) as engine,
            engine.request(method, path, json=body) as reply,
        ):
            words = (await probe.read(reply)).decode(errors="replace")
    except TimeoutError as error:
        raise ProbeFailed(f"no answer to {path} in time") from error
    except (aiohttp.ClientError, OSError) as error:
        raise ProbeFailed(f"the engine broke off at {path}: {error}") from error
    if reply.status != 200:
        raise ProbeFailed(f"{path} was answered with {reply.status}: {words[:500]}")
    return words
