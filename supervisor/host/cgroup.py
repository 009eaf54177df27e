"""Control groups: the one fence that no process can leave by forking. Version 2 only.

llmd makes sub-groups only where it has been given a group of its own (`Delegate=yes`); elsewhere engines run
without one and their trees are known by session, ancestry and marker instead.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

OVERRIDE = "LLMD_CGROUP_ROOT"
"""Names the delegated directory where the supervisor above llmd is not systemd. Empty: none."""


def delegated_root() -> Path | None:
    """The directory under which this process may make groups, None where it has been given none."""
    if (override := os.environ.get(OVERRIDE)) is not None:
        return Path(override) if override else None
    own = _own_directory()
    return own if own is not None and _is_delegated(own) else None


def is_delegated_to(pid: int) -> bool:
    """Whether the group that another process is in was given to it; not so where that cannot be seen."""
    own = _own_directory(str(pid))
    return own is not None and _is_delegated(own)


def is_mounted() -> bool:
    """Whether this host has version 2 at all."""
    return _mount() is not None


def name(incarnation: str) -> str:
    return f"llmd-{incarnation}"


def create(root: Path, incarnation: str) -> Path:
    """Make the group of one engine. Raises OSError."""
    path = root / name(incarnation)
    path.mkdir()
    return path


def members(path: Path) -> frozenset[int]:
    """Pids in the group and in groups below it, zombies among them; empty where it does not exist."""
    found: set[int] = set()
    for directory in _with_below(path):
        # A group removed meanwhile is empty; EOPNOTSUPP: a threaded group, which only lists threads.
        with contextlib.suppress(OSError):
            found.update(map(int, (directory / "cgroup.procs").read_text().split()))
    return frozenset(found)


def kill(path: Path) -> bool:
    """SIGKILL all of the group at once, forks in flight too. False before Linux 5.14 or with no such group."""
    try:
        (path / "cgroup.kill").write_text("1")
    except OSError:
        return False
    return True


def remove(path: Path) -> bool:
    """Remove the group and those below it. False while a process is left in one."""
    try:
        for directory in reversed(_with_below(path)):
            directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
            return False
        raise
    return True


def _with_below(path: Path) -> list[Path]:
    return [Path(directory) for directory, _, _ in os.walk(path)]


def _own_directory(pid: str = "self") -> Path | None:
    own = next((line[3:] for line in _lines(f"/proc/{pid}/cgroup") if line.startswith("0::")), None)
    mount = _mount()
    if own is None or mount is None:
        return None
    root, where = mount
    # A bind mount shows only the part of the hierarchy below `root`.
    if root != "/" and not (own + "/").startswith(root + "/"):
        return None
    return where / own.removeprefix(root).lstrip("/")


def _mount() -> tuple[str, Path] | None:
    """Where version 2 is mounted, alone or beside version 1, and which part of it."""
    for line in _lines("/proc/self/mountinfo"):
        fields, _, kind = line.partition(" - ")
        if kind.startswith("cgroup2 "):
            root, where = fields.split()[3:5]
            return root, Path(where.replace("\\040", " "))
    return None


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _is_delegated(path: Path) -> bool:
    """systemd marks what it gave away; `user.` can be read by anyone (since 251), `trusted.` by root."""
    for attribute in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(path, attribute) == b"1":
                return True
    return False
