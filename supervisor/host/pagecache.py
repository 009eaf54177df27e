"""Reads weights into the page cache ahead of a start that is foreseen: a load from memory, not from disk."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

_SUFFIXES = frozenset({".safetensors", ".bin", ".gguf"})

SHARE = 0.8
"""Of the memory that is available now; more would push out what was just read."""


def warm(directory: Path) -> int:
    """Ask the kernel to read the weight files below `directory`; it goes on in the background. The bytes asked for."""
    room = int(psutil.virtual_memory().available * SHARE)
    asked = 0
    for file in sorted(file for file in directory.iterdir() if file.suffix in _SUFFIXES):
        size = file.stat().st_size
        if asked + size > room:
            break
        _will_need(file, size)
        asked += size
    return asked


def _will_need(file: Path, size: int) -> None:
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(fd, 0, size, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(fd)
