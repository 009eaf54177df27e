"""What the kernel tells of processes, read from /proc. A process that goes away while it is read is None."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
_PIECE = 64 << 10


@dataclass(frozen=True, slots=True)
class Stat:
    """The part of /proc/PID/stat that tells whose a process is. `start_time`: clock ticks since boot."""

    pid: int
    state: str
    parent: int
    session: int
    start_time: int

    @property
    def alive(self) -> bool:
        """A zombie holds nothing but its number and its exit status: it counts as gone."""
        return self.state not in "ZXx"


def boot_id() -> str:
    """Differs after every boot, so that process ids of the last one can be told to be stale."""
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def stat(pid: int) -> Stat | None:
    text = _read(pid, "stat")
    if not text:
        return None
    # The second field is the program's name in parentheses and may itself hold spaces and parentheses.
    fields = text[text.rindex(b")") + 2 :].split()
    return Stat(pid, fields[0].decode(), int(fields[1]), int(fields[3]), int(fields[19]))


def processes() -> Iterator[Stat]:
    """Everything alive that this process can see."""
    for name in os.listdir(PROC):  # noqa: PTH208 - a Path per process is ten times the work
        if name.isdigit() and (found := stat(int(name))) is not None and found.alive:
            yield found


def environ(pid: int) -> dict[str, str] | None:
    """The environment a process was started with; None where it cannot be read or has been overwritten.

    Programs that set their own title (setproctitle) may write over this memory: an absent block says
    nothing, only one that is there does.
    """
    entries = (_read(pid, "environ") or b"").split(b"\0")
    pairs = (entry.decode(errors="replace").partition("=") for entry in entries)
    return {name: value for name, equals, value in pairs if equals} or None


def inodes(pid: int, mount: Path) -> set[int]:
    """The files of a mounted filesystem that a process maps or has open, deleted ones too.

    Waits for the process's memory lock, for ever where it is stuck in a driver that holds it.
    """
    device = mount.stat().st_dev
    number = rb"^\S+ \S+ \S+ %02x:%02x (\d+) " % (os.major(device), os.minor(device))
    mapped = {int(found) for found in re.findall(number, _read(pid, "maps") or b"", re.MULTILINE)}
    return mapped | {seen.st_ino for seen in _open_files(pid, f"{mount}/") if seen.st_dev == device}


def _open_files(pid: int, prefix: str) -> Iterator[os.stat_result]:
    """By the name first: a file on a dead network mount would never answer."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if str(link.readlink()).startswith(prefix):
                    yield link.stat()


def _read(pid: int, name: str) -> bytes | None:
    """By as few system calls as can be: at each, a thread lets go of the interpreter, and waits for it again."""
    try:
        file = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return b"".join(iter(lambda: os.read(file, _PIECE), b""))
        finally:
            os.close(file)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
