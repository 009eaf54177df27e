"""Requests that have ended, and their totals, at 80 columns or as CSV."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from supervisor.cli.tables import printable
from supervisor.core.spans import span

Json = dict[str, Any]

_REQUESTS = ("TIME", "KEY", "MODEL", "IN", "OUT", "WAIT", "TOOK", "END")
_TOTALS = ("DAY", "KEY", "MODEL", "REQUESTS", "FAILED", "IN", "OUT", "ENGINE", "WAIT")
_WORDS = frozenset({"TIME", "DAY", "KEY", "MODEL", "END"})


def show(rows: list[Json], console: Console, *, totals: bool) -> None:
    """What is shown of a row is the same in every row: names fold, numbers stay whole."""
    if not rows:
        console.print("no request is known of that time")
        return
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", pad_edge=False)
    for name in _TOTALS if totals else _REQUESTS:
        word = name in _WORDS
        table.add_column(name, justify="left" if word else "right", no_wrap=name != "MODEL", overflow="fold")
    for row in rows:
        table.add_row(*(_total(row) if totals else _request(row)))
    console.print(table)


def write_csv(rows: list[Json]) -> None:
    """With a head of names; nothing where there are no rows."""
    if rows:
        writer = csv.DictWriter(sys.stdout, list(rows[0]))
        writer.writeheader()
        writer.writerows({name: _plain(value) for name, value in row.items()} for row in rows)


def _plain(value: object) -> object:
    """Spreadsheets take a text that begins so for a formula, and models are what clients write."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value


def _request(row: Json) -> Iterable[Text | str]:
    bad = row["status"] >= 400
    end = str(row["status"]) if row["code"] is None else f"{row['status']} {row['code']}"
    return (
        datetime.fromisoformat(row["at"]).astimezone().strftime("%m-%d %H:%M:%S"),
        Text(row["source"]),
        Text(printable(row["model"])),
        _count(row["prompt"]),
        _count(row["completion"]),
        _seconds(row["queue_ms"]),
        _seconds(row["latency_ms"]),
        Text(end, "red" if bad else ""),
    )


def _total(row: Json) -> Iterable[Text | str]:
    numbers = [str(row[name]) for name in ("requests", "failed", "prompt", "completion")]
    return (
        row["day"],
        Text(row["source"]),
        Text(printable(row["model"])),
        *numbers,
        span(row["engine_s"]),
        span(row["queue_s"]),
    )


def _count(tokens: int | None) -> str:
    return "-" if tokens is None else str(tokens)


def _seconds(milliseconds: int | None) -> str:
    if milliseconds is None:
        return "-"
    return f"{milliseconds / 1000:.1f}s" if milliseconds < 60_000 else span(milliseconds / 1000)
