"""The main job for real: a daemon, three real vLLM engines started on demand, a chat, an embedding, a rerank.

The engines run on GPU 0 where there is one, else on the CPU. On a terminal the daemon stays until Ctrl-C.

usage: demo.py VLLM MODELS      (make demo calls it with the environments that it has built)
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import aiohttp
import tomli_w

LLMD = Path(sys.executable).with_name("llmd")
KEY = "sk-demo-" + secrets.token_hex(8)
COMMON = ["--enforce-eager", "--kv-cache-memory-bytes", "33554432"]
PROFILES: dict[str, dict[str, Any]] = {
    "chat": {"model": "tiny-chat", "weights": "tiny-llama", "max_model_len": 32768},
    "embed": {"model": "tiny-embed", "weights": "tiny-embed", "task": "embed"},
    "rerank": {"model": "tiny-rerank", "weights": "tiny-rerank", "task": "rerank"},
}
ON_CPU: dict[str, Any] = {"device": "cpu", "memory": "1900 MiB"}
ON_GPU: dict[str, Any] = {"gpus": [0], "vram": "2 GiB"}
"""CUDA itself and the libraries' workspaces; the weights are a megabyte."""


def install(home: Path, vllm: str, models: Path, *, gpu: bool) -> Path:
    """Write llmd.toml and its profiles into `home`."""
    (home / "profiles").mkdir()
    for name, fields in profiles(models, gpu=gpu).items():
        (home / "profiles" / f"{name}.toml").write_text(tomli_w.dumps(fields))
    server = {"listen": [f"127.0.0.1:{port()}"], "state_dir": str(home / "state")}
    document = {
        "server": server | {"admin_socket": str(home / "llmd.sock")},
        "engine": {"command": [vllm, "serve"], "env": {"HF_HUB_OFFLINE": "1"}},
        "keys": {"demo": {"env": "LLMD_DEMO_KEY"}},
    }
    config = home / "llmd.toml"
    config.write_text(tomli_w.dumps(document))
    return config


def profiles(models: Path, *, gpu: bool) -> dict[str, dict[str, Any]]:
    place, suffix = (ON_GPU, "0") if gpu else (ON_CPU, "cpu")
    return {
        f"{task}_{suffix}": place | fields | {"weights": str(models / fields["weights"]), "args": COMMON}
        for task, fields in PROFILES.items()
    }


def has_gpu() -> bool:
    """Asked as engine_env.sh asks, so that the profiles are for the vLLM that it has installed."""
    try:
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def port() -> int:
    """8000, or any other where that is taken."""
    with socket.socket() as probe:
        taken = probe.connect_ex(("127.0.0.1", 8000)) == 0
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0 if taken else 8000))
        found: int = probe.getsockname()[1]
    return found


