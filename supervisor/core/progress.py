"""What an engine's log says of its start: for display, the progress deadline and estimates. Wording changes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from supervisor.core.devices import GIB


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a start has come. `percent` is of the whole start, 0 to 100; 100 awaits only the first probe."""

    stage: str
    percent: float


_STAGES: tuple[tuple[str, str, float, float], ...] = (
    # words in the line, stage for people, percent at its start, percent at its end.
    # A percentage in the line lies between the two. The first match counts.
    ("Resolved architecture", "reading the model", 3, 3),
    ("Initializing a V1 LLM engine", "starting the engine", 6, 6),
    ("Starting to load model", "loading weights", 12, 12),
    ("checkpoint shards:", "loading weights", 12, 60),
    ("Loading weights took", "loading weights", 60, 60),
    ("Model loading took", "weights loaded", 62, 62),
    ("torch.compile took", "compiling", 72, 72),
    ("Directly load the compiled graph", "compiling", 72, 72),
    ("Available KV cache memory", "sizing the KV cache", 76, 76),
    ("KV cache size", "sizing the KV cache", 78, 78),
    ("Capturing CUDA graphs", "capturing CUDA graphs", 80, 92),
    ("init engine", "engine ready", 94, 94),
    ("Starting vLLM server on", "opening the socket", 97, 97),
    ("Application startup complete", "answering", 100, 100),
)

_PERCENT = re.compile(r"(\d{1,3})%")

_FACTS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("kv_cache_tokens", re.compile(r"[GC]PU KV cache size: ([\d,]+) tokens")),
    ("max_concurrency", re.compile(r"Maximum concurrency for [\d,]+ tokens per request: ([\d.,]+)x")),
    ("weights_gib", re.compile(r"Model loading took ([\d.]+) GiB memory")),
    ("load_seconds", re.compile(r"Model loading took .*? and ([\d.]+) seconds")),
)

_TOTAL = re.compile(
    r"\((?:EngineCore|Worker)(?P<place>\w*) pid=\d+\) .*"
    r"Free memory on device (?:cuda:(?P<rank>\d+) )?\([\d.]+/(?P<gib>[\d.]+) GiB\) on startup"
)
"""vLLM says so of each GPU: where too little is free (`request_memory`), else at the end of the start."""

_PLACE = re.compile(r"(?:_(?:DP|PP|PCP)0)*(?:_TP(?P<rank>\d+))?(?:_(?:DCP|EP)\d+)*")
"""Of a process among an engine's, in the first row of those that split layers; the ranks of others are not told."""

_SHORT = 0.00499
"""GiB by which a size of two decimals may be short of what was meant, so that it still reads as it was written."""

_TASKS = re.compile(r"Supported tasks: \[([^\]]*)\]")


def read_progress(line: str) -> Progress | None:
    """The stage a log line tells of; None for the many that tell of none."""
    for words, stage, start, end in _STAGES:
        if words in line:
            found = _PERCENT.search(line, line.index(words))
            share = min(int(found[1]), 100) / 100 if found else 0.0
            return Progress(stage, start + share * (end - start))
    return None


def read_facts(line: str) -> dict[str, float | tuple[str, ...]]:
    """The measured facts in a log line.

    `kv_cache_tokens`, `max_concurrency` (requests of full length), `weights_gib`, `load_seconds`, and `tasks`,
    the names of what the model can be asked for. Empty for most lines.
    """
    facts: dict[str, float | tuple[str, ...]] = {
        name: float(found[1].replace(",", "")) for name, pattern in _FACTS if (found := pattern.search(line))
    }
    if found := _TASKS.search(line):
        facts["tasks"] = tuple(task.strip(" '\"") for task in found[1].split(",") if task.strip(" '\""))
    return facts


def read_totals(lines: Iterable[str]) -> dict[int, int]:
    """CUDA rank -> the most bytes that CUDA may count on that GPU, where the log tells."""
    return dict(found for line in lines if (found := _read_total(line)))


def _read_total(line: str) -> tuple[int, int] | None:
    found = _TOTAL.match(line)
    place = found and _PLACE.fullmatch(found["place"])
    rank = found and (found["rank"] or (place and (place["rank"] or "0")))
    return (int(rank), math.ceil((float(found["gib"]) + _SHORT) * GIB)) if found and rank else None
