"""Requests in flight, a line each."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from supervisor.cli.tables import printable
from supervisor.core.spans import span

Json = dict[str, Any]

_NAMES = ("KEY", "MODEL", "PROFILE")
_NUMBERS = ("IN", "OUT", "TTFT", "AGE")


def table(requests: list[Json]) -> Table:
    """IN and OUT are tokens so far, as estimated; TTFT and AGE are times since the request came."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in _NAMES:
        table.add_column(name)
    for name in _NUMBERS:
        table.add_column(name, justify="right", no_wrap=True)
    for request in requests:
        table.add_row(*_names(request), *_numbers(request))
    return table


def called(request: Json) -> str:
    """As a question names it."""
    return f"{printable(request['source'])}'s request for {printable(request['model'])}"


def _names(request: Json) -> tuple[Text, ...]:
    profile = request["profile"]
    place = Text("waiting", "yellow") if profile is None else Text(profile)
    return Text(printable(request["source"])), Text(printable(request["model"])), place


def _numbers(request: Json) -> tuple[str, ...]:
    ttft, output = request["ttft_s"], request["output"]
    return (
        str(request["prompt"]),
        "-" if output is None else str(output),
        "-" if ttft is None else f"{ttft:.2f}s",
        span(request["age_s"]),
    )