async def main(vllm: str, models: Path) -> int:
    """The daemon's exit code, 1 where an answer is not as it should be, 130 when stopped before all came."""
    home = Path(tempfile.mkdtemp(prefix="llmd-demo-", dir="/tmp"))
    log = home / "daemon.log"
    stopped = told_to_stop()
    try:
        config = install(home, vllm, models, gpu=has_gpu())
        environ = os.environ | {"LLMD_DEMO_KEY": KEY, "LLMD_CONFIG": str(config)}
        async with daemon(log, environ) as process:
            if not await before(stopped, show(home, environ)):
                return 130
            if sys.stdin.isatty() and sys.stdout.isatty():
                print("Ctrl-C stops it.", flush=True)
                await stopped.wait()
        return process.returncode or 0
    except (aiohttp.ClientError, OSError, RuntimeError) as error:
        print(f"demo: {error}\n{log.read_text(errors='replace')[-4000:]}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(home, ignore_errors=True)


def told_to_stop() -> asyncio.Event:
    """Set by Ctrl-C, by a closed terminal or by SIGTERM: whichever it is, the daemon is stopped in order."""
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    return stopped


async def before(stopped: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Whether `work` came to its end before the stop; raises what it raised."""
    tasks = asyncio.create_task(work), asyncio.create_task(stopped.wait())
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await tasks[0]
        return True
    return False


@contextlib.asynccontextmanager
async def daemon(log: Path, environ: dict[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    """`llmd serve`, out of Ctrl-C's reach, and its orderly end."""
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            str(LLMD), "serve", stdout=out, stderr=out, env=environ, start_new_session=True
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        await process.wait()


async def show(home: Path, environ: dict[str, str]) -> None:
    status = await until_listening(home)
    url = status["daemon"]["listening"][0]
    print(f"llmd serves at {url}", flush=True)
    headers = {"Authorization": f"Bearer {KEY}"}
    told: set[tuple[str, str]] = set()
    async with aiohttp.ClientSession(url, headers=headers) as session:
        async with progress(home, told):
            said = await chat(session)
        print(f"chat: {said!r}")  # noise: its control characters are not for a terminal
        body: dict[str, Any] = {"model": "tiny-embed", "input": "Who holds the GPUs?"}
        async with progress(home, told):
            vector = (await post(session, "/v1/embeddings", body))["data"][0]["embedding"]
        print(f"embedding: {len(vector)} numbers: {vector[0]:.4f} {vector[1]:.4f} {vector[2]:.4f} ...")
        body = {"model": "tiny-rerank", "query": "memory", "documents": ["The card is full.", "A fox jumps."]}
        async with progress(home, told):
            results = (await post(session, "/v1/rerank", body))["results"]
        for result in results:
            print(f"rerank: {result['relevance_score']:.4f} {result['document']['text']}")
    await (await asyncio.create_subprocess_exec(str(LLMD), "status", env=environ)).wait()
    print(f"\nOpenAI API: {url}/v1   health: {url}/health   metrics: {url}/metrics\nkey: {KEY}", flush=True)


async def chat(session: aiohttp.ClientSession) -> str:
    messages = [{"role": "user", "content": "Hello, how are you today?"}]
    body = {"model": "tiny-chat", "messages": messages, "max_tokens": 24, "stream": True}
    said, ended = "", False
    async with session.post("/v1/chat/completions", json=body) as reply:
        if reply.status != 200:
            raise RuntimeError(f"chat: {reply.status} {await reply.text()}")
        async for line in reply.content:
            data = line.removeprefix(b"data: ").strip()
            ended = ended or data == b"[DONE]"
            if line.startswith(b"data: {"):
                said += "".join(c["delta"].get("content") or "" for c in json.loads(data)["choices"])
    if not said or not ended:
        raise RuntimeError("the chat ended without its text")
    return said


async def post(session: aiohttp.ClientSession, path: str, body: dict[str, Any]) -> Any:
    async with session.post(path, json=body) as reply:
        if reply.status != 200:
            raise RuntimeError(f"{path}: {reply.status} {await reply.text()}")
        return await reply.json()


async def status_of(home: Path) -> Any:
    connector = aiohttp.UnixConnector(str(home / "llmd.sock"))
    async with (
        aiohttp.ClientSession("http://llmd", connector=connector) as session,
        session.get("/status") as reply,
    ):
        return await reply.json()


async def until_listening(home: Path) -> Any:
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                status = await status_of(home)
                if status["daemon"]["listening"]:
                    return status
            await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def progress(home: Path, told: set[tuple[str, str]]) -> AsyncIterator[None]:
    """Tell each new stage of each engine that loads, the last one included."""

    async def follow() -> None:
        while True:
            tell(await status_of(home), told)
            await asyncio.sleep(0.3)

    task = asyncio.create_task(follow())
    try:
        yield
    finally:
        task.cancel()
    tell(await status_of(home), told)


def tell(status: Any, told: set[tuple[str, str]]) -> None:
    for engine in status["engines"]:
        stage = engine["stage"] or engine["state"]
        if engine["state"] in ("starting", "ready") and (engine["profile"], stage) not in told:
            told.add((engine["profile"], stage))
            percent = 100 if engine["state"] == "ready" else engine["percent"] or 0
            print(f"  {engine['profile']}: {percent:3.0f} %  {stage}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(asyncio.run(main(sys.argv[1], Path(sys.argv[2]))))
