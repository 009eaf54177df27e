"""Files in /dev/shm and real processes that use them."""

# ruff: noqa: ASYNC240 - a test may wait for its disk
from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from supervisor.host import procfs, sharedmemory
from supervisor.host.process import Launch, Tree, remains, spawn
from supervisor.host.sharedmemory import MOUNT, SharedMemory
from tests.real.conftest import FLAGS, MODELS, SMALL, real_vllm
from tests.standin.launch import until

MAP = """
import mmap, os, sys, time
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
os.ftruncate(fd, 4096)
kept = mmap.mmap(fd, 4096)
os.close(fd)
print("ready", flush=True)
time.sleep(600)
"""

OPEN = """
import os, sys, time
os.open(sys.argv[1], os.O_RDWR)
print("ready", flush=True)
time.sleep(600)
"""

CHILD = f"""
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {MAP!r}, sys.argv[1]])
time.sleep(600)
"""

SEMAPHORE = """
import multiprocessing, time
kept = multiprocessing.get_context("spawn").Semaphore()
print("ready", kept._semlock.name, flush=True)
time.sleep(600)
"""


@pytest.fixture
def file() -> Iterator[Path]:
    path = MOUNT / f"llmd-test-{secrets.token_hex(4)}"
    yield path
    path.unlink(missing_ok=True)


class Place:
    """Where trees are started; nothing of them is left behind."""

    def __init__(self, directory: Path) -> None:
        self.log = directory / "log"
        self.trees: list[Tree] = []

    async def start(self, code: str, *words: object, group: Path | None = None) -> Tree:
        """A tree that has said it is ready."""
        name = group.name.removeprefix("llmd-") if group else secrets.token_hex(4)
        argv = (sys.executable, "-c", code, *map(str, words))
        said = self.text()
        tree = await spawn(Launch(name, argv, dict(os.environ), self.log.parent, self.log, group))
        self.trees.append(tree)
        await until(lambda: self.text() != said)
        return tree

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    made = Place(tmp_path)
    yield made
    for tree in made.trees:
        assert await tree.kill() == frozenset()
        tree.close()


@pytest.fixture
def foreign() -> Iterator[Callable[[str, Path], subprocess.Popen[bytes]]]:
    """Starts a process that is of no tree, and waits until it uses a file."""
    with contextlib.ExitStack() as stack:

        def start(code: str, file: Path) -> subprocess.Popen[bytes]:
            made = subprocess.Popen([sys.executable, "-c", code, file], stdout=subprocess.PIPE)
            stack.enter_context(made)
            stack.callback(made.kill)
            assert made.stdout is not None
            assert made.stdout.readline() == b"ready\n"
            return made

        yield start


@pytest.mark.parametrize("fenced", [False, True], ids=["bare", "cgroup"])
async def test_a_killed_tree_leaves_no_file(
    place: Place, file: Path, fenced: bool, request: pytest.FixtureRequest
) -> None:
    tree = await place.start(CHILD, file, group=request.getfixturevalue("group") if fenced else None)
    assert file.exists()
    assert await tree.kill() == frozenset()
    assert not file.exists()


async def test_a_semaphore_is_found_under_its_other_name(place: Place) -> None:
    tree = await place.start(SEMAPHORE)
    semaphore = MOUNT / f"sem.{place.text().split()[1].removeprefix('/')}"
    assert semaphore.exists()
    assert await tree.kill() == frozenset()
    assert not semaphore.exists()


async def test_a_file_whose_user_died_before_the_kill_is_known_from_before(place: Place, file: Path) -> None:
    tree = await place.start(CHILD, file)
    (child,) = tree.members() - {tree.identity.pid}
    os.kill(child, signal.SIGKILL)
    await until(lambda: tree.members() == {tree.identity.pid})
    assert file.exists()
    assert await tree.kill() == frozenset()
    assert not file.exists()


