"""A machine of its own under a real systemd, in namespaces: nothing on the host changes, nothing stays behind.

It has the host's programs, its own processes, network, /etc, /opt, /run and /var, and no unit but those it is
given. boot.sh makes it; the end of `unshare` is the end of every process in it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from supervisor.host import cgroup
from tests.daemon import until

CHECKOUT = Path(__file__).parents[2]

_BOOT = Path(__file__).with_name("boot.sh")
_SYSTEMD = Path("/lib/systemd/systemd")
_TARGETS = ("sysinit", "basic", "network-online", "multi-user", "shutdown")
_JOIN = 'echo 0 >"$1/cgroup.procs" && shift && exec "$@"'
_PROGRAMS = ("systemctl", "unshare", "nsenter", "ip", "ss", "useradd", "runuser", "curl", "openssl")
_NAMESPACES = ("--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup")
_UNSHARED = ("--fork", "--kill-child", "--propagation", "private", *_NAMESPACES)
_TRIAL = """
mount -t tmpfs llmd /mnt
mkdir /mnt/upper /mnt/work
mount -t overlay -o lowerdir=/etc,upperdir=/mnt/upper,workdir=/mnt/work llmd /etc
mount -t cgroup2 cgroup2 /sys/fs/cgroup
"""


def obstacle() -> str | None:
    """Why no machine can be made here, in words for a skipped test."""
    if os.getuid() != 0:
        return "only root can make a machine of its own"
    if not _SYSTEMD.exists() or not all(map(shutil.which, _PROGRAMS)):
        return "programs are missing: apt-get install systemd iproute2 curl openssl"
    mounted = cgroup._mount()
    if mounted is None or not os.access(mounted[1], os.W_OK):
        return "this host has no cgroup version 2 that may be written to"
    tried = subprocess.run(["unshare", *_UNSHARED, "sh", "-euc", _TRIAL], capture_output=True, check=False)
    return None if tried.returncode == 0 else "this host does not let root make namespaces and mounts"


class Machine:
    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="llmd-", dir="/tmp"))
        self.home.chmod(0o755)
        mounted = cgroup._mount()
        assert mounted
        self._group = cgroup.create(mounted[1], f"test-{os.getpid()}")
        self._console = self.home / "console"
        self._unshare = self._boot()

    def _boot(self) -> subprocess.Popen[bytes]:
        scratch, units = self.home / "scratch", self.home / "units"
        scratch.mkdir()
        units.mkdir()
        for target in _TARGETS:
            (units / f"{target}.target").write_text("[Unit]\nDefaultDependencies=no\n")
        join = ["sh", "-c", _JOIN, "sh", str(self._group)]
        with self._console.open("wb") as console:
            return subprocess.Popen(
                [*join, "unshare", *_UNSHARED, str(_BOOT), str(scratch), str(units)],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )

    def wait_until_up(self) -> Machine:
        until(self._is_up, 20, self._console.read_text)
        return self

    def _is_up(self) -> bool:
        assert self._unshare.poll() is None, self._console.read_text()
        return bool(self._first()) and self.run("systemctl is-active basic.target").returncode == 0

    def _first(self) -> str:
        """The pid of process 1, as the host counts."""
        pid = self._unshare.pid
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().strip()

    def run(self, script: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """A shell's answer from inside, in the directory of the checkout."""
        enter = ["nsenter", "--target", self._first(), *_NAMESPACES, f"--wdns={CHECKOUT}"]
        return subprocess.run(
            [*enter, "sh", "-euc", script], capture_output=True, text=True, timeout=timeout, check=False
        )

    def do(self, script: str, timeout: float = 60) -> str:
        """`run`, where anything but success is a failed test."""
        done = self.run(script, timeout)
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        return done.stdout

    def close(self) -> None:
        if self._unshare.poll() is None:
            self._unshare.kill()
        self._unshare.wait(10)
        cgroup.kill(self._group)
        until(lambda: not cgroup.members(self._group), 10)
        assert cgroup.remove(self._group)
        shutil.rmtree(self.home)
