from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from supervisor.errors import AlreadyRunning, OperatorError
from supervisor.host import journal
from supervisor.host.journal import Journal, Record

OLD = Record(
    incarnation="0a1b2c3d",
    profile="llama_0",
    models=("llama", "llama_0"),
    key="canary",
    boot_id="b0",
    pid=None,
    start_time=None,
    session=None,
    cgroup=None,
    spawned_at="2026-01-01T00:00:00Z",
    argv=("vllm", "serve", "x"),
    log="/var/lib/llmd/logs/llama_0.log",
    devices=("GPU-0",),
    ready=False,
)
NEW = replace(OLD, pid=7, start_time=8, session=7, ready=True)


@pytest.fixture
def state() -> Iterator[Journal]:
    place = Path(tempfile.mkdtemp(prefix="llmd-", dir="/tmp"))
    made = Journal(place)
    made.prepare(OLD.incarnation)
    yield made
    shutil.rmtree(place)


def test_a_record_comes_back_as_it_was_written(state: Journal) -> None:
    for record in (OLD, NEW):
        state.write(record)
        assert state.records() == ([record], [])
        assert Journal(state.state_dir).records() == ([record], [])


def test_only_the_owner_can_read_it(state: Journal) -> None:
    state.write(OLD)
    directory = state.directory(OLD.incarnation)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (directory, *directory.iterdir())}
    assert modes == {OLD.incarnation: 0o700, "tmp": 0o700, "ipc": 0o700, "record.json": 0o600}
    assert "canary" not in repr(OLD)


def test_identity_once_it_is_known() -> None:
    assert OLD.identity() is None
    identity = NEW.identity()
    assert identity is not None
    assert (identity.pid, identity.start_time, identity.boot_id, identity.incarnation) == (
        7,
        8,
        "b0",
        "0a1b2c3d",
    )


@pytest.mark.parametrize("step", ["open", "fdopen", "fsync", "replace", "second fsync"])
def test_a_write_that_breaks_off_leaves_the_old_or_the_new(
    step: str, state: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.write(OLD)
    name, countdown = step.removeprefix("second "), [2 if step.startswith("second") else 1]
    real: Callable[..., object] = getattr(os, name)

    def breaks(*args: object, **named: object) -> object:
        countdown[0] -= 1
        if countdown[0] == 0:
            if isinstance(args[0], int) and name == "fdopen":
                os.close(args[0])
            raise OSError(28, "No space left on device")
        return real(*args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, breaks)
        with pytest.raises(OSError, match="No space left"):
            state.write(NEW)
    assert state.records() == ([NEW if step == "second fsync" else OLD], [])
    state.write(NEW)
    assert state.records() == ([NEW], [])


def test_death_at_any_system_call_of_a_write_leaves_the_old_or_the_new(state: Journal) -> None:
    """The process is really killed, before each of the calls in turn."""
    code = """
import os, signal, sys
from pathlib import Path
import msgspec
from supervisor.host.journal import Journal, Record
left = int(sys.argv[2])
def deadly(real):
    def call(*args, **named):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **named)
    return call
record = msgspec.json.decode(sys.stdin.read(), type=Record)
for name in ("open", "fdopen", "fsync", "replace", "close"):
    setattr(os, name, deadly(getattr(os, name)))
Journal(Path(sys.argv[1])).write(record)
"""
    text = journal.msgspec.json.encode(NEW)
    results = []
    for step in range(1, 20):
        state.write(OLD)
        done = subprocess.run(
            [sys.executable, "-c", code, str(state.state_dir), str(step)], input=text, timeout=20, check=False
        )
        records, damages = state.records()
        assert damages == []
        assert records in ([OLD], [NEW])
        results.append(records == [NEW])
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
    assert results == sorted(results)
    assert results[0] is False
    assert results[-1] is True


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b'{"version": 1, "incarn', "torn"),
        (b"\x00" * 400, "torn"),
        (b"\xff\xfe", "torn"),
        (b"[]", "torn"),
        (b'{"version": 1}', "torn"),
        (b'{"version": 2, "shape": "unknown"}', "of version 2"),
        (None, "no record"),
    ],
)
def test_damage_is_told_and_hides_nothing_else(content: bytes | None, reason: str, state: Journal) -> None:
    state.write(OLD)
    bad = state.prepare("ffffffff")
    if content is not None:
        (bad / "record.json").write_bytes(content)
    records, (damage,) = state.records()
    assert records == [OLD]
    assert (damage.path, damage.incarnation) == (bad, "ffffffff")
    assert reason in damage.reason


def test_a_wrongly_typed_or_misplaced_record_is_damage(state: Journal) -> None:
    state.write(OLD)
    path = state.directory(OLD.incarnation) / "record.json"
    right = json.loads(path.read_text())
    path.write_text(json.dumps(right | {"pid": "7"}))
    assert "torn" in state.records()[1][0].reason
    path.write_text(json.dumps(right | {"incarnation": "../../etc"}))
    assert "that of" in state.records()[1][0].reason
    path.unlink()
    path.mkdir()
    assert "cannot be read" in state.records()[1][0].reason


def test_forgotten_with_all_it_left(state: Journal) -> None:
    state.write(OLD)
    (state.directory(OLD.incarnation) / "ipc" / "leftover").write_text("x")
    state.forget(OLD.incarnation)
    assert not state.directory(OLD.incarnation).exists()
    assert state.records() == ([], [])
    state.forget(OLD.incarnation)


def test_one_daemon_a_state_directory(tmp_path: Path) -> None:
    first, second = Journal(tmp_path), Journal(tmp_path)
    first.lock()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(AlreadyRunning, match=rf"pid {os.getpid()}\).*{tmp_path}"):
        second.lock()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    first.unlock()
    second.lock()
    second.unlock()


def test_a_state_directory_that_cannot_be_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OperatorError, match=r"cannot write to .*: Not a directory; give llmd's user"):
        Journal(tmp_path / "file" / "state").lock()


def test_the_lock_dies_with_its_daemon_even_where_engines_live_on(tmp_path: Path) -> None:
    code = """
import os, pathlib, subprocess, sys
from supervisor.host.journal import Journal
Journal(pathlib.Path(sys.argv[1])).lock()
print(subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL).pid, flush=True)
os.kill(os.getpid(), 9)
"""
    daemon = subprocess.run([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, check=False)
    try:
        next_one = Journal(tmp_path)
        next_one.lock()
        next_one.unlock()
    finally:
        os.kill(int(daemon.stdout), signal.SIGKILL)


def test_a_state_directory_too_deep_for_sockets(tmp_path: Path) -> None:
    deep = Journal(tmp_path / ("d" * 100))
    with pytest.raises(OperatorError, match="bytes too long"):
        deep.prepare("0a1b2c3d")
    assert not deep.state_dir.exists()
