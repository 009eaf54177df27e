"""The status as a screen that stays: kept in shape for its size, with a cursor, an order and one line of answers.

Pure: what `watch` reads goes in, what rich draws comes out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from supervisor.cli import reasons, tables

Json = dict[str, Any]

HELP = "q quit  up/down choose  o order  s stop  w why"
ORDERS = ("name", "state", "busy", "memory")


@dataclass(slots=True)
class Screen:
    """`status`: the last that was read. `cursor`: a profile's name, so that it stays where the order changes."""

    status: Json = field(default_factory=dict)
    order: str = ORDERS[0]
    cursor: str | None = None
    doubt: str | None = None
    """A profile that is stopped once that is confirmed."""
    why: Json | None = None
    said: str = ""

    def engines(self) -> list[Json]:
        return sorted(self.status.get("engines", []), key=lambda engine: _rank(engine, self.order))

    @property
    def chosen(self) -> str | None:
        names = [engine["profile"] for engine in self.engines()]
        return self.cursor if self.cursor in names else next(iter(names), None)

    def move(self, steps: int) -> None:
        names = [engine["profile"] for engine in self.engines()]
        if self.chosen in names:
            at = names.index(self.chosen) + steps
            self.cursor = names[max(0, min(len(names) - 1, at))]

    def reorder(self) -> None:
        self.order = ORDERS[(ORDERS.index(self.order) + 1) % len(ORDERS)]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """As many lines as there are: the last one is the keys', whatever else there is no room for."""
        height = options.height or console.height
        body = Group(*(reasons.render(self.why) if self.why else self._parts()))
        lines = console.render_lines(body, options.update(height=None), pad=False)
        for line in lines[: height - 1]:
            yield from line
            yield Segment.line()
        yield Text(f" {self._foot()}", "reverse", no_wrap=True, overflow="ellipsis", end="")

    def _foot(self) -> str:
        if self.doubt:
            return f"stop {self.doubt}? y: yes, any other key: no"
        return self.said or (f"{HELP}  by {self.order}" if self.why is None else "any key: back")

    def _parts(self) -> Iterator[RenderableType]:
        yield tables.headline(self.status.get("daemon", {}))
        yield self._table()
        for device in self.status.get("devices", []):
            yield tables.device(device)
        yield from map(tables.lent, self.status.get("loans", []))
        yield from map(tables.told_of, self.status.get("peers", []))
        yield from tables.troubles(self.status)

    def _table(self) -> Table:
        table = tables.models(self.engines())
        names = [engine["profile"] for engine in self.engines()]
        if self.chosen in names:
            table.rows[names.index(self.chosen)].style = "reverse"
        return table


def _rank(engine: Json, order: str) -> tuple[object, ...]:
    held = sum(size or 0 for size in (engine.get("measured") or {}).values())
    busy = (engine.get("in_flight") or 0) + (engine.get("queued") or 0)
    first = {"state": engine.get("state") == "cold", "busy": -busy, "memory": -held}.get(order, 0)
    return first, str(engine.get("state")) if order == "state" else "", engine["profile"]
