"""`llmd simulate`: what a trace of requests would have waited for on imaginary GPUs, under one policy or several."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from supervisor.config import Config, Mode, locate
from supervisor.core.events import ModeChanged
from supervisor.core.fit import check_devices
from supervisor.core.why import profiles_called
from supervisor.errors import ConfigError, OperatorError, Problem
from supervisor.host import timetable
from supervisor.planning.cards import sizes
from supervisor.simulation import trace
from supervisor.simulation.peers import POLICIES
from supervisor.simulation.report import report
from supervisor.simulation.trace import Trace
from supervisor.simulation.world import Card, World

OWN = "llmd"

Json = dict[str, Any]


def cards(text: str) -> tuple[Card, ...]:
    """`"2x24GiB"`, `"24GiB,48GiB"`, `"1:48GiB"` -> cards. Raises OperatorError where it is none of these."""
    try:
        found = sizes(text)
    except ValueError as error:
        raise OperatorError(f"--gpus: {error}") from None
    return tuple(Card(found.get(index, 0)) for index in range(max(found) + 1))


@dataclass(frozen=True, slots=True)
class Replay:
    """A trace, what is to serve it, and what a person should know of that."""

    config: Config
    cards: tuple[Card, ...]
    trace: Trace
    remarks: tuple[str, ...] = ()


def prepare(config: Config, file: Path, cards: tuple[Card, ...]) -> Replay:
    """Raises ConfigError where the file is no trace, or asks for a model that these cards cannot serve."""
    profiles = config.profiles.values()
    found = trace.read(file, {name for p in profiles for name in (p.model, p.name, *p.lora)})
    misfits = _misfits(config, cards)
    for model in {request.model for request in found.requests}:
        serving = profiles_called(model, config)
        if misfits.keys() >= set(serving):
            raise ConfigError(locate([problem for name in serving for problem in misfits[name]]))
    return Replay(config, cards, found, tuple(_remarks(config, found, misfits)))


def _misfits(config: Config, cards: tuple[Card, ...]) -> dict[str, list[Problem]]:
    """By profile, what keeps it from ever running on these cards."""
    owners = {file: name for name, file in config.files.items()}
    found: dict[str, list[Problem]] = {}
    for problem in check_devices(config, World(config, cards).fleet.ledger.survey):
        found.setdefault(owners[problem.file], []).append(problem)
    return found


def _remarks(config: Config, found: Trace, misfits: Collection[str]) -> Iterator[str]:
    if found.began is not None:
        day = datetime.fromtimestamp(found.began).astimezone()
        yield f"times are seconds since 1970: the trace begins {day:%Y-%m-%d %H:%M}, and waits count from there"
    if misfits:
        yield f"these GPUs cannot run {', '.join(misfits)}: left out, as the trace can do without"
    strange = {request.key for request in found.requests} - config.keys.keys()
    if strange and config.keys:
        yield f"no key is called {', '.join(sorted(strange))}: counted as interactive"


def asked(policies: Sequence[str]) -> tuple[str, ...]:
    """llmd's own where none is named. Raises OperatorError for one that there is not."""
    for name in policies:
        if name not in POLICIES:
            raise OperatorError(f"there is no policy {name!r}; write one of {', '.join(POLICIES)}")
    return tuple(dict.fromkeys(policies or (OWN,)))


def play(replay: Replay, policies: Sequence[str], start: datetime) -> Json:
    """The report of every policy, by its name. `start`: when the first second was, aware."""
    return {policy: _play(replay, policy, start) for policy in policies}


def _play(replay: Replay, policy: str, start: datetime) -> Json:
    config, requests = replay.config, replay.trace.requests
    world = World(config if policy == OWN else _sleepless(config), replay.cards, POLICIES[policy]())
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
