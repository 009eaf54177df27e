"""Commands that make a host ready: is it well, profiles, keys, completion in the shell."""

from __future__ import annotations

import sys

import click

from supervisor.cli import completing
from supervisor.cli.base import Place, as_json, errors, print_json
from supervisor.cli.keyring import keys

__all__ = ["add", "completion", "doctor", "keys"]


@click.command(short_help="Look this host over, and say what to do.")
@as_json
@click.pass_obj
def doctor(place: Place, as_json: bool) -> None:
    """Look this host over: what would keep llmd from working here, and what to do about it.

    The daemon, the configuration, driver and GPUs, vLLM, disks, memory, addresses, clock, rights and cgroups.
    Changes nothing, needs no daemon and no root, though root sees more. Exits with 1 where anything fails.
    """
    from supervisor.cli.doctor import chart, rounds

    with errors(as_json):
        findings = rounds.look(place)
        if as_json:
            print_json(chart.as_json(findings))
        else:
            from rich.console import Console

            chart.show(findings, Console(highlight=False))
            if not chart.is_well(findings):
                click.echo("llmd cannot work here as it is configured: see the lines that fail", err=True)
    sys.exit(0 if chart.is_well(findings) else 1)


@click.command(short_help="Write a profile that fits, for a folder or a Hugging Face name.")
@click.argument("weights")
@click.option(
    "--gpu", "gpus", type=int, multiple=True, help="On this GPU; again for several, which share it."
)
@click.option("--cpu", is_flag=True, help="On the CPU.")
@click.option("--name", help="Of the profile. [default: the model's, and where it runs]")
@click.option("--model", help="What clients ask for. [default: the name of the weights]")
@click.option("--revision", help="Of the weights.")
@click.option("--cards", metavar="CARDS", help="For 2x24GiB, or 0:24GiB,1:48GiB, not for this host's cards.")
@click.option("--dry-run", is_flag=True, help="Show the profile, and write nothing.")
@click.option("--yes", is_flag=True, help="Write it without asking.")
@as_json
@click.pass_obj
def add(
    place: Place,
    weights: str,
    gpus: tuple[int, ...],
    cpu: bool,
    name: str | None,
    model: str | None,
    revision: str | None,
    cards: str | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Write a profile for WEIGHTS, a folder or a Hugging Face name, that fits this host.

    Reads config.json and the weights' headers from the folder, the hub's cache, or the hub itself; downloads no
    weights. Chooses GPUs, context, requests at once and memory as `llmd plan` counts them, and parsers for tools
    and thoughts of known families. Needs no daemon. Never overwrites a profile.
    """
    if as_json and not (dry_run or yes):
        raise click.UsageError("with --json nobody is asked: write --yes, or --dry-run")
    if cpu and gpus:
        raise click.UsageError("--cpu or --gpu, not both")
    from supervisor.cli import adding
    from supervisor.cli.plan import described
    from supervisor.planning.proposal import Wish

    with errors(as_json):
        wish = Wish(gpus, cpu, name, model, revision)
        draft = adding.draft(place.load(), weights, wish, described(cards, "--cards"))
        if not as_json:
            adding.show(draft)
        write = not dry_run and (yes or click.confirm(f"write {draft.file}?", err=True))
        told = adding.land(place, draft) if write else None
        if as_json:
            print_json(adding.as_json(draft, told))
        elif told:
            click.echo(told)


@click.command(short_help="Complete commands and names in your shell.")
@click.argument("shell", type=click.Choice(completing.SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what SHELL needs to complete llmd's commands, flags, profiles and models.

    Where to put it: ~/.local/share/bash-completion/completions/llmd for bash, _llmd in a directory of fpath for
    zsh, ~/.config/fish/completions/llmd.fish for fish.
    """
    click.echo(completing.script(context.find_root().command, shell))
