"""Who gets how many lines of a screen."""

from __future__ import annotations

import pytest
from rich.segment import Segment

from supervisor.cli.folding import Line, Section, shares


@pytest.mark.parametrize(
    ("wants", "room", "given"),
    [
        ([4, 2, 9], 20, [4, 2, 9]),
        ([4, 2, 9], 10, [4, 2, 4]),  # the last one has what is left
        ([9, 9, 9], 12, [9, 2, 1]),  # a line is left for each that comes after
        ([9, 9, 9], 4, [3, 1, 0]),  # but not of the least that the first one needs
        ([9, 9], 2, [2, 0]),
        ([9], 0, [0]),
        ([0, 5], 3, [0, 3]),
        ([9, 0, 5], 6, [5, 0, 1]),
        ([], 3, []),
    ],
)
def test_shares(wants: list[int], room: int, given: list[int]) -> None:
    assert shares(wants, room) == given


def told(section: Section, room: int) -> list[str]:
    return ["".join(segment.text for segment in line) for line in section.within(room)]


def lines(*words: str) -> list[Line]:
    return [[Segment(word)] for word in words]


ROWS = [lines("a"), lines("b"), lines("c"), lines("d")]


def test_a_section_is_whole_where_there_is_room() -> None:
    assert told(Section("model", ROWS, lines("HEAD")), 5) == ["HEAD", "a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("room", "at", "seen"),
    [
        (4, 0, ["HEAD", "a", "b", "2 more models"]),
        (4, 3, ["HEAD", "c", "d", "2 more models"]),
        (3, 2, ["HEAD", "c", "3 more models"]),
        (2, 0, ["4 more models"]),
        (1, 3, ["4 more models"]),
        (0, 0, []),
    ],
)
def test_a_section_folds_around_its_cursor(room: int, at: int, seen: list[str]) -> None:
    assert told(Section("model", ROWS, lines("HEAD"), at), room) == seen


def test_a_row_of_several_lines_is_shown_whole_or_not() -> None:
    section = Section("device", [lines("a", "a"), lines("b", "b")])
    assert told(section, 3) == ["a", "a", "1 more device"]
    assert told(section, 2) == ["2 more devices"]


def test_rows_that_are_too_far_off_to_be_drawn_are_counted() -> None:
    assert told(Section("request", ROWS, beyond=90), 3) == ["a", "b", "92 more requests"]
