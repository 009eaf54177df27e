"""Sections of a screen, each as long as there is room for it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

Line = Sequence[Segment]

LEAST = 3
"""Lines of what comes first, where there are so many: a heading, a row, and how many more there are."""


@dataclass(frozen=True, slots=True)
class Section:
    """`what`: one of its rows, as it is called. `at`: the number of the row that stays in sight. `beyond`: how many
    rows there are besides, too far from that one to be seen."""

    what: str
    rows: Sequence[Sequence[Line]]
    head: Sequence[Line] = ()
    at: int = 0
    beyond: int = 0

    @property
    def height(self) -> int:
        return len(self.head) + sum(map(len, self.rows))

    def within(self, room: int) -> Iterator[Line]:
        """At most so many lines; the last one counts the rows that there is no room for."""
        whole = self.height <= room and not self.beyond
        rows = self.rows if whole else self._in_sight(room - len(self.head) - 1)
        if rows:
            yield from self.head
        for row in rows:
            yield from row
        if not whole and room:
            hidden = self.beyond + len(self.rows) - len(rows)
            yield [Segment(f"{hidden} more {self.what}{'s' * (hidden != 1)}", Style(dim=True))]

    def _in_sight(self, room: int) -> Sequence[Sequence[Line]]:
        first = max(0, self.at + 1 - room)
        ends = accumulate(map(len, self.rows[first:]))
        return self.rows[first : first + sum(end <= room for end in ends)]


def shares(wants: Sequence[int], room: int) -> list[int]:
    """Lines for each, by rank: all that it wants, but a line is left for each that comes after it and wants any."""
    given: list[int] = []
    for rank, want in enumerate(wants):
        later = sum(map(bool, wants[rank + 1 :]))
        least = min(room, 1 if rank else LEAST)
        given.append(min(want, max(room - later, least)))
        room -= given[-1]
    return given


def blocks(parts: Sequence[RenderableType], console: Console, options: ConsoleOptions) -> list[list[Line]]:
    """Each part in the lines that it takes."""
    return [list(console.render_lines(part, options, pad=False)) for part in parts]


def rows_of(table: Table, console: Console, options: ConsoleOptions) -> tuple[list[Line], list[list[Line]]]:
    """(heading, rows), a line each: what is too long for its column is cut."""
    table.padding = (0, 1, 0, 0)
    for column in table.columns:
        column.header = Text(str(column.header))
        for cell in (column.header, *column.cells):
            if isinstance(cell, Text):
                cell.no_wrap, cell.overflow = True, "ellipsis"
    head, *rows = console.render_lines(table, options, pad=False)
    return [head], [[row] for row in rows]
