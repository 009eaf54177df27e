"""Logs for people who look on: the end first, then what is new, and never more than they can read."""

from __future__ import annotations

from pathlib import Path

from supervisor.host.logbook import Recent, log
from supervisor.web.ui.tail import LINES, OfDaemon, OfEngine


def test_only_whole_lines_without_colours(tmp_path: Path) -> None:
    path = tmp_path / "log"
    look = OfEngine(path)
    assert look() == []
    path.write_text("\x1b[31mone\x1b[0m\nhal")
    assert look() == ["one"]
    with path.open("a") as file:
        file.write("f\n")
    assert look() == ["half"]
    assert look() == []


def test_a_log_that_was_cut_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "log"
    look = OfEngine(path)
    path.write_text("a long line\n")
    look()
    path.write_text("new\n")
    assert look() == ["new"]


def test_a_flood_is_left_out_but_its_end(tmp_path: Path) -> None:
    path = tmp_path / "log"
    look = OfEngine(path)
    path.write_text("first\n")
    look()
    with path.open("a") as file:
        file.writelines(f"line {number}\n" for number in range(200_000))
    lines = look()
    assert (lines[0], lines[-1], len(lines)) == ("...", "line 199999", LINES + 1)


def test_the_daemons_own_lines() -> None:
    look = OfDaemon()
    look()
    log("something", profile="llama_0")
    (line,) = look()
    assert '"event": "something"' in line
    assert look() == []


def test_the_lines_kept_are_bounded() -> None:
    recent = Recent(most=3)
    for number in range(5):
        recent.add(str(number))
    assert recent.since(0) == (["2", "3", "4"], 5)
    assert (recent.since(4), recent.since(5)) == ((["4"], 5), ([], 5))
