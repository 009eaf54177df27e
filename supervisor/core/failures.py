"""What an engine's end means: exit code and last log lines -> a class of failure and words for people.

The texts were read in vLLM's source; the last line is always "Engine core initialization failed. See root
cause above", so the cause is searched for in the whole tail, most telling first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class FailureClass(StrEnum):
    IMPOSSIBLE = "impossible"
    CONTENTION = "contention"
    ADDRESS_TAKEN = "address taken"
    TRANSIENT = "transient"
    OUT_OF_MEMORY = "out of memory"
    GPU_SICK = "gpu sick"


@dataclass(frozen=True, slots=True)
class Failure:
    kind: FailureClass
    message: str
    tail: tuple[str, ...] = ()
    """The last lines of the engine's log, as shown with the message."""
    serving: bool = False
    """It had been ready: what it failed at was no start."""

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


_SIGNS: tuple[tuple[FailureClass, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        (FailureClass.GPU_SICK, r"\bXid\b|GPU is lost|uncorrectable (ECC|NVLink)|cudaErrorECC"),
        (FailureClass.CONTENTION, r"Free memory on device .* is less than desired GPU memory utilization"),
        (FailureClass.CONTENTION, r"Available memory on node \d+ \("),
        (FailureClass.ADDRESS_TAKEN, r"Address already in use|EADDRINUSE"),
        (FailureClass.IMPOSSIBLE, r"No available memory for the cache blocks"),
        (FailureClass.IMPOSSIBLE, r"To serve at least one request with the model's max seq len"),
        (FailureClass.IMPOSSIBLE, r"unrecognized arguments|error: argument|Invalid repository ID"),
        (
            FailureClass.IMPOSSIBLE,
            r"is not a (local folder|valid model identifier)|No such file or directory",
        ),
        (FailureClass.IMPOSSIBLE, r"ValidationError.*|is not supported for now|GatedRepoError"),
        (FailureClass.OUT_OF_MEMORY, r"CUDA out of memory|torch\.OutOfMemoryError"),
        (FailureClass.OUT_OF_MEMORY, r"not enough GPU memory|MemoryError|Cannot allocate memory"),
    )
)

_PREFIX = r"\((?:EngineCore|Worker)\w* pid=\d+\) ERROR [\d-]+ [\d:]+ \[\w+\.py:\d+\] "
"""Of a line that the engine core or its worker logged, from its very beginning: vLLM puts it before each line of
each process, so that no request can write one."""

_OWN_ACCOUNTS = (
    (
        FailureClass.OUT_OF_MEMORY,
        re.compile(
            _PREFIX + r"(?:torch\.(?:cuda\.)?OutOfMemoryError: |RuntimeError: Worker failed with error ')?"
            r"CUDA out of memory\. "
        ),
    ),
    (
        FailureClass.GPU_SICK,
        re.compile(
            _PREFIX + r"(?:torch\.AcceleratorError|RuntimeError): CUDA error: uncorrectable (?:ECC|NVLink) "
        ),
    ),
)
"""The last line of a traceback, by what it died of while serving."""

SHOWN_LINES = 8


def classify(code: int | None, tail: Sequence[str], *, was_ready: bool) -> Failure:
    """The failure behind an exit that llmd did not ask for.

    `code`: exit status, negative for a signal, None where unknown (an adopted engine). vLLM exits 0 when
    its engine core dies, so 0 is a crash like any other. Text only counts while the engine loads: later
    the log may hold whatever a request contained, and only the engine core's own account is believed.
    """
    shown = tuple(tail[-SHOWN_LINES:])
    if not was_ready:
        for kind, sign in _SIGNS:
            line = next((line for line in tail if sign.search(line)), None)
            if line is not None:
                return Failure(kind, _trim(line), shown)
        if code == 2:
            return Failure(FailureClass.IMPOSSIBLE, "vllm refused its command line (exit 2)", shown)
        return Failure(FailureClass.TRANSIENT, f"{_how(code)} while loading", shown)
    for kind, account in _OWN_ACCOUNTS:
        line = next((line for line in tail if account.match(line)), None)
        if line is not None:
            return Failure(kind, _trim(line), shown, serving=True)
    return Failure(FailureClass.TRANSIENT, f"{_how(code)} while serving", shown, serving=True)


def _how(code: int | None) -> str:
    if code is None:
        return "the engine ended"
    return f"the engine was killed by signal {-code}" if code < 0 else f"the engine exited with status {code}"


def _trim(line: str) -> str:
    """Without the logger's prefix (`(EngineCore pid=1) ERROR 11-23 09:30:00 [core.py:1] text` -> `text`)."""
    return re.sub(r"^(\(.*?\)\s*)?([A-Z]+ \S+ \S+ \[[^\]]*\]\s*)?", "", line).strip()[:400]
