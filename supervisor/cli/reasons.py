"""Why a model is (not) loaded, and what was decided before, as one screen of 80 columns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from supervisor.cli.tables import STYLES, told_of, xid_line
from supervisor.core.devices import gib
from supervisor.core.spans import span

Json = dict[str, Any]

LOG_LINES = 4
LEVELS = {"WARNING": "yellow", "ERROR": "red"}


def show(answer: Json, console: Console) -> None:
    for part in render(answer):
        console.print(part)


def show_history(entries: list[Json], console: Console) -> None:
    if not entries:
        console.print("nothing was decided in that time")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    table.add_column("TIME", no_wrap=True)
    table.add_column("PROFILE", overflow="fold", max_width=20)
    table.add_column("DECISION", overflow="fold")
    for entry in entries:
        who = entry.get("profile") or entry.get("model") or "-"
        words = Text(str(entry.get("message")), LEVELS.get(str(entry.get("level")), ""))
        table.add_row(_time(entry["at"]), Text(str(who)), words)
    console.print(table)


def _time(at: str) -> str:
    """In this host's time zone; the year is left to --json."""
    return datetime.fromisoformat(at).astimezone().strftime("%m-%d %H:%M:%S")


def render(answer: Json) -> Iterator[RenderableType]:
    names = {device["device"]: _short(device["name"]) for device in answer["devices"]}
    for number, profile in enumerate(answer["profiles"]):
        if number:
            yield Text()
        yield _title(profile)
        asked = "a request now" if len(answer["profiles"]) == 1 else f"a request for {profile['profile']}"
        for line in _profile(profile, names, asked):
            yield Padding(line, (0, 0, 0, 2))
    if len(answer["profiles"]) > 1:
        yield Text(_of_all(answer["name"], answer["profiles"]))
    for peer in answer.get("peers", ()):
        yield Text()
        yield told_of(peer)
    for device in answer["devices"]:
        yield Text()
        yield _device(device)
        for found in device.get("xids", ()):
            yield Padding(Text(xid_line(found), "yellow"), (0, 0, 0, 2))
        for line in _holders(device):
            yield Padding(line, (0, 0, 0, 2))


def _title(profile: Json) -> Text:
    state = str(profile["state"])
    text = Text(profile["profile"], "bold")
    text.append(f" serves {profile['model']}: ", "not bold")
    return text.append(state, f"not bold {STYLES.get(state, 'yellow')}")


def _of_all(name: str, profiles: list[Json]) -> str:
    """What whoever asks for the model may expect of the best of its profiles."""
    open_now = [p for p in profiles if p["serves_in"] is not None and not p["refused_now"]]
    asked = f"a request for {name}"
    if not open_now:
        return _outlook(min(profiles, key=_sooner), asked)
    best = min(open_now, key=_sooner)
    return f"{_outlook(best, asked)}, by {best['profile']}"


def _sooner(profile: Json) -> float:
    return math.inf if profile["serves_in"] is None else float(profile["serves_in"])


def _profile(profile: Json, names: dict[str, str], asked: str) -> Iterator[RenderableType]:
    yield Text(_sentence(profile["why"]))
    if failure := profile["failure"]:
        yield Text(_sentence(f"it failed last ({failure['kind']}): {failure['message']}"), "red")
        for line in failure["log"][-LOG_LINES:]:
            yield Text(f"| {line}", "dim", no_wrap=True, overflow="ellipsis")
    if profile["loaded"] or profile["in_flight"] or profile["queued"]:
        yield Text(_load(profile))
    for need in profile["needs"]:
        yield Text(_need(need, profile["loaded"]))
    if obstacle := profile["stands_in_the_way"]:
        yield Text(_sentence(f"in the way: {obstacle}"), "yellow")
    yield Text(_sentence(_outlook(profile, asked)))
    yield Text(_sentence(_learned(profile["learned"], names)), "dim")


def _sentence(words: str) -> str:
    """One paragraph whatever the words hold: an engine's last ones may be many lines."""
    return " ".join(words.split())


