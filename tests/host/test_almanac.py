"""What was learned, on disk: what comes back, and what a bad file or a full disk costs."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.config import Config, Profile
from supervisor.core.command import fingerprint
from supervisor.core.devices import Card
from supervisor.core.learned import Learned
from supervisor.host.almanac import FILE, Almanac, learned_totals

KNOWN = Learned("0.32.0", 40.0, 2.0, 30.0, 8, {"GPU-0": 20}, {"GPU-0": 1}, rung=2, sleepless=True)
KNOWN = KNOWN.counted(400, 120)


@pytest.fixture
def almanac(tmp_path: Path) -> Iterator[Almanac]:
    made = Almanac(tmp_path / "learned.db")
    yield made
    made.close()


def reopened(almanac: Almanac) -> dict[str, tuple[Learned, ...]]:
    """What the next daemon recalls of llama_0."""
    almanac.close()
    later = Almanac(almanac.path)
    found = later.recall({"llama_0": "a"})
    later.close()
    return found


def test_all_that_was_learned_comes_back(almanac: Almanac) -> None:
    almanac.keep("llama_0", "a", KNOWN)
    assert reopened(almanac) == {"llama_0": (KNOWN,)}
    assert almanac.path.stat().st_mode & 0o777 == 0o600


def test_nothing_is_known_of_a_first_day(almanac: Almanac) -> None:
    assert almanac.recall({"llama_0": "a"}) == {}
    assert almanac.trouble is None


def test_other_arguments_are_another_row_and_the_newest_version_counts(almanac: Almanac) -> None:
    almanac.keep("llama_0", "b", Learned("0.32.0", start=9.0))
    almanac.keep("llama_0", "a", KNOWN)
    assert reopened(almanac) == {"llama_0": (KNOWN,)}
    newer = Learned("0.33.0", start=50.0)
    almanac.keep("llama_0", "a", newer)
    assert reopened(almanac) == {"llama_0": (newer, KNOWN)}
    rows = sqlite3.connect(almanac.path).execute("SELECT version, arguments FROM learned").fetchall()
    assert sorted(rows) == [("0.32.0", "a"), ("0.32.0", "b"), ("0.33.0", "a")]


def test_figures_of_an_earlier_llmd_have_no_rung_and_sleep(almanac: Almanac) -> None:
    almanac.keep("llama_0", "a", KNOWN)
    figures = '{"version": "0.32.0", "start": 40.0}'
    almanac._database.connection().execute("UPDATE learned SET figures = ?", (figures,))
    assert reopened(almanac) == {"llama_0": (Learned("0.32.0", start=40.0),)}


def test_it_is_written_ahead(almanac: Almanac) -> None:
    almanac.keep("llama_0", "a", KNOWN)
    connection = sqlite3.connect(almanac.path)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def torn(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def scrambled(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[100:] = b"\xff" * (len(whole) - 100)
    path.write_bytes(whole)


def junk(path: Path) -> None:
    path.write_bytes(b"this is no database at all, but long enough to be looked at\n" * 100)


def future(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=2")
    connection.close()


@pytest.mark.parametrize("spoil", [torn, scrambled, junk, future])
def test_a_bad_file_is_set_aside_and_said_and_a_new_one_begun(
    almanac: Almanac, spoil: object, capsys: pytest.CaptureFixture[str]
) -> None:
    almanac.keep("llama_0", "a", KNOWN)
    almanac.close()
    assert callable(spoil)
    spoil(almanac.path)
    bad = almanac.path.read_bytes()
    assert reopened(almanac) == {}
    assert almanac.path.with_name("learned.db.aside").read_bytes() == bad
    assert "figures_set_aside" in capsys.readouterr().err
    almanac.keep("llama_0", "a", KNOWN)
    assert reopened(almanac) == {"llama_0": (KNOWN,)}


def test_an_empty_file_is_a_new_one(almanac: Almanac) -> None:
    almanac.path.touch()
    almanac.keep("llama_0", "a", KNOWN)
    assert reopened(almanac) == {"llama_0": (KNOWN,)}


def test_a_row_that_cannot_be_read_is_passed_over(
    almanac: Almanac, capsys: pytest.CaptureFixture[str]
) -> None:
    almanac.keep("llama_0", "a", KNOWN)
    almanac.keep("coder_0", "c", KNOWN)
    connection = sqlite3.connect(almanac.path)
    connection.execute("UPDATE learned SET figures = '{\"start\": \"soon\"}' WHERE profile = 'llama_0'")
    connection.commit()
    connection.close()
    assert almanac.recall({"llama_0": "a", "coder_0": "c"}) == {"coder_0": (KNOWN,)}
    assert "figures_unreadable" in capsys.readouterr().err


def test_a_full_disk_is_said_once_and_over_when_there_is_room(
    almanac: Almanac, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    almanac.keep("llama_0", "a", KNOWN)
    full = almanac._database.connection()
    full.execute("PRAGMA max_page_count=1")  # SQLite answers as it does where a write finds no room
    large = Learned("0.32.0", peak={f"GPU-{number}": number for number in range(2000)})
    monkeypatch.setattr(almanac._database, "close", lambda: None)
    for _ in range(3):
        almanac.keep("llama_0", "a", large)
    assert almanac.trouble is not None
    assert "full" in almanac.trouble
    assert capsys.readouterr().err.count("figures_not_kept") == 1
    full.execute("PRAGMA max_page_count=1000")
    almanac.keep("llama_0", "a", large)
    assert almanac.trouble is None
    monkeypatch.undo()
    assert reopened(almanac) == {"llama_0": (large,)}


def test_a_directory_in_its_place_is_not_fatal(almanac: Almanac) -> None:
    almanac.path.mkdir()
    assert almanac.recall({"llama_0": "a"}) == {}
    almanac.keep("llama_0", "a", KNOWN)
    assert almanac.trouble


def test_a_missing_state_directory_is_not_fatal(tmp_path: Path) -> None:
    almanac = Almanac(tmp_path / "gone" / "learned.db")
    assert almanac.recall({"llama_0": "a"}) == {}
    assert almanac.trouble


# The key


def test_arguments_that_shape_the_engine_tell_rows_apart() -> None:
    config = Config(path=Path("llmd.toml"))
    llama = Profile(name="llama_0", model="llama", weights="w", gpus=(0,))
    known = fingerprint(llama, config)
    same: list[dict[str, object]] = [{"idle_ttl": 5.0}, {"pin": True}, {"max_queue": 3}, {"model": "other"}]
    other: list[dict[str, object]] = [
        {"weights": "v"},
        {"args": ("--x",)},
        {"gpus": (1,)},
        {"max_concurrent": 9},
    ]
    assert {fingerprint(llama.model_copy(update=change), config) for change in same} == {known}
    changed = {fingerprint(llama.model_copy(update=change), config) for change in other}
    assert len(changed) == 4
    assert known not in changed


def test_cudas_totals_come_back_by_gpu_driver_and_nvmls_total(almanac: Almanac) -> None:
    cards = {Card("GPU-0", "590.1", 24): 23, Card("GPU-0", "600.0", 24): 22, Card("GPU-1", "", 24): 23}
    for card, total in cards.items():
        almanac.keep_total(card, 20)
        almanac.keep_total(card, total)
    assert almanac.totals() == cards
    assert learned_totals(almanac.path.parent) == cards  # while the daemon runs
    almanac.close()
    assert learned_totals(almanac.path.parent) == cards


def test_looking_for_totals_leaves_no_trace(tmp_path: Path) -> None:
    assert learned_totals(tmp_path) == {}
    assert list(tmp_path.iterdir()) == []
    junk_file = tmp_path / FILE
    junk_file.write_bytes(b"no database" * 500)
    assert learned_totals(tmp_path) == {}
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_file_of_an_earlier_llmd_knows_no_totals(almanac: Almanac) -> None:
    almanac.keep("llama_0", "a", KNOWN)
    almanac._database.connection().execute("DROP TABLE totals")
    assert learned_totals(almanac.path.parent) == {}
    almanac.close()
    assert almanac.totals() == {}
    assert almanac.recall({"llama_0": "a"}) == {"llama_0": (KNOWN,)}
