"""Commands that make a host ready: completion in the shell."""

from __future__ import annotations

import click

from supervisor.cli import completing
from supervisor.cli.keyring import keys

__all__ = ["completion", "keys"]


@click.command()
@click.argument("shell", type=click.Choice(completing.SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what SHELL needs to complete llmd's commands, flags, profiles and models.

    Where to put it: ~/.local/share/bash-completion/completions/llmd for bash, _llmd in a directory of fpath for
    zsh, ~/.config/fish/completions/llmd.fish for fish.
    """
    click.echo(completing.script(context.find_root().command, shell))
