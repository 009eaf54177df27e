"""The daemon's status as a person reads it, right at 80 columns, with or without colours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from supervisor.core.devices import gib
from supervisor.core.lifecycle import COMING
from supervisor.core.spans import span

BAR = 48
"""Cells of a device's bar; with its margins the line stays below 80."""

OURS = (("█", "green"), ("▓", "cyan"), ("█", "blue"), ("▓", "magenta"))
"""Neighbours differ in cell and colour, so that two engines can be told apart in a pipe too."""

FOREIGN = ("▒", "yellow")
FREE = ("·", "dim")

LOG_LINES = 3
"""Of what an engine that failed said last; `llmd why` and `llmd logs` show more."""

STYLES = {"ready": "green", "cold": "dim", "backoff": "red", "impossible": "red"}
STUCK = frozenset({"backoff", "impossible"})

SLACK = 64 << 20
"""Bytes by which an engine may stay below what is reserved for it, and nobody is told."""

Json = dict[str, Any]


def show(status: Json, console: Console) -> None:
    for part in render(status):
        console.print(part)


def render(status: Json) -> Iterator[RenderableType]:
    yield _daemon(status.get("daemon", {}))
    engines = status.get("engines", [])
    for reading in status.get("devices", []):
        yield Text()
        yield device(reading, engines)
    if engines:
        yield Text()
        yield models(engines)
    if loans := status.get("loans"):
        yield Text()
        yield Group(*map(lent, loans))
    if peers := status.get("peers"):
        yield Text()
        yield Group(*map(told_of, peers))
    if said := troubles(status, log_lines=LOG_LINES):
        yield Text()
        yield Group(*said)


def troubles(status: Json, log_lines: int = 0) -> list[Text]:
    """A line for each thing that a person should look at; under a failure so many of the engine's log."""
    failures = _failures(status.get("engines", []), log_lines)
    return [*failures, *_strays(status), *_warnings(status)]


def headline(daemon: Json) -> Text:
    """One line of what `status` tells of the daemon in several."""
    return Text(", ").join(_daemon(daemon).split("\n")[:2])


def told_of(peer: Json) -> Text:
    """One line of a peer."""
    text = Text(f"peer {peer['peer']} ({peer['url']}): ")
    if not peer["up"]:
        return text.append(f"down: {peer['trouble']}", "red")
    text.append("up", "green")
    load = f", {peer['in_flight']} of {peer['max_concurrent']} in flight, models: "
    return text.append(load + (", ".join(peer["models"]) or "none"))


def lent(loan: Json) -> Text:
    """One line of a loan."""
    places = ", ".join(f"GPU {gpu}" for gpu in loan["gpus"])
    left = f"{span(loan['left_s'])} left" if loan["left_s"] is not None else "waits for room"
    return Text(f"lent {gib(loan['size'])} on {places} to {loan['borrower']} ({loan['name']}): {left}")


def bar(total: int, ours: dict[str, int], foreign: int) -> Text:
    """`total` bytes as BAR cells. What is held at all gets a cell, so that it is not overlooked."""
    text, left = Text(), BAR
    held = [(OURS[n % len(OURS)], size) for n, size in enumerate(ours.values())] + [(FOREIGN, foreign)]
    for (cell, style), size in held:
        cells = min(left, max(1, round(BAR * size / total))) if total and size > 0 else 0
        text.append(cell * cells, style)
        left -= cells
    return text.append(FREE[0] * left, FREE[1])


def _daemon(daemon: Json) -> Text:
    text = Text("llmd", "bold")
    text.append(f" {daemon.get('version')}, pid {daemon.get('pid')}, up {span(daemon.get('uptime_s'))}", "")
    if daemon.get("closing"):
        text.append(", stopping", "yellow")
    if mode := daemon.get("mode"):
        text.append(f"\nmode {mode['name']}" + (" (forced)" if mode.get("forced") else ""))
        if mode.get("next"):
            text.append(f", {mode['next']} from {mode.get('until')}")
    for url in daemon.get("listening", []):
        text.append(f"\nlistening on {url}")
    for address in daemon.get("waiting_for", []):
        text.append(f"\nwaiting for {address}", "yellow")
    if loaded := daemon.get("config_loaded"):
        text.append(f"\nconfigured {loaded[:19].replace('T', ' ')}")
    return text


def device(device: Json, engines: Sequence[Json] = ()) -> Group:
    """`engines`: of which those that come up have not taken yet all that is reserved for them."""
    lines = [_title(device), *_trouble(device)]
    lines += [Text(f"  {xid_line(found)}", "yellow") for found in device.get("xids") or ()]
    if device.get("total"):
        lines.append(Text("  ") + _filled(device))
        lines += _holders(_ours(device), _untaken(device, engines))
        lines += _others(device.get("others") or 0, device)
    return Group(*lines)


def brief(device: Json) -> Group:
    """One line, and another where something is wrong."""
    line = Text(f"{_name(device):<5} ", "bold")
    if device.get("total"):
        line += _filled(device)
    if device.get("utilization") is not None:
        line.append(f", {device['utilization'] * 100:.0f} %", "not bold")
    return Group(line, *_trouble(device))


def _trouble(device: Json) -> Iterator[Text]:
    if trouble := (device.get("trouble") or device.get("quarantined")):
        yield Text(f"  {trouble if isinstance(trouble, str) else 'not trusted'}", "red")


def _ours(device: Json) -> dict[str, int]:
    return {name: size or 0 for name, size in (device.get("ours") or {}).items()}


def _filled(device: Json) -> Text:
    total, ours, foreign = device["total"], _ours(device), device.get("others") or 0
    free = max(0, min(device.get("free") or 0, total - sum(ours.values()) - foreign))
    return bar(total, ours, foreign) + Text(f"  {gib(free)} free")


