"""Whether the clock is kept right, as the kernel's own struct says it."""

from __future__ import annotations

import ctypes
import struct

from supervisor.host.clock import _status, is_synchronised


def test_the_kernel_is_asked_without_rights() -> None:
    assert is_synchronised() in (True, False)


def test_the_status_is_where_the_kernel_puts_it() -> None:
    """struct timex begins: int modes, long offset, freq, maxerror, esterror, int status."""
    assert ctypes.sizeof(ctypes.c_long) in (4, 8)
    timex = struct.pack("@illlli", 1, 2, 3, 4, 5, 0x2040)
    assert _status(timex) == 0x2040
