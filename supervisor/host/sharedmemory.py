"""POSIX shared memory of a process tree: the files in /dev/shm that outlive it when it is killed.

vLLM's processes hand each other tensors through them, 160 MiB and more an engine, and unlink them when they
end in order. The kernel does not know who made a file, so those that are mapped or open are noted by inode
while the tree lives, and are looked for when it is gone. A semaphore is mapped under another name than its
own; a tmpfs gives out an inode's number once.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from threading import Thread

from supervisor.host import procfs

MOUNT = Path("/dev/shm")

PATIENCE = 0.5
"""Seconds that a note or a sweep may hold up its caller."""


class SharedMemory:
    """What one tree uses of it. One thread at a time.

    To read what a process maps takes its memory lock, which a process stuck in a driver never gives back: so
    that is done in a thread of its own, and nothing more is asked while one is stuck.
    """

    def __init__(self) -> None:
        self._noted: set[int] = set()
        self._thread: Thread | None = None

    def note(self, pids: Iterable[int]) -> None:
        """Remember what these processes use; they must be the tree's own, and alive."""
        own = tuple(pids)
        if own and MOUNT.is_dir():
            self._patiently(lambda: self._look(own))

    def sweep(self) -> None:
        """Unlink what was noted and nobody uses. Call when the tree is gone. Reads all of /proc."""
        if self._noted:
            self._patiently(self._unlink)

    def _patiently(self, work: Callable[[], None]) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = Thread(target=work, name="shared memory", daemon=True)
            self._thread.start()
            self._thread.join(PATIENCE)

    def _look(self, pids: tuple[int, ...]) -> None:
        for pid in pids:
            self._noted |= procfs.inodes(pid, MOUNT)

    def _unlink(self) -> None:
        left = {number: path for number, path in _private() if number in self._noted}
        if left:
            for process in procfs.processes():
                for number in procfs.inodes(process.pid, MOUNT):
                    left.pop(number, None)
        for path in left.values():
            path.unlink(missing_ok=True)


def _private() -> Iterator[tuple[int, Path]]:
    """Inode and path of the files that are ours alone: nobody else's processes, which may hide what they use."""
    for path in MOUNT.iterdir():
        with contextlib.suppress(FileNotFoundError):
            seen = path.lstat()
            if stat.S_ISREG(seen.st_mode) and seen.st_uid == os.geteuid() and not seen.st_mode & 0o077:
                yield seen.st_ino, path