def xid_line(found: Json) -> str:
    """What a GPU's driver reported, how often, and when last."""
    often = f", {found['count']} times" if found["count"] > 1 else ""
    return f"XID {found['xid']}: {found['meaning']}{often}, {span(found['ago_s'])} ago"


def _title(device: Json) -> Text:
    text = Text(_name(device), "bold").append(
        f"  {device.get('name')}, {gib(device.get('total') or 0)}", "not bold"
    )
    for key, unit, factor in (("utilization", " %", 100), ("temperature", " °C", 1), ("power", " W", 1)):
        if device.get(key) is not None:
            text.append(f", {device[key] * factor:.0f}{unit}", "not bold")
    return text


def _name(device: Json) -> str:
    return "Host" if device.get("device") == "host" else f"GPU {device.get('index')}"


def _untaken(device: Json, engines: Sequence[Json]) -> dict[str, int]:
    """Profile -> bytes that are reserved for it here, and that it does not use yet."""
    name = device.get("device")
    coming = [engine for engine in engines if engine.get("state") in COMING]
    left = {e["profile"]: (_size(e, "reserved", name) - _size(e, "measured", name)) for e in coming}
    return {profile: size for profile, size in left.items() if size > SLACK}


def _size(engine: Json, what: str, device: str | None) -> int:
    return (engine.get(what) or {}).get(device) or 0


def _holders(ours: dict[str, int], untaken: dict[str, int]) -> Iterator[Text]:
    for number, (profile, size) in enumerate(ours.items()):
        cell, style = OURS[number % len(OURS)]
        left = f", {gib(untaken[profile])} of it not used yet" if profile in untaken else ""
        yield Text("  ").append(cell, style).append(f" {profile} {gib(size)}{left}")


def _others(foreign: int, device: Json) -> Iterator[Text]:
    if foreign:
        said = f" others {gib(foreign)}{_beside(_ours(device))}{_who(device.get('foreign') or [])}"
        yield Text("  ").append(*FOREIGN).append(said)


def _beside(ours: dict[str, int]) -> str:
    """The borrowers are among the processes, what they were lent is not among what is foreign."""
    return " beside what is lent" if any(name.startswith("loan to ") for name in ours) else ""


def _who(processes: list[Json]) -> str:
    known = [_process(process) for process in processes]
    more = f" and {len(known) - 3} more" if len(known) > 3 else ""
    return f": {', '.join(known[:3])}{more}" if known else ""


def _process(process: Json) -> str:
    used = "" if process.get("used") is None else f" {gib(process['used'])}"
    return f"{process.get('name')} {process.get('pid')} ({process.get('user')}){used}"


def models(engines: list[Json]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    table.add_column("PROFILE", overflow="fold")
    table.add_column("MODEL", overflow="fold")
    table.add_column("STATE", overflow="fold")
    for heading in ("TTL", "BUSY", "QUEUED", "TOK/S"):
        table.add_column(heading, justify="right", no_wrap=True)
    for engine in engines:
        table.add_row(
            Text(engine["profile"]),
            Text(str(engine.get("model"))),
            _state(engine),
            span(engine.get("ttl_left_s")),
            f"{engine.get('in_flight') or 0}/{engine.get('slots') or engine.get('max_concurrent') or '-'}",
            str(engine.get("queued") or 0),
            f"{engine['tokens_per_s']:.1f}" if engine.get("tokens_per_s") else "-",
        )
    return table


def _state(engine: Json) -> Text:
    state = str(engine.get("state"))
    text = Text(state, STYLES.get(state, "yellow"))
    if state in {"starting", "waking"} and engine.get("stage"):
        percent = f" {engine['percent']:.0f} %" if engine.get("percent") is not None else ""
        text.append(f"{percent}, {engine['stage']}")
    elif residue := sum((engine.get("residue") or {}).values()):
        text.append(f", keeps {gib(residue)}")
    elif engine.get("available") is False:
        text.append(", not now", "dim")
    if engine.get("pinned"):
        text.append(", pinned")
    return text


def _failures(engines: list[Json], log_lines: int) -> Iterator[Text]:
    for engine in engines:
        name, age = engine["profile"], ""
        why = engine.get("failure")
        if not why and (engine.get("state") in STUCK or engine.get("available") is False):
            why, since = engine.get("reason"), engine.get("reason_age_s")
            age = "" if since is None else f", {span(since)} ago"
        if why:
            yield _line(f"{name}{age}: {why.removeprefix(f'{name} ')}")
            log = engine.get("failure_log") or []
            for line in log[max(0, len(log) - log_lines) :]:
                yield Text(f"  | {printable(line)}", "dim", no_wrap=True, overflow="ellipsis")


def _strays(status: Json) -> Iterator[Text]:
    for stray in status.get("strays", []):
        yield _line(f"stray: pid {stray.get('pid')} of {stray.get('profile')}, {stray.get('reason')}")


def _warnings(status: Json) -> Iterator[Text]:
    daemon = status.get("daemon", {})
    if daemon.get("config_error"):
        yield _line(f"the configuration on disk was not taken: {daemon['config_error']}")
    elif daemon.get("config_newer"):
        yield _line(
            "the configuration on disk is newer than what runs: llmd reload --plan tells what differs"
        )
    for warning in daemon.get("warnings", []):
        yield _line(f"warning: {warning}")


def printable(words: str | None) -> str:
    """What a client wrote, without what a terminal would obey."""
    return "-" if words is None else "".join(c if c.isprintable() else "?" for c in words)


def _line(message: str) -> Text:
    """One line whatever the message holds: an engine's last words may be many."""
    return Text(" ".join(message.split()), "yellow")
