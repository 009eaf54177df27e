"""`llmd add`: finds out what a model is, shows the profile that is proposed for it, and writes it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import tomli_w

from supervisor.cli import plan
from supervisor.cli.base import Place
from supervisor.cli.survey import read_devices
from supervisor.cli.telling import tell_daemon
from supervisor.config import Config, Profile, load
from supervisor.core.devices import HOST, Reading, Survey, gib
from supervisor.errors import OperatorError
from supervisor.host import draft as files
from supervisor.host import hub
from supervisor.host.weights import locate, read_model
from supervisor.planning.nature import Model
from supervisor.planning.plan import Known, Plan
from supervisor.planning.plan import plan as planned
from supervisor.planning.proposal import Fields, Proposal, Wish, finished, propose

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Draft:
    """A profile that is good with all others, and not written yet."""

    file: Path
    text: str
    model: Model
    proposal: Proposal
    config: Config
    """With the profile in it."""
    plan: Plan


def draft(config: Config, weights: str, wish: Wish, cards: tuple[Reading, ...] | None) -> Draft:
    """Raises OperatorError: no such model, nowhere to put it, or a name that is taken."""
    if wish.name is not None and Path(wish.name).name != wish.name:
        raise OperatorError(f"{wish.name!r} is no name for a profile")
    model = find(weights, wish.revision, config)
    survey = _survey(cards, wish)
    proposal = propose(model, wish, config, survey)
    file = config.server.profiles / f"{proposal.name}.toml"
    if os.path.lexists(file):
        raise OperatorError(f"{file} is there already, and is not overwritten; write another --name")
    text = "\n".join([*_head(proposal, model, survey), _toml(finished(proposal, model)), *_hints()])
    whole = load(config.path, {file: text})
    known = {proposal.name: Known(model.checkpoint)}
    found = replace(planned(whole, [proposal.name], known, survey), sets={})
    return Draft(file, text, model, proposal, whole, found)


def find(weights: str, revision: str | None, config: Config) -> Model:
    """In a folder, in the cache where engines look, else on the hub. Raises OperatorError."""
    if weights.startswith(("/", ".", "~")) or Path(weights).is_dir():
        folder = Path(weights).expanduser().resolve()
        if not folder.is_dir():
            raise OperatorError(f"there is no folder {folder}")
        return read_model(folder, str(folder))
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", weights):
        raise OperatorError(
            f"{weights!r} is neither a folder nor a name such as meta-llama/Llama-3.1-8B-Instruct"
        )
    environ = {**os.environ, **config.engine.env}
    sought = Profile(name="sought", model="sought", weights=weights, revision=revision)
    if (cached := locate(sought, config, os.environ)) is not None:
        with contextlib.suppress(OperatorError):  # a download that was broken off: the hub knows all of it
            return read_model(cached, weights)
    return asyncio.run(hub.describe(weights, revision, environ))


def land(place: Place, made: Draft) -> str:
    """Writes it. What is said then. Raises OperatorError."""
    try:
        files.create(made.file, made.text)
    except FileExistsError as error:
        raise OperatorError(f"{made.file} came into being meanwhile, and is not overwritten") from error
    except OSError as error:
        raise OperatorError(f"{made.file} cannot be written: {error.strerror}") from error
    return f"{made.file} is written; {tell_daemon(place)}"


def show(made: Draft) -> None:
    plan.show(made.plan)
    click.echo()
    click.echo(f"# {made.file}")
    click.echo(made.text)
    for remark in remarks(made):
        click.echo(f"note: {remark}")


def as_json(made: Draft, told: str | None) -> Json:
    return {
        "profile": made.proposal.name,
        "file": str(made.file),
        "toml": made.text,
        "read_from": made.model.where,
        "notes": [*remarks(made)],
        "written": told is not None,
        "message": told or "nothing was written",
        "plan": plan.as_json(made.plan),
    }


def remarks(made: Draft) -> Iterator[str]:
    yield from made.proposal.remarks
    modes = made.config.modes
    if modes and not any(made.proposal.name in made.config.profiles_in(mode) for mode in modes):
        yield f"no mode has it: add {made.proposal.name} to the profiles of one"


def _survey(cards: tuple[Reading, ...] | None, wish: Wish) -> Survey:
    survey = asyncio.run(read_devices(cards))
    if survey.trouble and not wish.cpu:
        instead = "describe cards, such as --cards 2x24GiB, or write --cpu"
        raise OperatorError(f"the GPUs of this host cannot be read: {survey.trouble}; {instead}")
    return survey


def _head(proposal: Proposal, model: Model, survey: Survey) -> Iterator[str]:
    """What it was made from, in the numbers of `llmd plan`."""
    yield f"# Proposed by `llmd add` for {_where(proposal)}, from {model.where}."
    yield "#"
    if counted := proposal.outlook.footprint:
        yield f"# it may take {gib(counted.budget):>16}" + (" of each" if len(proposal.cards) > 1 else "")
        yield f"#   weights   {gib(counted.weights):>16}"
        yield f"#   work      {gib(counted.work):>16}   an estimate: activations, CUDA graphs, CUDA itself"
        if counted.kv:
            holds = f"{counted.tokens:,} tokens, {counted.requests:.1f} full requests"
            yield f"#   KV cache  {gib(counted.room):>16} = {holds}"
    else:
        yield f"# What it will take is not known: {proposal.outlook.reason}."
    for remark in proposal.remarks:
        yield f"# {remark[0].upper()}{remark[1:]}."


def _where(proposal: Proposal) -> str:
    named = (
        "the CPU" if card.device == HOST else f"GPU {card.index} ({card.name}, {gib(card.total)})"
        for card in proposal.cards
    )
    return " and ".join(named)


def _toml(fields: Fields) -> str:
    """A line for each: the only lists are short."""
    return re.sub(r"\[\s+(.*?),\s+\]", _on_one_line, tomli_w.dumps(fields), flags=re.DOTALL).rstrip()


def _on_one_line(found: re.Match[str]) -> str:
    return f"[{' '.join(found[1].split())}]"


def _hints() -> Iterator[str]:
    yield '# idle_ttl = "30m"                   # without a request it is stopped; "off": never'
    yield "# pin = true                         # never evicted"
    yield ""
