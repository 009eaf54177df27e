from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from supervisor.core.devices import GIB, HOST, Reading
from supervisor.host.memory import read_host_memory


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 64 GiB with 50 GiB to be had."""
    machine = psutil.virtual_memory()._replace(total=64 * GIB, available=50 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)


def group(directory: Path, **files: object) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (directory / name.replace("__", ".")).write_text(f"{value}\n")


def read(root: Path, membership: str) -> Reading:
    (root / "membership").write_text(membership)
    return read_host_memory(lambda: 7.0, cgroups=root, membership=root / "membership")


def sizes(reading: Reading) -> tuple[float, float, float]:
    return reading.total / GIB, reading.used / GIB, reading.free / GIB


def test_the_machine_without_limits(tmp_path: Path) -> None:
    reading = read(tmp_path, "0::/system.slice/llmd.service\n")
    assert sizes(reading) == (64, 14, 50)
    assert (reading.device, reading.name, reading.index, reading.at) == (HOST, "host memory", None, 7.0)


def test_a_limit_of_the_process_own_group(tmp_path: Path) -> None:
    group(
        tmp_path / "system.slice/llmd.service",
        memory__max=16 * GIB,
        memory__current=6 * GIB,
        memory__stat=f"anon {3 * GIB}\ninactive_file {2 * GIB}",
    )
    reading = read(tmp_path, "0::/system.slice/llmd.service\n")
    assert sizes(reading) == (16, 4, 12)
    assert reading.name == "host memory (cgroup limit)"


def test_the_tightest_limit_above_binds(tmp_path: Path) -> None:
    group(tmp_path / "a.slice", memory__max=8 * GIB, memory__current=7 * GIB)
    group(tmp_path / "a.slice/b.service", memory__max=16 * GIB, memory__current=GIB)
    group(tmp_path / "a.slice/b.service/engine", memory__max="max", memory__current=GIB)
    assert sizes(read(tmp_path, "0::/a.slice/b.service/engine\n")) == (8, 7, 1)


def test_a_container_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    group(tmp_path, memory__max=8 * GIB, memory__current=2 * GIB)
    assert sizes(read(tmp_path, "0::/not/visible/here\n")) == (8, 2, 6)


def test_version_1(tmp_path: Path) -> None:
    group(
        tmp_path / "memory/box",
        memory__limit_in_bytes=32 * GIB,
        memory__usage_in_bytes=12 * GIB,
        memory__stat=f"inactive_file 1\ntotal_inactive_file {2 * GIB}",
    )
    assert sizes(read(tmp_path, "5:cpu,cpuacct:/box\n4:memory:/box\n0::/\n")) == (32, 10, 22)


def test_version_1_without_a_limit_is_a_huge_number(tmp_path: Path) -> None:
    group(tmp_path / "memory", memory__limit_in_bytes=2**63 - 4096, memory__usage_in_bytes=GIB)
    assert sizes(read(tmp_path, "4:memory:/\n")) == (64, 14, 50)


def test_less_is_free_than_the_limit_would_allow(tmp_path: Path) -> None:
    group(tmp_path, memory__max=60 * GIB, memory__current=GIB)
    assert sizes(read(tmp_path, "0::/\n")) == (60, 10, 50)


def test_a_group_over_its_limit_has_nothing_left(tmp_path: Path) -> None:
    group(tmp_path, memory__max=8 * GIB, memory__current=9 * GIB)
    assert sizes(read(tmp_path, "0::/\n")) == (8, 8, 0)


def test_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    reading = read_host_memory()
    assert 0 < reading.free < reading.total <= psutil.virtual_memory().total
    assert reading.total == reading.used + reading.free
    assert reading.trouble is None
