"""How much memory each engine's tree holds, by device. Blocks for milliseconds: call it in a thread."""

from __future__ import annotations

from collections.abc import Mapping

import psutil

from supervisor.core.devices import HOST, Survey
from supervisor.host import procfs
from supervisor.host.tree import Tree


def measure(
    trees: Mapping[str, Tree], survey: Survey, borrowers: Mapping[str, int] | None = None
) -> tuple[dict[str, dict[str, int]], frozenset[int]]:
    """(incarnation or loan -> device -> bytes, all PIDs of the trees).

    `borrowers`: loan -> the process that uses it, with its children. They are not among our PIDs.

    A GPU is left out where the driver does not tell who holds what. Host memory is what the processes do
    not share with files: pages that others map too cost nothing more.
    """
    seen = list(procfs.processes()) if trees else []
    members = {name: tree.members(seen) for name, tree in trees.items()}
    measured: dict[str, dict[str, int]] = {}
    for name, pids in members.items():
        held = {HOST: sum(map(_private, pids))}
        measured[name] = held | _on_gpus(pids, survey)
    for name, pid in (borrowers or {}).items():
        measured[name] = _on_gpus(_family(pid), survey)
    return measured, frozenset().union(*members.values())


def _on_gpus(pids: frozenset[int], survey: Survey) -> dict[str, int]:
    if not survey.holders_known:
        return {}
    return {
        reading.device: sum(holder.used or 0 for holder in reading.holders if holder.pid in pids)
        for reading in survey.readings
        if reading.index is not None and not reading.unified
    }


def _family(pid: int) -> frozenset[int]:
    try:
        process = psutil.Process(pid)
        return frozenset({pid, *(child.pid for child in process.children(recursive=True))})
    except psutil.NoSuchProcess:
        return frozenset()


def _private(pid: int) -> int:
    try:
        memory = psutil.Process(pid).memory_info()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0
    return max(0, int(memory.rss) - int(memory.shared))
