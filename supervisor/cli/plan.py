"""`llmd plan`: gather what is known of the profiles and the cards, and show what fits, right at 80 columns."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from supervisor.config import Config, Profile
from supervisor.core.devices import HOST, MIB, Reading, gib
from supervisor.core.why import profiles_called
from supervisor.errors import OperatorError
from supervisor.planning.cards import sizes
from supervisor.planning.footprint import Logged, learn
from supervisor.planning.plan import MOST_SETS, NOT_HERE, Known, Mend, Outlook, Plan, Verdict, plan

Json = dict[str, Any]

LOG_BYTES = 4 << 20
"""How far back an engine's log is read for what its last start found."""

STYLES = {Verdict.FITS: "green", Verdict.NEVER: "red"}


def describe(text: str) -> tuple[Reading, ...]:
    """As readings of empty cards. Raises ValueError with what to write."""
    return tuple(_card(index, total) for index, total in sizes(text).items())


def described(text: str | None, flag: str) -> tuple[Reading, ...] | None:
    """The cards that a flag describes; None without it. Raises BadParameter."""
    try:
        return None if text is None else describe(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=flag) from error


def gather(config: Config, names: Sequence[str], cards: tuple[Reading, ...] | None) -> Plan:
    """The plan for `names` on the described `cards`, or on this host's. Raises OperatorError where those cannot
    be read and a profile wants one."""
    from supervisor.cli.survey import read_devices

    profiles = [config.profiles[name] for name in names]
    survey = asyncio.run(read_devices(cards, config))
    if survey.trouble and any(profile.device == "gpu" for profile in profiles):
        instead = "describe them, such as --gpus 2x24GiB"
        raise OperatorError(f"the GPUs of this host cannot be read: {survey.trouble}; {instead}")
    known = {profile.name: _known(profile, config) for profile in profiles}
    return plan(config, names, known, survey)


def chosen(config: Config, names: Sequence[str]) -> tuple[str, ...]:
    """The profiles to plan for: those called so, or serving a model called so, or all. Raises ModelNotFound."""
    called = [profile for name in names for profile in profiles_called(name, config)]
    return tuple(dict.fromkeys(called)) or tuple(config.profiles)


def _known(profile: Profile, config: Config) -> Known:
    from supervisor.host.weights import locate, read_checkpoint, whereabouts

    directory = locate(profile, config, os.environ)
    if directory is None:
        return Known(trouble=f"{NOT_HERE} (looked in {whereabouts(profile, config, os.environ)})")
    try:
        return Known(read_checkpoint(directory), "", _learned(profile, config))
    except OperatorError as error:
        return Known(trouble=error.message)


def _learned(profile: Profile, config: Config) -> Logged | None:
    """From the engine's log; one that we may not read has taught nothing."""
    from supervisor.host.enginelog import tail

    log = config.server.state_dir / "logs" / f"{profile.name}.log"
    try:
        return learn(tail(log, 1_000_000, LOG_BYTES))
    except OSError:
        return None


def _card(index: int, total: int) -> Reading:
    return Reading(f"gpu:{index}", total, 0, total, 0.0, name="as described", index=index)


# As JSON


def as_json(found: Plan) -> Json:
    return {
        "ok": found.possible,
        "devices": [_device(reading, found) for reading in found.readings],
        "profiles": [_profile(outlook) for outlook in found.outlooks],
        "sets": {mode: [list(names) for names in sets] for mode, sets in found.sets.items()},
    }


def _device(reading: Reading, found: Plan) -> Json:
    return {
        "device": reading.device,
        "index": reading.index,
        "name": reading.name,
        "total": reading.total,
        "cuda_total": reading.cuda_total,
        "room": found.room[reading.device],
        "trouble": reading.trouble,
    }


