"""A cgroup for a test's own processes, where this host lets us make one."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.host import cgroup


@pytest.fixture
def fresh_group() -> Path:
    """Whoever asks for it removes it."""
    mount = cgroup._mount()
    if mount is None:
        pytest.skip("this host has no cgroup version 2 mounted")
    try:
        return cgroup.create(cgroup.delegated_root() or mount[1], secrets.token_hex(4))
    except OSError as error:
        pytest.skip(f"no right to make a cgroup here: {error.strerror}")


@pytest.fixture
def group(fresh_group: Path) -> Iterator[Path]:
    yield fresh_group
    cgroup.kill(fresh_group)
    assert cgroup.remove(fresh_group)
