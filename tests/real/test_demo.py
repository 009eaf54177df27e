"""`make demo`: on stand-in engines with and without a GPU, on a terminal and without one, and on real vLLM."""

from __future__ import annotations

import importlib.util
import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from supervisor.config import load
from supervisor.core.devices import GIB, HOST, Reading, Survey
from supervisor.core.fit import check_devices
from tests.daemon import mentioning, until
from tests.real.conftest import real_vllm
from tests.standin.launch import STANDIN
from tests.standin.nvml import FakeGpus, build

DEMO = Path(__file__).parents[2] / "packaging" / "demo.py"

ON_TERMINAL = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
"""Makes its stdin the terminal whose Ctrl-C it hears."""


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def survey(card: int) -> Survey:
    readings = [Reading(HOST, 16 * GIB, 0, 16 * GIB, 0.0, "host memory")]
    if card:
        readings.append(Reading("GPU-0", card, 0, card, 0.0, "small card", 0))
    return Survey(tuple(readings), 0.0)


@pytest.fixture
def home() -> Iterator[Path]:
    """A socket's path must be short."""
    with tempfile.TemporaryDirectory(prefix="llmd-", dir="/tmp") as directory:
        yield Path(directory)


@pytest.mark.parametrize("gpu", [False, True])
def test_the_profiles_are_for_the_device_that_vllm_is_for(demo: ModuleType, home: Path, gpu: bool) -> None:
    config = load(demo.install(home, "/opt/vllm", home / "models", gpu=gpu))
    placed = {(p.device, p.gpus, p.vram is None, p.memory is None) for p in config.profiles.values()}
    assert placed == ({("gpu", (0,), False, True)} if gpu else {("cpu", (), True, False)})
    assert {p.task for p in config.profiles.values()} == {"generate", "embed", "rerank"}
    assert check_devices(config, survey(8 * GIB if gpu else 0)) == []
    room = 8 * GIB - config.memory.margin if gpu else 16 * GIB - config.memory.host_floor
    assert sum((p.vram if gpu else p.memory) or 0 for p in config.profiles.values()) <= room


class Host:
    """What `make demo` finds on a host: a vLLM, and an nvidia-smi that sees a GPU or does not."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.env = os.environ | {"LLMD_TEST_DEMO": str(directory), "COLUMNS": "80"}
        self.vllm, self.models = directory / "vllm", directory / "models"
        for name in ("tiny-llama", "tiny-embed", "tiny-rerank"):
            (self.models / name).mkdir(parents=True)
        self.program("vllm", f'exec {" ".join(STANDIN)} "$@"')

    def program(self, name: str, does: str) -> None:
        (self.directory / name).write_text(f"#!/bin/sh\n{does}\n")
        (self.directory / name).chmod(0o755)
        self.env["PATH"] = f"{self.directory}:{os.environ['PATH']}"

    def command(self) -> list[str]:
        return [sys.executable, str(DEMO), str(self.vllm), str(self.models)]

    def run(self) -> subprocess.CompletedProcess[str]:
        """Without a terminal."""
        return subprocess.run(
            self.command(),
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )

    def left(self) -> list[int]:
        return mentioning(str(self.directory))


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    host.program("nvidia-smi", "exit 9")
    yield host
    for pid in host.left():
        os.kill(pid, signal.SIGKILL)


class Terminal:
    """The demo on a terminal of its own."""

    def __init__(self, host: Host) -> None:
        self.master, slave = pty.openpty()
        self.said = ""
        self.process = subprocess.Popen(
            [sys.executable, "-c", ON_TERMINAL, *host.command()],
            env=host.env,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.master)
        self.process.kill()
        self.process.wait()

    def wait_for(self, words: str) -> None:
        while words not in self.said:
            self.said += os.read(self.master, 4096).decode(errors="replace")

    def interrupt(self) -> int:
        os.write(self.master, b"\x03")
        until(lambda: self.process.poll() is not None, 60, lambda: self.said)
        return self.process.wait()


def answers(said: str) -> None:
    """Everything that the main job is."""
    assert re.search(r"^llmd serves at http://127\.0\.0\.1:\d+", said, re.MULTILINE)
    assert re.search(r"^chat: ['\"].", said, re.MULTILINE)
    assert re.search(r"^embedding: \d+ numbers: -?\d", said, re.MULTILINE)
    assert len(re.findall(r"^rerank: \d\.\d{4} \S", said, re.MULTILINE)) == 2
    for address in ("/v1 ", "/health ", "/metrics"):
        assert re.search(rf"http://127\.0\.0\.1:\d+{address}", said + " ")
    for task in ("chat", "embed", "rerank"):
        told = re.findall(rf"^  {task}_\w+: +(\d+) %  (\S.*)", said, re.MULTILINE)
        assert told[-1] == ("100", "ready"), said
        assert re.search(rf"^ *│? *{task}_\w+.* ready", said, re.MULTILINE), said
        percents = [int(percent) for percent, _ in told]
        assert percents == sorted(percents)


def test_without_a_terminal_it_ends_by_itself(host: Host) -> None:
    run = host.run()
    assert (run.returncode, run.stderr) == (0, ""), run.stdout
    answers(run.stdout)
    assert "chat_cpu" in run.stdout
    assert "warning" not in run.stdout
    assert host.left() == []


def test_with_a_gpu_its_engines_are_on_it(host: Host, tmp_path: Path) -> None:
    gpus = FakeGpus(tmp_path / "nvml", count=1, total=24 * GIB)
    host.program("nvidia-smi", "echo 'GPU 0: NVIDIA GeForce RTX 4090'")
    host.env |= gpus.env(build(tmp_path))
    run = host.run()
    assert (run.returncode, run.stderr) == (0, ""), run.stdout
    answers(run.stdout)
    _, card = run.stdout.split("RTX 4090, 24.00 GiB")
    held = re.findall(r"(\w+_0) (2\.00 GiB)", card[: card.index("Host")])
    assert sorted(name for name, _ in held) == ["chat_0", "embed_0", "rerank_0"], card
    assert host.left() == []


def test_on_a_terminal_it_stays_until_ctrl_c(host: Host) -> None:
    with Terminal(host) as terminal:
        terminal.wait_for("Ctrl-C stops it.")
        assert terminal.process.poll() is None
        assert host.left()
        answers(re.sub(r"\r|\x1b\[[\d;]*m", "", terminal.said))
        assert terminal.interrupt() == 0
    assert host.left() == []


def test_ctrl_c_while_a_model_loads_leaves_nobody(host: Host) -> None:
    host.env["STANDIN_LOAD_SECONDS"] = "120"
    with Terminal(host) as terminal:
        terminal.wait_for(" %  ")
        assert terminal.interrupt() == 130
        assert "Traceback" not in terminal.said
    assert host.left() == []


@pytest.mark.real
def test_on_a_real_vllm(tmp_path: Path) -> None:
    host = Host(tmp_path)
    (program,), models = real_vllm()
    host.vllm, host.models = Path(program), Path(models)
    try:
        run = host.run()
        assert (run.returncode, run.stderr) == (0, ""), run.stdout
        answers(run.stdout)
        stages: list[Any] = re.findall(r"^  chat_\w+: +(\d+) %  (.*)", run.stdout, re.MULTILINE)
        assert len(stages) > 3, run.stdout
        assert any(0 < int(percent) < 100 and stage == "loading weights" for percent, stage in stages)
    finally:
        left = host.left()
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    assert left == []
