"""Files that are whole or not there, and never another one's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.host import draft


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.fixture
def mask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.usefixtures("mask")
def test_a_new_file_is_for_everyone_to_read(tmp_path: Path) -> None:
    draft.create(tmp_path / "a.toml", "x = 1\n")
    assert (tmp_path / "a.toml").read_text() == "x = 1\n"
    assert (tmp_path / "a.toml").stat().st_mode & 0o777 == 0o644
    assert names(tmp_path) == ["a.toml"]


def test_what_is_there_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("theirs")
    with pytest.raises(FileExistsError):
        draft.create(tmp_path / "a.toml", "ours")
    assert (tmp_path / "a.toml").read_text() == "theirs"
    assert names(tmp_path) == ["a.toml"]


def test_a_replaced_file_keeps_its_mode_and_the_link_that_leads_to_it(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "real").chmod(0o640)
    (tmp_path / "link").symlink_to("real")
    draft.replace(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o640
    assert names(tmp_path) == ["link", "real"]


def test_no_file_is_made_by_replacing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        draft.replace(tmp_path / "a", "x")
    assert names(tmp_path) == []
