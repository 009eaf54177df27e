"""How much memory each engine's tree holds, by device. Blocks for milliseconds: call it in a thread."""

from __future__ import annotations

from collections.abc import Mapping

import psutil

from supervisor.core.devices import HOST, Survey
from supervisor.host.tree import Tree


def measure(trees: Mapping[str, Tree], survey: Survey) -> tuple[dict[str, dict[str, int]], frozenset[int]]:
    """(incarnation -> device -> bytes, all PIDs of the trees).

    A GPU is left out where the driver does not tell who holds what. Host memory is what the processes do
    not share with files: pages that others map too cost nothing more.
    """
    members = {name: tree.members() for name, tree in trees.items()}
    measured: dict[str, dict[str, int]] = {}
    for name, pids in members.items():
        held = {HOST: sum(map(_private, pids))}
        if survey.holders_known:
            for reading in survey.readings:
                if reading.index is not None and not reading.unified:
                    held[reading.device] = sum(h.used or 0 for h in reading.holders if h.pid in pids)
        measured[name] = held
    return measured, frozenset().union(*members.values())


def _private(pid: int) -> int:
    try:
        memory = psutil.Process(pid).memory_info()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0
    return max(0, int(memory.rss) - int(memory.shared))
