"""A whole daemon under test: `llmd serve` as a process of its own, on stand-in engines, GPUs or a real vLLM."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import tomli_w

from tests.standin.launch import STANDIN, metric

KEY = "sk-test"

QUICK: dict[str, Any] = {
    "restarts": {"first_delay": 0.2, "max_delay": 1},
    "engine": {"stop_grace": 3, "health_interval": 0.2, "settle_timeout": 10},
}


def profile(model: str, **fields: Any) -> dict[str, Any]:
    """A CPU profile of a stand-in, small enough for any host."""
    base = {"model": model, "weights": "tiny", "device": "cpu", "memory": "32 MiB", "max_model_len": 512}
    return base | fields


class Llmd:
    """One installation: a short directory with llmd.toml, profiles and state; `start` as often as needed."""

    def __init__(
        self, profiles: dict[str, dict[str, Any]], *, env: dict[str, str] | None = None, **tables: Any
    ):
        self.home = Path(tempfile.mkdtemp(prefix="llmd-", dir="/tmp"))
        self.env = {**os.environ, "LLMD_TEST_KEY": KEY, **(env or {})}
        (self.home / "profiles").mkdir()
        for name, fields in profiles.items():
            (self.home / "profiles" / f"{name}.toml").write_text(tomli_w.dumps(fields))
        document: dict[str, Any] = {
            "server": {
                "listen": ["127.0.0.1:0"],
                "admin_socket": str(self.home / "admin.sock"),
                "state_dir": str(self.home / "state"),
            },
            "engine": {"command": [*STANDIN, "serve"]},
            "memory": {"host_floor": "64 MiB"},
            "keys": {"webui": {"env": "LLMD_TEST_KEY"}},
        }
        for table, fields in tables.items():
            document[table] = document.get(table, {}) | fields
        self.config = self.home / "llmd.toml"
        self.config.write_text(tomli_w.dumps(document))
        self.process: subprocess.Popen[bytes] | None = None
        self.log = self.home / "daemon.log"

    def command(self, *words: str) -> list[str]:
        return [str(Path(sys.executable).with_name("llmd")), "--config", str(self.config), *words]

    def start(self, *flags: str) -> Llmd:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command("serve", *flags), env=self.env, stderr=log, stdout=log, start_new_session=True
            )
        until(self._answers, 20, self.text)
        return self

    def _answers(self) -> bool:
        assert self.process
        assert self.process.poll() is None, self.text()
        try:
            return bool(self.status()["daemon"]["listening"])
        except OSError:
            return False

    def run(self, *words: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words), env=self.env, capture_output=True, text=True, timeout=timeout, check=False
        )

    def status(self) -> dict[str, Any]:
        """As the admin socket has it: it is asked again and again, and a command costs half a second."""
        answer: dict[str, Any] = json.loads(told(self.home / "admin.sock", "/status"))
        return answer

    def engine(self, profile: str) -> dict[str, Any]:
        found: dict[str, Any] = next(e for e in self.status()["engines"] if e["profile"] == profile)
        return found

    def tree(self, profile: str) -> list[psutil.Process]:
        """The processes of a profile's engine, its leader first."""
        leader = psutil.Process(self.engine(profile)["pid"])
        return [leader, *leader.children(recursive=True)]

    def door(self, profile: str) -> Door:
        directory = self.home / "state" / "engines" / self.engine(profile)["incarnation"]
        return Door(directory / "sock", json.loads((directory / "record.json").read_text())["key"])

    @property
    def url(self) -> str:
        url: str = self.status()["daemon"]["listening"][0]
        return url

    def stop(self) -> int:
        assert self.process
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def kill(self) -> None:
        """As the kernel's out-of-memory killer would."""
        assert self.process
        self.process.kill()
        self.process.wait(10)

    def text(self) -> str:
        logs = [self.log, *sorted((self.home / "state" / "logs").glob("*.log"))]
        return "\n".join(
            f"== {log.name}\n{log.read_text(errors='replace')[-6000:]}" for log in logs if log.exists()
        )

    def logged(self) -> list[dict[str, Any]]:
        """Its log so far. A line is written a moment after what it tells of."""
        whole = self.log.read_text().rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]

    def says(self, words: str) -> None:
        """Wait for them in its log."""
        until(lambda: words in self.log.read_text(), 5, self.text)

    def close(self) -> None:
        """End the daemon and every engine of this installation, whatever became of them."""
        if self.process and self.process.poll() is None:
            self.stop()
        for pid in self.leftovers():
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.home, ignore_errors=True)

    def leftovers(self) -> list[int]:
        """Live processes that were started for this installation."""
        return mentioning(str(self.home / "state"))


@dataclass(frozen=True)
class Door:
    """An engine's own socket and key, which nobody but llmd has: what the engine itself says."""

    socket: Path
    key: str

    def metric(self, name: str) -> float:
        return metric(told(self.socket, "/metrics", Authorization=f"Bearer {self.key}").decode(), name)


def told(place: Path, path: str, **headers: str) -> bytes:
    """What a server on a Unix socket answers. Raises OSError where nobody is there."""
    with socket.socket(socket.AF_UNIX) as connected:
        connected.settimeout(30)
        connected.connect(str(place))
        connection = http.client.HTTPConnection("localhost")
        connection.sock = connected
        connection.request("GET", path, headers=headers)
        return connection.getresponse().read()


def runs(process: psutil.Process) -> bool:
    """Zombies have ended."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def mentioning(mark: str) -> list[int]:
    """Live processes, but this one, in whose environment `mark` stands."""
    return [pid for pid in psutil.pids() if _mentions(pid, os.fsencode(mark))]


def _mentions(pid: int, mark: bytes) -> bool:
    if pid == os.getpid():
        return False
    try:
        return mark in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def until(condition: Callable[[], bool], timeout: float, why: Callable[[], str] = lambda: "") -> None:
    """Wait for a condition outside this process."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s\n{why()}"
        time.sleep(0.05)
