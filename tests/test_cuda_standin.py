"""The stand-in's hold on real CUDA memory, against a driver of a few lines of C: which calls, in which order."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = r"""
#include <stddef.h>
#include <stdint.h>
static int ready, entered; static size_t held, sizes[64]; static int count;
int cuInit(unsigned flags) { ready = 1; return flags; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ready ? 0 : 3; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)(intptr_t)(device + 1); return 0; }
int cuCtxSetCurrent(void *context) { entered = context != 0; return 0; }
int cuMemGetInfo_v2(size_t *free, size_t *total) { *total = 1 << 30; *free = *total - held; return entered ? 0 : 201; }
int cuMemAlloc_v2(uint64_t *address, size_t size) {
    if (held + size > 1 << 30) return 2;
    sizes[count] = size; *address = ++count; held += size; return entered ? 0 : 201;
}
int cuMemFree_v2(uint64_t address) { held -= sizes[address - 1]; return 0; }
"""

USE = """
import sys
sys.path.insert(0, sys.argv[1])
import cuda, vram
(card,) = vram.visible(1)
card.check(0.9)
for size in (100, 300, 200):
    card.hold(size << 20)
    print((card.total - card.free()) >> 20)
try:
    card.check(0.9)
except vram.Refused as refused:
    print(refused)
try:
    card.hold(2 << 30)
except cuda.CudaError as error:
    print(error)
"""


@pytest.fixture
def library(tmp_path: Path) -> Path:
    source = tmp_path / "cuda.c"
    source.write_text(DRIVER)
    built = tmp_path / "libcuda.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", built, source], check=True)
    return tmp_path


def test_memory_is_taken_given_back_and_refused(library: Path) -> None:
    env = os.environ | {"LD_LIBRARY_PATH": str(library), "STANDIN_CUDA": "1", "CUDA_VISIBLE_DEVICES": "0"}
    command = [sys.executable, "-c", USE, str(Path(__file__).parent / "standin")]
    said = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said[:2] == ["100", "300"]
    assert int(said[2]) <= 200
    assert said[3].startswith("Free memory on device cuda:0 (0.80/1.00 GiB) on startup is less than desired")
    assert said[4] == "cuMemAlloc_v2 returned 2"
