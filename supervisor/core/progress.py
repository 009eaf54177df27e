"""What an engine's log says of its start. For display and the progress deadline only: wording changes."""

from __future__ import annotations

import re
from dataclasses import dataclass


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
