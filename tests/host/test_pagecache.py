"""Weights are in memory before they are needed."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from pathlib import Path

import pytest

from supervisor.host import pagecache

SIZE = 8 << 20


def resident(file: Path) -> float:
    """The share of a file's pages that is in the page cache, by mincore(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as mapped:
        pages = len(mapped) // mmap.PAGESIZE
        found = (ctypes.c_ubyte * pages)()
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(mapped)), found) == 0
        return sum(page & 1 for page in found) / pages


@pytest.fixture
def cold(tmp_path: Path) -> Path:
    """A directory of weights that is not in memory."""
    file = tmp_path / "model.safetensors"
    file.write_bytes(os.urandom(SIZE))
    fd = os.open(file, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    (tmp_path / "README.md").write_text("no weights")
    if resident(file) > 0.1:
        pytest.skip(
            "this file system keeps all of its files in memory (tmpfs), so that none can be read into it"
        )
    return tmp_path


def test_weights_are_read_ahead(cold: Path) -> None:
    assert pagecache.warm(cold) == SIZE
    deadline = time.monotonic() + 10
    while resident(cold / "model.safetensors") < 0.99:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_no_more_than_memory_holds(cold: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pagecache, "SHARE", 0.0)
    assert pagecache.warm(cold) == 0
    assert resident(cold / "model.safetensors") < 0.1
