"""`llmd simulate`: what a trace of requests would have waited for on imaginary GPUs, under one policy or several."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from supervisor.config import Config, Mode, locate
from supervisor.config.quantities import size
from supervisor.core.events import ModeChanged
from supervisor.core.fit import check_devices
from supervisor.errors import ConfigError, OperatorError
from supervisor.host import timetable
from supervisor.simulation import trace
from supervisor.simulation.peers import POLICIES
from supervisor.simulation.report import report
from supervisor.simulation.trace import Request
from supervisor.simulation.world import Card, World

OWN = "llmd"

Json = dict[str, Any]


def cards(text: str) -> tuple[Card, ...]:
    """`"2x24GiB"`, `"24GiB,48GiB"` -> cards. Raises OperatorError where it is neither."""
    try:
        return tuple(card for part in text.split(",") for card in _alike(part.strip()))
    except ValueError:
        raise OperatorError(f"{text!r} names no GPUs; write --gpus 2x24GiB, or 24GiB,48GiB") from None


def _alike(text: str) -> Iterator[Card]:
    match = re.fullmatch(r"(?:([1-9]\d?)x)?(\S.*)", text)
    if match is None:
        raise ValueError(text)
    yield from [Card(size(match[2]))] * int(match[1] or 1)


def asked(policies: Sequence[str]) -> tuple[str, ...]:
    """llmd's own where none is named. Raises OperatorError for one that there is not."""
    for name in policies:
        if name not in POLICIES:
            raise OperatorError(f"there is no policy {name!r}; write one of {', '.join(POLICIES)}")
    return tuple(dict.fromkeys(policies or (OWN,)))


def play(config: Config, file: Path, given: Sequence[Card], policies: Sequence[str], start: datetime) -> Json:
    """The report of every policy, by its name. Raises ConfigError where the trace or a profile does not fit."""
    requests = trace.read(file, {name for p in config.profiles.values() for name in (p.model, p.name)})
    return {policy: _play(config, requests, given, policy, start) for policy in policies}


def _play(
    config: Config, requests: Sequence[Request], given: Sequence[Card], policy: str, start: datetime
) -> Json:
    world = World(config if policy == OWN else _sleepless(config), tuple(given), POLICIES[policy]())
    if problems := check_devices(config, world.fleet.ledger.survey):
        raise ConfigError(locate(problems))
    for at, change in changes(config.modes, start, requests[-1].time if requests else 0.0):
        world.expect(at, change)
    world.run(requests)
    return report(world)


def changes(
    modes: Mapping[str, Mode], start: datetime, seconds: float
) -> Iterator[tuple[float, ModeChanged]]:
    """(seconds since `start`, what the daemon would tell the core then), the present mode first.

    `start` is aware. Nothing without modes.
    """
    at = 0.0
    while modes and at <= seconds:
        mode, following, when = timetable.current(modes, start + timedelta(seconds=at))
        begins = (when - start).total_seconds() if when else None
        until = when.astimezone(start.tzinfo).strftime("%Y-%m-%d %H:%M") if when else None
        yield at, ModeChanged(mode, following, until, None if begins is None else begins - at)
        if begins is None:
            return
        at = begins


def _sleepless(config: Config) -> Config:
    """The other policies know no sleep."""
    profiles = {
        name: p.model_copy(update={"sleep": False, "sleep_after": None})
        for name, p in config.profiles.items()
    }
    return config.model_copy(update={"profiles": profiles})


def show(reports: Mapping[str, Json], console: Console) -> None:
    """Waits in seconds from arrival to the first byte sent to an engine, or to the refusal."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    table.add_column("POLICY")
    table.add_column("CLASS")
    for heading in ("ASKED", "P50", "P95", "MAX", "REFUSED", "SWAPS", "LOADING"):
        table.add_column(heading, justify="right")
    for row in _rows(reports):
        table.add_row(*row)
    console.print(table)
    for policy, found in reports.items():
        if found["refusal"]:
            console.print(Text(f"{policy} refused: {' '.join(found['refusal'].split())}", "yellow"))


def _rows(reports: Mapping[str, Json]) -> Iterator[tuple[str, ...]]:
    for policy, found in reports.items():
        first = (policy, f"{found['swaps']}", _seconds(found["loading_s"]))
        for kind in ("interactive", "batch"):
            waits = found[kind]
            if waits["requests"] or kind == "interactive":
                spread = (_seconds(waits[key]) for key in ("p50_s", "p95_s", "max_s"))
                name, *costs = first
                yield name, kind, f"{waits['requests']}", *spread, f"{waits['refused']}", *costs
                first = ("", "", "")


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}s"
