"""The memory that a stand-in engine holds on a real card, by the CUDA driver (libcuda.so.1) through ctypes.

In place of vram.Card where STANDIN_CUDA=1, for the tests that need a GPU. Nothing is computed: bytes are allocated
and kept, as an engine keeps its weights and KV cache. CUDA is begun in the process that first looks, never before a
fork, which a context does not survive. cuda.h tells the calls; `_v2` is what its names stand for.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass, field
from functools import cache

import vram


class CudaError(Exception):
    """A call of the driver did not return CUDA_SUCCESS."""


@dataclass
class CudaCard:
    """One card of CUDA_VISIBLE_DEVICES, by its rank there."""

    rank: int
    blocks: list[tuple[int, int]] = field(default_factory=list)
    """(address, bytes) of what is held."""

    @property
    def total(self) -> int:
        return self._info()[1]

    def free(self) -> int:
        return self._info()[0]

    def check(self, utilization: float, *, refuse: bool = False) -> None:
        """vLLM's look at the whole card before it loads anything (`request_memory`)."""
        free, total = self._info()
        if refuse or free < total * utilization:
            raise vram.refusal(self.rank, free, total, utilization)

    def hold(self, size: float, pid: int | None = None) -> None:
        """Hold `size` bytes, more or less than before. No process can hold for another: `pid` is this one."""
        assert pid in (None, os.getpid())
        self._enter()
        while self.blocks and sum(block for _, block in self.blocks) > size:
            address, _ = self.blocks.pop()
            call("cuMemFree_v2", ctypes.c_uint64(address))
        missing = int(size) - sum(block for _, block in self.blocks)
        if missing > 0:
            address = ctypes.c_uint64()
            call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(missing))
            self.blocks.append((address.value, missing))

    def _info(self) -> tuple[int, int]:
        self._enter()
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def _enter(self) -> None:
        call("cuCtxSetCurrent", context(self.rank))


@cache
def driver() -> ctypes.CDLL:
    library = ctypes.CDLL("libcuda.so.1")
    if code := library.cuInit(0):
        raise CudaError(f"cuInit returned {code}")
    return library


@cache
def context(rank: int) -> ctypes.c_void_p:
    """The primary context of a card, kept for the life of the process."""
    device, found = ctypes.c_int(), ctypes.c_void_p()
    call("cuDeviceGet", ctypes.byref(device), rank)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(found), device)
    return found


def call(name: str, *arguments: object) -> None:
    if code := getattr(driver(), name)(*arguments):
        raise CudaError(f"{name} returned {code}")


def visible(count: int) -> list[CudaCard]:
    chosen = [index for index in os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",") if index.strip()]
    return [CudaCard(rank) for rank in range(len(chosen))][:count]
