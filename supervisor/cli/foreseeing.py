"""Commands that need no daemon: is the configuration good, what would fit, what would have been."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from supervisor.cli import completing
from supervisor.cli.base import Place, as_json, errors, print_json
from supervisor.errors import ConfigError, Problem

if TYPE_CHECKING:
    pass

STARTS = ("%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M", "%Y-%m-%d")


@click.command()
@as_json
@click.pass_obj
def check(place: Place, as_json: bool) -> None:
    """Check the configuration against itself and this host."""
    from supervisor.cli.examine import examine

    warnings: list[Problem] = []
    profiles = 0
    try:
        config = place.load()
        problems, warnings = examine(config)
        profiles = len(config.profiles)
    except ConfigError as error:
        problems = list(error.problems)
    if as_json:
        found = {"problems": [*map(entry, problems)], "warnings": [*map(entry, warnings)]}
        print_json({"ok": not problems, "profiles": profiles, **found})
    else:
        print_findings(problems, warnings)
        if not problems:
            click.echo(f"{config.path}: good, {profiles} {'profile' if profiles == 1 else 'profiles'}")
    sys.exit(1 if problems else 0)


def print_findings(problems: list[Problem], warnings: list[Problem]) -> None:
    for problem in problems:
        click.echo(str(problem), err=True)
    for warning in warnings:
        click.echo(f"{warning} (warning)", err=True)


def entry(problem: Problem) -> dict[str, Any]:
    return {
        "file": str(problem.file),
        "line": problem.line,
        "what": problem.what,
        "instead": problem.instead,
    }


@click.command("plan", short_help="Tell which models fit, alone and together.")
@click.argument("profiles", nargs=-1, metavar="[PROFILE|MODEL]...", shell_complete=completing.models)
@click.option("--gpus", metavar="CARDS", help="Plan for 2x24GiB, or 0:24GiB,1:48GiB, not for this host's.")
@as_json
@click.pass_obj
def plan_(place: Place, profiles: tuple[str, ...], gpus: str | None, as_json: bool) -> None:
    """Tell which profiles fit, alone and together, and what would make a misfit fit.

    Reads the weights' headers and config.json where they are on this host, never the network, and needs no
    daemon. NEEDS is what a profile asks of each card, in GiB (in the order of ON where they differ), WEIGHTS and
    WORK what it takes of that before the KV cache; work is an estimate (~) until a start has logged it. KV/1K is
    MiB for 1024 tokens, KV TOKENS how many fit, FULL how many requests of max_model_len. ALONE is what becomes of
    it with the cards to itself: fits; misfit, never; "as stated", the cards can give what it asks for, and as its
    weights are not here nobody knows whether that is enough; unknown, a card cannot be read. Exits with 1 where a
    profile can never fit.
    """
    from supervisor.cli import plan

    with errors(as_json):
        cards = plan.described(gpus, "--gpus")
        config = place.load()
        found = plan.gather(config, plan.chosen(config, profiles), cards)
        print_json(plan.as_json(found)) if as_json else plan.show(found)
        sys.exit(0 if found.possible else 1)


@click.command(short_help="Replay a request log on imaginary GPUs.")
@click.argument("trace", type=click.Path(path_type=Path))
@click.option(
    "--gpus", default="2x24GiB", show_default=True, help="The imaginary GPUs, such as 24GiB,48GiB or 1:48GiB."
)
@click.option(
    "--policy",
    "policies",
    multiple=True,
    metavar="NAME",
    help="llmd, lru, wait-for-idle, count-lru or keep-alive; can be repeated.  [default: llmd]",
)
@click.option(
    "--start",
    type=click.DateTime(STARTS),
    metavar="TIME",
    help="When the trace began: 2026-01-01T13:00; else now.",
)
@as_json
@click.pass_obj
def simulate(
    place: Place, trace: Path, gpus: str, policies: tuple[str, ...], start: datetime | None, as_json: bool
) -> None:
    """Replay TRACE on imaginary GPUs and show who would have waited how long.

    TRACE has the columns time,key,model,prompt,output (.csv), or an object with these a line (.jsonl): seconds
    since its beginning or since 1970, who asks, for which model, prompt tokens and output tokens; 30 days at most.
    The core that serves decides; engines load and answer at assumed speeds. Needs no daemon and no GPU. SWAPS are
    engines in use that had to go, LOADING the seconds that cards spent on starts.
    """
    from supervisor.cli import replay

    with errors(as_json):
        asked = replay.asked(policies)
        ready = replay.prepare(place.load(), trace, replay.cards(gpus))
        for remark in ready.remarks:
            click.echo(remark, err=True)
        began = ready.trace.began
        begins = start or (datetime.now() if began is None else datetime.fromtimestamp(began))
        found = replay.play(ready, asked, begins.astimezone())
        if as_json:
            print_json(found)
            return
        from rich.console import Console

        replay.show(found, Console(highlight=False))
