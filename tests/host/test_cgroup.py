from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.host import cgroup


@pytest.fixture
def group(fresh_group: Path) -> Iterator[Path]:
    """Removed by nobody else, so that what is left in it is found."""
    yield fresh_group
    assert cgroup.remove(fresh_group)


def test_members_of_groups_below_count_and_die_with_it(group: Path) -> None:
    below = group / "below"
    below.mkdir()
    child = subprocess.Popen(["sleep", "600"])
    try:
        (below / "cgroup.procs").write_text(str(child.pid))
        assert cgroup.members(group) == {child.pid}
        assert not cgroup.remove(group)
        assert cgroup.kill(group)
        assert child.wait(5) == -9
    finally:
        child.kill()
        child.wait()
    assert cgroup.remove(group)
    assert not group.exists()
    group.mkdir()  # for the fixture


def test_a_group_that_is_not_there(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    assert cgroup.members(gone) == frozenset()
    assert not cgroup.kill(gone)
    assert cgroup.remove(gone)


def test_the_root_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(cgroup.OVERRIDE, str(tmp_path))
    assert cgroup.delegated_root() == tmp_path
    monkeypatch.setenv(cgroup.OVERRIDE, "")
    assert cgroup.delegated_root() is None


@pytest.mark.parametrize("attribute", ["user.delegate", "trusted.delegate"])
def test_only_a_group_that_systemd_gave_away_is_used(
    attribute: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: dict[tuple[Path, str], bytes] = {}

    def getxattr(path: Path, name: str) -> bytes:
        if (path, name) not in given:
            raise OSError("no such attribute")
        return given[path, name]

    monkeypatch.delenv(cgroup.OVERRIDE, raising=False)
    monkeypatch.setattr(cgroup, "_own_directory", lambda: tmp_path)
    monkeypatch.setattr(os, "getxattr", getxattr)
    assert cgroup.delegated_root() is None
    given[tmp_path, attribute] = b"1"
    assert cgroup.delegated_root() == tmp_path


@pytest.mark.parametrize(
    ("own", "mount", "expected"),
    [
        ("0::/system.slice/llmd.service", "/ /sys/fs/cgroup", "/sys/fs/cgroup/system.slice/llmd.service"),
        ("9:name=systemd:/\n0::/", "/ /sys/fs/cgroup/unified", "/sys/fs/cgroup/unified"),
        ("0::/pod/llmd", "/pod /sys/fs/cgroup", "/sys/fs/cgroup/llmd"),
        ("0::/podium", "/pod /sys/fs/cgroup", None),
        ("3:cpu:/", "/ /sys/fs/cgroup", None),
    ],
)
def test_where_this_process_is(
    own: str, mount: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    mountinfo = [
        "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw",
        "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu",
        f"41 31 0:38 {mount} rw,relatime shared:4 - cgroup2 cgroup2 rw",
    ]
    files = {"/proc/self/cgroup": own.splitlines(), "/proc/self/mountinfo": mountinfo}
    monkeypatch.setattr(cgroup, "_lines", files.__getitem__)
    assert cgroup._own_directory() == (None if expected is None else Path(expected))
