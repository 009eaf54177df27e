"""The memory that a stand-in engine holds on imaginary cards, told to the stand-in NVML (nvml.c).

LLMD_NVML_DIR names the directory: its file `gpus` lists the cards, and held.d/PID what process PID holds. The
file of a dead process counts for nothing. Where the variable is absent nothing is held; but where STANDIN_CUDA is
1, real memory of real cards (cuda.py).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

GIB = 1 << 30


class Refused(Exception):
    """Not enough is free; the message is vLLM's."""


@dataclass(frozen=True)
class Card:
    """One card of CUDA_VISIBLE_DEVICES: `index` as NVML counts, `rank` as CUDA does within this engine."""

    directory: Path
    index: int
    rank: int
    total: int

    def free(self) -> int:
        return self.total - sum(size for gpu, size in held(self.directory) if gpu == self.index)

    def check(self, utilization: float, *, refuse: bool = False) -> None:
        """vLLM's look at the whole card before it loads anything (`request_memory`)."""
        free, need = self.free(), self.total * utilization
        if refuse or free < need:
            raise refusal(self.rank, free, self.total, utilization)

    def hold(self, size: float, pid: int | None = None) -> None:
        """Hold `size` bytes of this card by this process (or `pid`), which holds no other card."""
        file = self.directory / "held.d" / str(pid or os.getpid())
        draft = file.with_name(f"draft.{file.name}")
        draft.write_text(f"{self.index} {int(size)}\n")
        draft.rename(file)


def refusal(rank: int, free: float, total: float, utilization: float) -> Refused:
    return Refused(
        f"Free memory on device cuda:{rank} ({free / GIB:.2f}/{total / GIB:.2f} GiB) on startup is less than "
        f"desired GPU memory utilization ({utilization}, {total * utilization / GIB:.2f} GiB). "
        "Decrease GPU memory utilization or reduce GPU memory used by other processes."
    )


def visible(count: int) -> list[Card]:
    """The first `count` cards that this engine may use, in CUDA's order."""
    if os.environ.get("STANDIN_CUDA") == "1":
        import cuda  # only here: most hosts have no driver

        return cuda.visible(count)
    directory = os.environ.get("LLMD_NVML_DIR")
    if not directory:
        return []
    totals = {}
    for line in (Path(directory) / "gpus").read_text().splitlines():
        if line.startswith("gpu "):
            _, index, *pairs = line.split()
            told = dict(pair.split("=", 1) for pair in pairs)
            totals[int(index)] = int(told["total"]) - int(told.get("reserved", 0))  # as CUDA counts
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, totals)))
    indices = [int(index) for index in chosen.split(",") if index.strip()]
    return [Card(Path(directory), index, rank, totals[index]) for rank, index in enumerate(indices[:count])]


def held(directory: Path) -> list[tuple[int, int]]:
    """(card, bytes) of every process that is alive."""
    found = []
    for file in (directory / "held.d").iterdir():
        if file.name.isdigit() and alive(int(file.name)):
            found += [
                (int(words[0]), int(words[1])) for words in map(str.split, file.read_text().splitlines())
            ]
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
