"""A file of lines that stays within a cap: when a half of the cap is full it becomes NAME.1, in the place of the
half before it. A line torn by a crash is left as it is, and the next one begins on a line of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


class Rollover:
    """Everything here blocks for a disk's time, and all of it is called from one thread. `cap`: bytes of both."""

    def __init__(self, path: Path, cap: int) -> None:
        self.path = path
        self.older = path.with_name(path.name + ".1")
        self._half = cap // 2
        self._file: int | None = None
        self._size = 0

    def append(self, line: bytes) -> None:
        """`line` ends with its line feed. Raises OSError."""
        file = self._opened()
        if self._size and self._size + len(line) > self._half:
            self.close()
            self.path.replace(self.older)
            file = self._opened()
        written = os.write(file, line)
        self._size += written
        if written < len(line):  # the disk is full now: whoever opens the file next mends its end
            self.close()

    def newest_first(self) -> Iterator[bytes]:
        """The lines, without their line feeds."""
        for path in (self.path, self.older):
            try:
                lines = path.read_bytes().splitlines()
            except OSError:
                continue
            yield from reversed(lines)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _opened(self) -> int:
        if self._file is None:
            self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
            self._size = os.fstat(self._file).st_size
            if self._size and os.pread(self._file, 1, self._size - 1) != b"\n":
                self._size += os.write(self._file, b"\n")
        return self._file