async def test_what_a_tree_without_leader_uses_is_found(place: Place, file: Path) -> None:
    tree = await place.start(CHILD, file)
    os.kill(tree.identity.pid, signal.SIGKILL)
    await tree.exited()
    with contextlib.closing(remains(tree.identity)) as rest:
        assert await rest.kill() == frozenset()
    assert not file.exists()


@pytest.mark.parametrize("use", [MAP, OPEN], ids=["maps", "opened"])
async def test_a_file_that_another_process_uses_stays(
    place: Place, file: Path, use: str, foreign: Callable[[str, Path], subprocess.Popen[bytes]]
) -> None:
    tree = await place.start(CHILD, file)
    other = foreign(use, file)
    assert await tree.kill() == frozenset()
    assert file.exists()
    assert other.poll() is None


async def test_a_file_of_another_user_or_for_others_too_stays(place: Place, file: Path) -> None:
    """Processes of other users hide what they use."""
    tree = await place.start(MAP, file)
    file.chmod(0o660)
    assert await tree.kill() == frozenset()
    assert file.exists()
    if os.geteuid() == 0:
        tree = await place.start(MAP, file)
        file.chmod(0o600)
        os.chown(file, 65534, -1)
        assert await tree.kill() == frozenset()
        assert file.exists()


async def test_a_new_file_of_an_old_name_stays(place: Place, file: Path) -> None:
    tree = await place.start(MAP, file)
    file.unlink()
    file.write_text("new")
    file.chmod(0o600)
    assert await tree.kill() == frozenset()
    assert file.read_text() == "new"


async def test_files_elsewhere_are_no_shared_memory(place: Place, tmp_path: Path) -> None:
    elsewhere = tmp_path / "file"
    tree = await place.start(MAP, elsewhere)
    assert procfs.inodes(tree.identity.pid, MOUNT) == set()
    assert await tree.kill() == frozenset()
    assert elsewhere.exists()


def test_a_process_that_never_answers_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, stuck = [], threading.Event()

    def never(pid: int, mount: Path) -> set[int]:
        asked.append(pid)
        stuck.wait()
        return set()

    monkeypatch.setattr(procfs, "inodes", never)
    monkeypatch.setattr(sharedmemory, "PATIENCE", 0.01)
    memory = SharedMemory()
    before = threading.active_count()
    for pid in range(5):
        memory.note([pid])
    memory.sweep()
    assert asked == [0]
    assert threading.active_count() == before + 1
    stuck.set()


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory whose name leaves room for that of a socket."""
    with tempfile.TemporaryDirectory(prefix="llmd-", dir="/tmp") as name:
        yield Path(name)


@pytest.mark.real
@pytest.mark.parametrize("first", ["vllm", "VLLM::EngineCor"], ids=["leader", "core"])
async def test_a_real_engine_leaves_nothing(short: Path, first: str) -> None:
    """One process is killed from outside, llmd kills the rest."""
    command, models = real_vllm()
    argv = (*command, "serve", f"{models}/{MODELS['chat']}", "--uds", "s", *FLAGS["chat"], *SMALL)
    env = os.environ | {"TMPDIR": str(short), "VLLM_RPC_BASE_PATH": str(short), "HF_HUB_OFFLINE": "1"}
    log = short / "log"
    tree = await spawn(Launch(secrets.token_hex(4), argv, env, short, log))
    try:
        await until(lambda: "Application startup complete" in log.read_text(errors="replace"), 240)
        members = tree.members()
        used = set().union(*(procfs.inodes(pid, MOUNT) for pid in members))
        files = {path for path in MOUNT.iterdir() if path.stat().st_ino in used}
        assert any(path.name.startswith("psm_") for path in files)
        (victim,) = (pid for pid in members if comm(pid) == first)
        os.kill(victim, signal.SIGKILL)
        await asyncio.wait_for(tree.exited(), 60)
    finally:
        assert await tree.kill() == frozenset()
        tree.close()
    assert {path for path in files if path.exists()} == set()


def comm(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()
