"""Start one engine, real or stand-in, as llmd would: own session, private socket, key, log file, directory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import aiohttp

STANDIN = [sys.executable, str(Path(__file__).with_name("engine.py"))]
KEY = "sk-of-this-incarnation"


class Engine:
    """`command` is what stands for `vllm`: STANDIN, or the program of a real environment."""

    def __init__(
        self, command: list[str], model: str, *flags: str, env: dict[str, str] | None = None
    ) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="llmd-", dir="/tmp"))  # a socket's path must be short
        self.socket, self.log = self.directory / "s", self.directory / "log"
        own = {"VLLM_API_KEY": KEY, "TMPDIR": str(self.directory), "VLLM_RPC_BASE_PATH": str(self.directory)}
        quiet = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "serve", model, "--uds", str(self.socket), *flags],
                env=os.environ | own | quiet | (env or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()

    def clear(self) -> None:
        """Kill what is left of the tree; a process that left its session is found by its open files no more."""
        for pid in self.session():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def session(self) -> list[int]:
        """Pids of this engine that are alive, also when its leader is gone."""
        return [pid for pid in all_pids() if in_session(pid, self.process.pid)]

    def named(self, name: str) -> list[int]:
        return [pid for pid in self.session() if comm(pid).startswith(name[:15])]

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def client(self) -> aiohttp.ClientSession:
        """A session that sends the key; close it."""
        connector = aiohttp.UnixConnector(str(self.socket))
        headers = {"Authorization": f"Bearer {KEY}"}
        return aiohttp.ClientSession("http://engine", connector=connector, headers=headers)

    async def ready(self, seconds: float = 10) -> Engine:
        """Wait until /health answers 200."""
        async with self.client() as client:
            await until(lambda: self.healthy(client), seconds, self.text)
        return self

    async def healthy(self, client: aiohttp.ClientSession) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"the engine exited with {self.process.returncode}:\n{self.text()[-3000:]}")
        try:
            async with client.get("/health") as answer:
                return answer.status == 200
        except aiohttp.ClientConnectionError:
            return False


async def until(
    condition: Callable[[], object], seconds: float = 10, explain: Callable[[], str] = str
) -> None:
    """Poll a condition, which may be a coroutine function, to a deadline."""
    deadline = time.monotonic() + seconds
    while True:
        met = condition()
        if await met if asyncio.iscoroutine(met) else met:
            return
        assert time.monotonic() < deadline, f"not so within {seconds} s {explain()[-3000:]}"
        await asyncio.sleep(0.02)


def metric(text: str, name: str) -> float:
    """The sum of vLLM's metric `name`, over its labels, in what /metrics says."""
    lines = (line for line in text.splitlines() if line.startswith(f"vllm:{name}{{"))
    return sum(float(line.split()[-1]) for line in lines)


def all_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def in_session(pid: int, session: int) -> bool:
    """Zombies count as gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(words[3]) == session and words[0] not in "ZX"
    return False


def comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""
