"""What vLLM prints while it starts: logs/{chat,embed,rerank}.log, recorded from the CPU build 0.32.0.

They hold stdout and stderr as they came, with `\\r`, blank lines and lines ending in `\\r\\n`; paths were edited.
Replayed for a card, they get the lines that only the CUDA build prints, whose wording is vLLM's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

LOGS = Path(__file__).with_name("logs")
GIB = 1 << 30
LISTENING = (
    b"Starting vLLM server on"  # from here on the API server speaks, and before that its children do too
)

LOADED = (
    b"(EngineCore pid=1) INFO 11-23 09:45:24 [gpu_model_runner.py:4820] "
    b"Model loading took 14.99 GiB memory and 3.21 seconds\n",
    b"(EngineCore pid=1) INFO 11-23 09:45:24 [monitor.py:34] torch.compile took 6.42 s in total\n",
    b"(EngineCore pid=1) INFO 11-23 09:45:24 [gpu_worker.py:356] Available KV cache memory: 5.11 GiB\n",
)
OOM = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.64 GiB "
    "of which 1.21 GiB is free. Including non-PyTorch memory, this process has 22.43 GiB memory in use."
)
GRAPHS = (b"\rCapturing CUDA graphs (decode, FULL):  50%|#####     | 4/8 [00:00<00:00, 20.1it/s]\n",)

LIKE = {"classify": "rerank", "speech": "chat"}
"""Tasks without a log of their own."""


def split(task: str, *, cuda: bool, weights: float = 14.99) -> tuple[list[bytes], list[bytes]]:
    """The lines before and from LISTENING on. A line ends in `\\n`; other breaks are part of it."""
    recorded = re.findall(rb"[^\n]*\n", (LOGS / f"{LIKE.get(task, task)}.log").read_bytes())
    everything = list(for_cuda(recorded, weights)) if cuda else recorded
    at = next(n for n, line in enumerate(everything) if LISTENING in line)
    return everything[:at], everything[at:]


def for_cuda(recorded: list[bytes], weights: float) -> Iterator[bytes]:
    for line in recorded:
        if b"init engine" in line:
            yield from GRAPHS
        yield line.replace(b"CPU KV cache size", b"GPU KV cache size")
        if b"Loading weights took" in line:
            yield from (line.replace(b"14.99", b"%.2f" % weights) for line in LOADED)


def used(rank: int, ranks: int, free: float, total: float, utilization: float) -> str:
    """What each GPU's worker says of its memory once the CUDA graphs are captured."""
    place = f"Worker_TP{rank}" if ranks > 1 else "EngineCore"
    return (
        f"({place} pid=1) INFO 11-23 09:45:25 [gpu_worker.py:1034] Free memory on device ({free / GIB:.2f}/"
        f"{total / GIB:.2f} GiB) on startup. Desired GPU memory utilization is ({utilization}, "
        f"{total * utilization / GIB:.2f} GiB). Actual usage is 15.10 GiB for consumed memory (weights + non-torch), "
        "1.23 GiB for peak activation, and 0.34 GiB for CUDAGraph memory.\n"
    )


def say(text: bytes | str) -> None:
    """Past every buffer, as one write: several processes share the file."""
    line = text if isinstance(text, bytes) else text.encode()
    os.write(1, re.sub(rb"pid=\d+\)", b"pid=%d)" % os.getpid(), line))


def fatal(message: str) -> None:
    """What EngineCore logs when it dies while serving; each request in flight then adds a traceback of its own."""
    head = f"(EngineCore pid={os.getpid()}) ERROR 11-23 09:50:24 [core.py:1310] "
    say(
        f"{head}EngineCore encountered a fatal error.\r\n{head}Traceback (most recent call last):\r\n{head}{message}\n"
    )
    say("(APIServer pid=1) ERROR 11-23 09:50:24 [serving.py:1202] EngineDeadError\n" * 80)


def failure(message: str) -> None:
    """The end of a start that failed, as EngineCore and then the API server print it."""
    head = f"(EngineCore pid={os.getpid()}) ERROR 11-23 09:45:24 [core.py:1510] "
    say(f"{head}EngineCore failed to start.\r\n{head}Traceback (most recent call last):\r\n{head}{message}\n")
    say("RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}\n")
