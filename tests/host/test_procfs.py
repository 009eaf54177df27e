from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

from supervisor.host import procfs


def test_stat_of_this_process() -> None:
    seen = procfs.stat(os.getpid())
    assert seen is not None
    assert (seen.pid, seen.parent, seen.session) == (os.getpid(), os.getppid(), os.getsid(0))
    assert 0 < seen.start_time / os.sysconf("SC_CLK_TCK") <= time.clock_gettime(time.CLOCK_BOOTTIME)
    assert seen in list(procfs.processes())


def test_a_name_made_to_confuse(tmp_path: Path) -> None:
    program = tmp_path / "a) Z 1 (b"
    program.symlink_to("/bin/sleep")
    child = subprocess.Popen([program, "600"])
    try:
        seen = procfs.stat(child.pid)
        assert seen is not None
        assert seen.parent == os.getpid()
        assert seen.alive
    finally:
        child.kill()
        # A zombie until it is waited for.
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        dead = procfs.stat(child.pid)
        child.wait()
    assert dead is not None
    assert not dead.alive
    assert dead.pid not in {other.pid for other in procfs.processes()}
    assert procfs.stat(child.pid) is None


def test_environ_as_started_and_as_overwritten() -> None:
    code = """
import ctypes, os
start, end = map(int, open("/proc/self/stat").read().rsplit(")", 1)[1].split()[47:49])
print("ready", flush=True)
input()
ctypes.memset(start, 0, end - start)
print("wiped", flush=True)
input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"A": "b=c", "EMPTY": ""},
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        assert procfs.environ(child.pid) == {"A": "b=c", "EMPTY": ""}
        child.stdin.write(b"\n")
        child.stdin.flush()
        assert child.stdout.readline() == b"wiped\n"
        assert procfs.environ(child.pid) is None
        child.stdin.write(b"\n")
        child.stdin.flush()
    assert procfs.environ(child.pid) is None


def test_inodes_mapped_open_and_deleted(tmp_path: Path) -> None:
    mapped, opened, deleted, closed = (tmp_path / name for name in ("mapped", "opened", "deleted", "closed"))
    for path in (mapped, opened, deleted, closed):
        path.write_bytes(b"x" * 4096)
    numbers = {path: path.stat().st_ino for path in (mapped, opened, deleted, closed)}
    with mapped.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), 4096)
    with memory, opened.open("rb"), deleted.open("rb"):
        deleted.unlink()
        assert procfs.inodes(os.getpid(), tmp_path) >= {numbers[path] for path in (mapped, opened, deleted)}
        assert numbers[closed] not in procfs.inodes(os.getpid(), tmp_path)
    assert not procfs.inodes(os.getpid(), tmp_path) & set(numbers.values())


def test_boot_id_is_a_uuid() -> None:
    assert len(procfs.boot_id()) == 36