def _load(profile: Json) -> str:
    idle = f", idle for {span(profile['idle'])}" if profile["loaded"] and profile["idle"] is not None else ""
    return f"{profile['in_flight']} of {profile['slots']} in flight, {profile['queued']} waiting{idle}"


def _need(need: Json, loaded: bool) -> str:
    if loaded or need["holds"]:
        return f"it holds {gib(need['holds'])} of {_short(need['name'])}"
    if need["need"] is None:
        return f"{need['name']} cannot be read"
    return f"it needs {gib(need['need'])} of {_short(need['name'])}, {gib(need['available'])} is available"


def _outlook(profile: Json, asked: str) -> str:
    seconds = profile["serves_in"]
    if profile["refused_now"]:
        return f"{asked} would be refused" + (
            f"; one in about {span(seconds)} could be served" if seconds else ""
        )
    if seconds is None:
        return f"{asked} would not be served: nothing that is foreseen would help"
    if not seconds:
        return f"{asked} would be served at once"
    room = f", once {_made_room(profile)}" if profile["makes_room"] else ""
    return f"{asked} would be served in about {span(seconds)}{room}"


def _made_room(profile: Json) -> str:
    """Of several, those that may sleep do, the others stop."""
    names, asleep = profile["makes_room"], profile["by_sleeping"]
    if len(names) == 1:
        return f"{names[0]} {'sleeps' if asleep else 'has stopped'}"
    return f"{' and '.join(names)} {'sleep or have stopped' if asleep else 'have stopped'}"


def _learned(known: Json, names: dict[str, str]) -> str:
    seconds = {"starts": known["start"], "wakes": known["wake"], "reloads": known["reload"]}
    told = [f"{what} in {span(value)}" for what, value in seconds.items() if value is not None]
    told += [f"takes {gib(size)} of {names.get(d, d)}" for d, size in known["peak"].items()]
    told += [f"leaves {gib(size)} of {names.get(d, d)} asleep" for d, size in known["residue"].items()]
    if known["letters_per_token"]:
        told.append(f"{known['letters_per_token']} letters a token and {known['template_tokens']} tokens")
    version = f" with vLLM {known['version']}" if known["version"] else ""
    return f"learned{version}: {', '.join(told)}" if told else "nothing was learned of it yet"


def _device(device: Json) -> Text:
    text = Text(_short(device["name"]), "bold")
    known = device["cuda_total"]
    less = f" ({gib(known)} for CUDA)" if known is not None and gib(known) != gib(device["total"]) else ""
    text.append(f"  {gib(device['total'])}{less}, {gib(device['free'])} free", "not bold")
    return text.append(f", {device['trouble']}", "red") if device["trouble"] else text


def _holders(device: Json) -> Iterator[Text]:
    for holder in device["ours"]:
        yield Text(f"{gib(holder['held']):>10}  {holder['profile']}{_doing(holder)}")
    for process in device["foreign"]:
        used = "?" if process["used"] is None else gib(process["used"])
        yield Text(f"{used:>10}  PID {process['pid']} {process['name']} ({process['user']})", "yellow")
    if device["foreign_total"] and not device["foreign"]:
        yield Text(f"{gib(device['foreign_total']):>10}  other programs", "yellow")
    if not (device["ours"] or device["foreign"] or device["foreign_total"]):
        yield Text("nobody holds anything here", "dim")


def _doing(holder: Json) -> str:
    if "state" not in holder:
        return "" if holder.get("measured") else " (its user is told among the programs, if it is used)"
    idle = f", idle for {span(holder['idle'])}" if holder["idle"] is not None else ""
    busy = f", {holder['in_flight']} in flight" if holder["in_flight"] else ""
    return f" ({holder['state']}{busy}{idle}{', pinned' if holder['pinned'] else ''})"


def _short(name: str) -> str:
    """`GPU 0 (NVIDIA GeForce RTX 3090)` -> `GPU 0`."""
    return name.partition(" (")[0]
