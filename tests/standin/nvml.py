"""Imaginary GPUs: builds the stand-in NVML (nvml.c says what it imitates) and writes the state it reads.

A program under test gets it by `FakeGpus.env(library)` in its environment: LD_LIBRARY_PATH must be set before
a process starts. For a test in its own process, `preload(library)` loads it once; as its soname is
libnvidia-ml.so.1, the loader then gives it to nvidia-ml-py's dlopen of that name, which stays unpatched. The
test process keeps it for good, so a test of a real GPU belongs in a process of its own.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import os
import subprocess
from pathlib import Path

GIB = 1 << 30
_SOURCE = Path(__file__).with_name("nvml.c")


def build(directory: Path) -> Path:
    """Compile nvml.c below `directory`, once for each text of it; the result belongs in LD_LIBRARY_PATH."""
    library = directory / f"nvml-{hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:12]}"
    if not (library / "libnvidia-ml.so.1").exists():
        library.mkdir(parents=True, exist_ok=True)
        draft = library / f"draft.{os.getpid()}"
        flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-Wl,-soname,libnvidia-ml.so.1"]
        subprocess.run(["cc", *flags, "-o", draft, _SOURCE], check=True)
        draft.rename(library / "libnvidia-ml.so.1")
    return library


def preload(library: Path) -> None:
    """Make the stand-in the libnvidia-ml.so.1 of this process, unless it has one already."""
    ctypes.CDLL(str(library / "libnvidia-ml.so.1"), mode=ctypes.RTLD_GLOBAL)


class FakeGpus:
    """A host with `count` cards of `total` bytes; its state lies in `directory`, and every change is atomic.

    Keys of the host (`host`): init=ok|driver_mismatch|not_loaded, driver=VERSION, generation=N (a new N makes
    NVML uninitialised, as a driver reload does), api=new|old (old lacks what came with driver 510).
    Keys of a card (`card`): uuid, name, pci, total, reserved (bytes), memory=ok|not_supported|lost|unknown,
    processes=ok|not_supported|no_permission|unsized (pids without sizes), hang=SECONDS of each memory and
    process call, events=ok|not_supported, linger=SECONDS until the memory of a dead process is back, and
    utilization (percent), temperature (Celsius), power (milliwatts), persistence (0, 1), threshold (Celsius),
    ecc (uncorrected errors), throttle (NVML's bits), remap (1 pending, 2 failed), which are not supported where
    absent.
    """

    def __init__(self, directory: Path, count: int = 2, total: int = 24 * GIB) -> None:
        self.directory = directory
        self._host: dict[str, object] = {"init": "ok"}
        self._cards: list[dict[str, object]] = []
        (directory / "held.d").mkdir(parents=True, exist_ok=True)
        (directory / "xids.d").mkdir(exist_ok=True)
        self._reported = itertools.count()
        for index in range(count):
            self._cards.append(
                {
                    "uuid": f"GPU-{index:08x}-0000-4000-8000-000000000000",
                    "name": "NVIDIA GeForce RTX 4090",
                    "pci": f"00000000:{index + 1:02X}:00.0",
                    "total": total,
                }
            )
        self._write()

    def env(self, library: Path) -> dict[str, str]:
        """What to add to a program's environment; `library` is what `build` returned."""
        paths = [str(library), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        return {"LLMD_NVML_DIR": str(self.directory), "LD_LIBRARY_PATH": ":".join(paths)}

    def uuid(self, index: int) -> str:
        return str(self._cards[index]["uuid"])

    def host(self, **keys: object) -> None:
        self._host |= keys
        self._write()

    def card(self, index: int, **keys: object) -> None:
        self._cards[index] |= keys
        self._write()

    def remove(self, index: int) -> None:
        """Take a card out; those behind it move up by one."""
        del self._cards[index]
        self._write()

    def foreign(self, pid: int, gpu: int, size: int, kind: str = "C") -> None:
        """Let process `pid` hold `size` bytes of one card, and nothing else; `kind` is C, G or CG."""
        self._replace(self.directory / "held.d" / str(pid), f"{gpu} {size} {kind}\n")

    def release(self, pid: int) -> None:
        (self.directory / "held.d" / str(pid)).unlink(missing_ok=True)

    def xid(self, index: int, number: int) -> None:
        """Have the driver report an error of a card, to who listens for it."""
        self._replace(self.directory / "xids.d" / str(next(self._reported)), f"{index} {number}\n")

    def _write(self) -> None:
        lines = [_line(self._host), *(f"gpu {i} {_line(card)}" for i, card in enumerate(self._cards))]
        self._replace(self.directory / "gpus", "\n".join(lines) + "\n")

    def _replace(self, file: Path, text: str) -> None:
        draft = file.with_name(f"draft.{file.name}")
        draft.write_text(text)
        draft.rename(file)


def _line(keys: dict[str, object]) -> str:
    return " ".join(f"{key}={str(value).replace(' ', '_')}" for key, value in keys.items())
