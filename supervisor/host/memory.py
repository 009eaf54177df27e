"""Host memory: what engines on the CPU, and on GPUs that share the host's memory, live in.

Sources: psutil (/proc/meminfo) for the machine; the cgroup files of this process and of every group above it
for a limit. A limit binds llmd and the engines it starts, so the tightest one lower than the machine's memory
takes the machine's place. Page cache that the kernel can drop at once counts as available, as in MemAvailable.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from supervisor.core.devices import HOST, Reading

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True)
class _Interface:
    """What one version of cgroups calls its memory files, and the droppable cache within memory.stat."""

    limit: str
    usage: str
    cache: str


_V1 = _Interface("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Interface("memory.max", "memory.current", "inactive_file")


def read_host_memory(
    clock: Callable[[], float] = time.monotonic,
    *,
    cgroups: Path = _CGROUPS,
    membership: Path = _MEMBERSHIP,
) -> Reading:
    """Bytes of memory that this process may use; its name tells when a cgroup limits them."""
    at = clock()
    machine = psutil.virtual_memory()
    total, available, name = machine.total, machine.available, "host memory"
    for limit, room in _limits(cgroups, membership):
        if limit < machine.total:
            total, available, name = min(total, limit), min(available, room), "host memory (cgroup limit)"
    available = min(available, total)
    return Reading(HOST, total, total - available, available, at, name=name)


def _limits(cgroups: Path, membership: Path) -> Iterator[tuple[int, int]]:
    """(limit, bytes still to be had under it) of each limited cgroup that this process is in."""
    for interface, root, path in _groups(cgroups, membership):
        for group in (root / path, *(root / parent for parent in path.parents)):
            limit = _number(group / interface.limit)
            usage = _number(group / interface.usage)
            if limit is not None and usage is not None:
                yield limit, max(0, limit - usage + _cache(group, interface.cache))


def _groups(cgroups: Path, membership: Path) -> Iterator[tuple[_Interface, Path, Path]]:
    """(interface, mount, path below it) from the lines `0::/PATH` (v2) and `N:memory:/PATH` (v1)."""
    for line in membership.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield _V2, cgroups, Path(path.lstrip("/"))
        elif "memory" in controllers.split(","):
            yield _V1, cgroups / "memory", Path(path.lstrip("/"))


def _number(file: Path) -> int | None:
    """The file's number; None for `max`, and where there is no such file (a container sees only its own)."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _cache(group: Path, key: str) -> int:
    try:
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(value) for name, value in (line.split() for line in lines) if name == key), 0)