def _profile(outlook: Outlook) -> Json:
    print_ = outlook.footprint
    return {
        "profile": outlook.profile.name,
        "verdict": outlook.verdict.value,
        "reason": outlook.reason,
        "needs": dict(outlook.needs),
        "mends": [dict(mend) for mend in outlook.mends],
        "notes": list(outlook.notes),
        "footprint": print_
        and {
            "budget": print_.budget,
            "weights": print_.weights,
            "work": print_.work,
            "work_is": "logged by its last start" if print_.learned else "an estimate",
            "window": print_.window,
            "kv_room": print_.room if print_.kv else None,
            "kv_per_token": print_.kv.per_token if print_.kv else None,
            "kv_tokens": print_.tokens,
            "full_requests": print_.requests,
            "longest_max_model_len": print_.longest,
            "least_budget": print_.least,
        },
    }


# As a person reads it


def show(found: Plan) -> None:
    console = Console(highlight=False)
    for part in render(found):
        console.print(part)


def render(found: Plan) -> Iterator[RenderableType]:
    yield _cards(found)
    yield Text()
    yield _table(found.outlooks)
    if remarks := [*_remarks(found.outlooks)]:
        yield Text()
        yield Group(*remarks)
    for mode, sets in found.sets.items():
        yield Text()
        yield Group(*_sets(mode, sets))


def setting(mend: Mend) -> str:
    """`{"vram": 2147483648}` -> `vram = "2048 MiB"`, as it stands in a profile."""
    sizes = {"vram", "memory"}
    written = ((key, f'"{int(value) // MIB} MiB"' if key in sizes else value) for key, value in mend.items())
    return " and ".join(f"{key} = {value}" for key, value in written)


def _cards(found: Plan) -> Text:
    parts = [f"{_label(reading)} {gib(found.room[reading.device])}" for reading in found.readings]
    return Text("room for engines: ").append(", ".join(parts))


def _label(reading: Reading) -> str:
    return "host" if reading.device == HOST else f"GPU {reading.index}"


def _table(outlooks: Sequence[Outlook]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    table.add_column("PROFILE", overflow="fold")
    table.add_column("ON", no_wrap=True)
    for heading in ("NEEDS", "WEIGHTS", "WORK", "KV/1K", "KV TOKENS", "FULL"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("ALONE", overflow="fold")
    for outlook in outlooks:
        table.add_row(*_row(outlook))
    return table


def _row(outlook: Outlook) -> Iterator[Text]:
    profile, counted = outlook.profile, outlook.footprint
    yield Text(profile.name)
    yield Text("cpu" if profile.device == "cpu" else ",".join(map(str, profile.gpus)))
    yield Text(",".join(dict.fromkeys(map(_short, outlook.needs.values()))) or "?")
    yield Text(_short(counted.weights if counted else None))
    yield Text(("" if not counted or counted.learned else "~") + _short(counted.work if counted else None))
    yield Text(f"{counted.kv.per_token / 1024:.1f}" if counted and counted.kv else "-")
    yield Text("none" if counted and not counted.kv else f"{counted.tokens:,}" if counted else "?")
    yield Text(f"{counted.requests:.1f}" if counted and counted.requests is not None else "-")
    yield Text(outlook.verdict.value, STYLES.get(outlook.verdict, "yellow"))


def _short(size: int | None) -> str:
    """GiB without the unit, which stands above the table's numbers once."""
    return "?" if size is None else f"{size / (1 << 30):.1f}"


def _remarks(outlooks: Sequence[Outlook]) -> Iterator[RenderableType]:
    """What is said of several profiles in the same words is said once."""
    said: dict[str, list[str]] = {}
    for outlook in outlooks:
        for remark in (*filter(None, [outlook.reason]), *outlook.notes, *map(_offer, outlook.mends)):
            said.setdefault(remark, []).append(outlook.profile.name)
    for remark, names in said.items():
        yield Text(f"{', '.join(names)}: {remark}")


def _offer(mend: Mend) -> str:
    return f"{setting(mend)} fits"


def _sets(mode: str, sets: Sequence[tuple[str, ...]]) -> Iterator[RenderableType]:
    yield Text(f"together, {mode}" if mode else "together", "bold")
    for names in sets:
        yield _indented(" + ".join(names))
    if not sets:
        yield _indented("none fits")
    if len(sets) == MOST_SETS:
        yield _indented("and more")


def _indented(text: str) -> RenderableType:
    return Padding(Text(text), (0, 0, 0, 2), expand=False)
