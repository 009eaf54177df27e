"""The journal of decisions: bounded, readable after a crash, silent about a full disk but once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from supervisor.host.chronicle import LONGEST, Chronicle, stamp


@pytest.fixture
def chronicle(tmp_path: Path) -> Iterator[Chronicle]:
    made = Chronicle(tmp_path / "decisions.jsonl")
    yield made
    made.close()


def entry(number: int = 0, profile: str | None = "llama_0", **facts: Any) -> dict[str, Any]:
    return {"event": "evict", "profile": profile, "model": "llama", "message": f"n{number}", **facts}


def messages(chronicle: Chronicle, **asked: Any) -> list[str]:
    return [found["message"] for found in chronicle.read(**asked)]


def test_what_is_written_is_read_oldest_first_with_its_inputs(chronicle: Chronicle) -> None:
    for number in range(5):
        chronicle.write(entry(number, worth=0.5))
    assert messages(chronicle) == ["n0", "n1", "n2", "n3", "n4"]
    (last,) = chronicle.read(limit=1)
    assert (last["message"], last["worth"]) == ("n4", 0.5)
    assert abs(datetime.now(UTC) - datetime.fromisoformat(last["at"])) < timedelta(minutes=1)
    assert chronicle.path.stat().st_mode & 0o777 == 0o640


def test_it_is_asked_by_profile_by_model_and_by_whoever_was_made_room_for(chronicle: Chronicle) -> None:
    chronicle.write(entry(1))
    chronicle.write(entry(2, profile=None))
    chronicle.write({"profile": "coder_0", "model": "coder", "message": "n3", "by": "llama_0"})
    chronicle.write({"profile": None, "message": "n4"})
    assert messages(chronicle, names=frozenset({"llama_0"})) == ["n1", "n3"]
    assert messages(chronicle, names=frozenset({"llama", "llama_0"})) == ["n1", "n2", "n3"]
    assert messages(chronicle) == ["n1", "n2", "n3", "n4"]


def test_since(chronicle: Chronicle) -> None:
    now = datetime.now(UTC)
    old = json.dumps({"at": stamp(now - timedelta(hours=2)), "message": "old"})
    chronicle.path.write_text(old + "\n")
    chronicle.write(entry(1))
    assert messages(chronicle, since=now - timedelta(hours=1)) == ["n1"]
    assert messages(chronicle, since=now - timedelta(hours=3)) == ["old", "n1"]


def test_both_halves_stay_within_the_cap_and_the_newest_is_kept(tmp_path: Path) -> None:
    chronicle = Chronicle(tmp_path / "d", cap=64 << 10)
    for number in range(2000):
        chronicle.write(entry(number, ballast="x" * 100))
    sizes = [path.stat().st_size for path in (chronicle.path, chronicle.older)]
    assert max(sizes) <= 32 << 10
    kept = messages(chronicle, limit=10_000)
    assert kept == [f"n{number}" for number in range(2000 - len(kept), 2000)]
    assert len(kept) > 100
    chronicle.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "d.1"]


def test_the_cap_holds_over_restarts(tmp_path: Path) -> None:
    for number in range(300):
        chronicle = Chronicle(tmp_path / "d", cap=16 << 10)
        chronicle.write(entry(number, ballast="x" * 100))
        chronicle.close()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 16 << 10


@pytest.mark.parametrize("torn", ['{"at": "2026-', '{"at": "20\xff', "\x00\x00\x00", "[]", '{"at": 3}'])
def test_a_torn_last_line_costs_itself_alone(chronicle: Chronicle, torn: str) -> None:
    chronicle.write(entry(1))
    chronicle.close()
    with chronicle.path.open("ab") as file:
        file.write(torn.encode("latin-1"))
    chronicle.write(entry(2))
    assert messages(chronicle) == ["n1", "n2"]


def test_an_entry_beyond_all_measure_loses_its_inputs(chronicle: Chronicle) -> None:
    chronicle.write(entry(1, log=["x" * LONGEST]))
    (found,) = chronicle.read()
    assert found["message"] == "n1"
    assert chronicle.path.stat().st_size <= LONGEST


def test_what_json_does_not_know_is_told_in_words(chronicle: Chronicle) -> None:
    chronicle.write(entry(1, where=Path("/x")))
    assert chronicle.read()[0]["where"] == "/x"


def test_a_full_disk_is_said_once_and_over_when_there_is_room(
    chronicle: Chronicle, capsys: pytest.CaptureFixture[str]
) -> None:
    chronicle.path.symlink_to("/dev/full")
    for number in range(3):
        chronicle.write(entry(number))
    assert chronicle.trouble is not None
    assert "No space left" in chronicle.trouble
    assert capsys.readouterr().err.count("decisions_not_written") == 1
    chronicle.path.unlink()
    chronicle.write(entry(9))
    assert chronicle.trouble is None
    assert messages(chronicle) == ["n9"]


def test_nothing_was_ever_written(chronicle: Chronicle) -> None:
    assert chronicle.read() == []
