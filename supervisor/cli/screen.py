"""The status as a screen that stays: kept in shape for its size, with a cursor, an order and one line of answers.

Pure: what `watch` reads goes in, what rich draws comes out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from supervisor.cli import flights, tables
from supervisor.cli.folding import Line, Section, blocks, rows_of, shares

Json = dict[str, Any]

MODELS = "q quit  up/down choose  o order  s stop  w why"
REQUESTS = "q quit  up/down choose  o order  c cancel  w why  tab models"
ORDERS = ("name", "state", "busy", "memory")
REQUEST_ORDERS = ("age", "tokens", "key", "model")

KEPT = 6
"""Lines that are kept for requests before devices are shown at length: nothing above them moves as they come and go."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """What is done once that is confirmed: `stop` a profile by its name, `cancel` a request by its number."""

    verb: str
    name: str
    what: str


@dataclass(slots=True)
class Screen:
    """`status`: the last that was read. `cursor`: a profile's name, so that it stays where the order changes."""

    status: Json = field(default_factory=dict)
    order: str = ORDERS[0]
    cursor: str | None = None
    requests: list[Json] = field(default_factory=list)
    """In flight, in their order."""
    request_order: str = REQUEST_ORDERS[0]
    request: str | None = None
    """The number of the one that is chosen."""
    below: bool = False
    """Whether keys are about requests, as far as there are any."""
    doubt: Doubt | None = None
    page: Sequence[RenderableType] = ()
    """What is read instead of the status, until a key is pressed."""
    said: str = ""

    def note(self, requests: list[Json]) -> None:
        """What is in flight. The cursor of a request that has ended goes on to the next one."""
        numbers = [request["number"] for request in self.requests]
        left = {request["number"] for request in requests}
        after = numbers[numbers.index(self.chosen_request) :] if self.chosen_request else []
        self.requests = _sorted(requests, self.request_order)
        self.request = next((number for number in after if number in left), None)

    def engines(self) -> list[Json]:
        return sorted(self.status.get("engines", []), key=lambda engine: _rank(engine, self.order))

    @property
    def chosen(self) -> str | None:
        return _among([engine["profile"] for engine in self.engines()], self.cursor)

    @property
    def chosen_request(self) -> str | None:
        return _among([request["number"] for request in self.requests], self.request)

    @property
    def at_requests(self) -> bool:
        return self.below and bool(self.requests)

    def move(self, steps: int) -> None:
        if self.at_requests:
            self.request = _moved([r["number"] for r in self.requests], self.chosen_request, steps)
        else:
            self.cursor = _moved([e["profile"] for e in self.engines()], self.chosen, steps)

    def switch(self) -> None:
        self.below = not self.at_requests

    def reorder(self) -> None:
        if not self.at_requests:
            self.order = _next(ORDERS, self.order)
            return
        chosen, self.request_order = self.chosen_request, _next(REQUEST_ORDERS, self.request_order)
        self.requests, self.request = _sorted(self.requests, self.request_order), chosen

    def doubt_stop(self) -> None:
        if self.chosen is not None and not self.at_requests:
            self.doubt = Doubt("stop", self.chosen, self.chosen)

    def doubt_cancel(self) -> None:
        if self.at_requests:
            request = next(r for r in self.requests if r["number"] == self.chosen_request)
            self.doubt = Doubt("cancel", request["number"], flights.called(request))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """As many lines as there are: the last one is the keys', whatever else there is no room for."""
        height, options = options.height or console.height, options.update(height=None)
        for line in self._lines(console, options, height - 1)[: height - 1]:
            yield from line
            yield Segment.line()
        yield Text(f" {self._foot()}", "reverse", no_wrap=True, overflow="ellipsis", end="")

    def _foot(self) -> str:
        if self.doubt:
            return f"{self.doubt.verb} {self.doubt.what}? y: yes, any other key: no"
        return self.said or ("any key: back" if self.page else self._keys())

    def _keys(self) -> str:
        if self.at_requests:
            return f"{REQUESTS}  by {self.request_order}"
        return MODELS + ("  tab requests" if self.requests else "") + f"  by {self.order}"

    def _lines(self, console: Console, options: ConsoleOptions, room: int) -> list[Line]:
        if self.page:
            return list(console.render_lines(Group(*self.page), options, pad=False))
        [head] = blocks([tables.headline(self.status.get("daemon", {}))], console, options)
        sections = list(self._sections(console, options, room - len(head)))
        ranked = sorted(sections, key=lambda section: section.what != "request" or not self.at_requests)
        given = shares([section.height for section in ranked], room - len(head))
        share = {section.what: lines for section, lines in zip(ranked, given, strict=True)}
        return head + [line for section in sections for line in section.within(share[section.what])]

    def _sections(self, console: Console, options: ConsoleOptions, room: int) -> Iterator[Section]:
        """In the order in which they are drawn, and rank."""
        head, rows = rows_of(self._models(options.max_width), console, options)
        models = Section("model", rows, head, at=self._at())
        said = blocks(list(self._notices()), console, options)
        notices = Section("line", [[line] for lines in said for line in lines])
        yield models
        yield self._devices(console, options, room - models.height - notices.height)
        yield notices
        if self.requests:
            yield self._flights(console, options, room)

    def _devices(self, console: Console, options: ConsoleOptions, room: int) -> Section:
        """At length where there is room for that."""
        devices = self.status.get("devices", [])
        told = [tables.device(device, self.engines()) for device in devices]
        full = Section("device", blocks(told, console, options))
        if full.height + self._wanted <= room:
            return full
        return Section("device", blocks([tables.brief(device) for device in devices], console, options))

    @property
    def _wanted(self) -> int:
        """Lines for requests: whoever chooses among them sees them all, rather than devices at length."""
        return max(KEPT, len(self.requests) + 1) if self.at_requests else KEPT

    def _flights(self, console: Console, options: ConsoleOptions, room: int) -> Section:
        """Those about the one that is chosen: there may be hundreds, and each costs a millisecond."""
        at = [request["number"] for request in self.requests].index(self.chosen_request)
        first = max(0, at - room)
        near = self.requests[first : at + room]
        table = flights.table(near)
        if self.at_requests:
            table.rows[at - first].style = "reverse"
        head, rows = rows_of(table, console, options)
        return Section("request", rows, head, at=at - first, beyond=len(self.requests) - len(near))

    def _notices(self) -> Iterator[RenderableType]:
        yield from map(tables.lent, self.status.get("loans", []))
        yield from map(tables.told_of, self.status.get("peers", []))
        yield from tables.troubles(self.status)

    def _models(self, width: int) -> Table:
        """Profiles as whole as can be: names often differ at their ends alone."""
        table = tables.models(self.engines())
        table.columns[0].no_wrap, table.columns[0].max_width = True, width * 2 // 5
        if table.rows and not self.at_requests:
            table.rows[self._at()].style = "reverse"
        return table

    def _at(self) -> int:
        names = [engine["profile"] for engine in self.engines()]
        return names.index(self.chosen) if self.chosen else 0


def _among(names: Sequence[str], wanted: str | None) -> str | None:
    return wanted if wanted in names else next(iter(names), None)


def _moved(names: Sequence[str], name: str | None, steps: int) -> str | None:
    return names[max(0, min(len(names) - 1, names.index(name) + steps))] if name is not None else None


def _next(orders: Sequence[str], order: str) -> str:
    return orders[(orders.index(order) + 1) % len(orders)]


def _sorted(requests: list[Json], order: str) -> list[Json]:
    """Those alike by their age."""
    return sorted(requests, key=lambda request: (_place(request, order), -request["age_s"]))


def _place(request: Json, order: str) -> object:
    """`tokens`: those that were written so far, most first."""
    places = {
        "tokens": -(request["output"] or 0),
        "key": request["source"] or "",
        "model": request["model"] or "",
    }
    return places.get(order, 0)


def _rank(engine: Json, order: str) -> tuple[object, ...]:
    held = sum(size or 0 for size in (engine.get("measured") or {}).values())
    busy = (engine.get("in_flight") or 0) + (engine.get("queued") or 0)
    first = {"state": engine.get("state") == "cold", "busy": -busy, "memory": -held}.get(order, 0)
    return first, str(engine.get("state")) if order == "state" else "", engine["profile"]
