"""The C library's heap, told to keep what bodies of requests take and give back all the time.

glibc by default has the kernel map, clear and take back every block of some size anew: of a body of 2 MB that was a
third of the daemon's time.
"""

from __future__ import annotations

import ctypes

LARGEST = 16 << 20
"""Bytes of a block that is taken from the heap; what is larger goes back to the kernel at once."""

KEPT = 32 << 20
"""Bytes at the heap's end that are kept for the next."""

ARENAS = 1
"""One event loop makes nearly all objects: arenas for the threads beside it would keep what they once needed."""

_library = ctypes.CDLL(None)
_GLIBC = _library if hasattr(_library, "gnu_get_libc_version") else None
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of malloc.h


def keep() -> bool:
    """From now on, in this process; False where the C library is another, and nothing is changed."""
    if _GLIBC is None:
        return False
    options = {_MMAP_THRESHOLD: LARGEST, _TRIM_THRESHOLD: KEPT, _ARENA_MAX: ARENAS}
    return bool(min(_GLIBC.mallopt(option, value) for option, value in options.items()))


def trim() -> None:
    """Give back the pages that nothing lies on, wherever they are, in less than a millisecond: what a large body leaves
    behind is used by nobody until the next one."""
    if _GLIBC is not None:
        _GLIBC.malloc_trim(0)
