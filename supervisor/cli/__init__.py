"""The command line. Exit codes: 0 done, 1 refused or failed with a reason, 2 usage, 3 no daemon, 130 Ctrl-C.

What is slow to import (aiohttp, rich, pydantic) is imported by the command that needs it.
"""

from __future__ import annotations

from pathlib import Path

import click

from supervisor.cli import acting, foreseeing, looking, preparing
from supervisor.cli.base import Place

_CONFIG = "llmd.toml; else $LLMD_CONFIG, ./llmd.toml or /etc/llmd/llmd.toml."
_SOCKET = "The daemon's admin socket; else $LLMD_SOCKET, or what llmd.toml says."


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", type=click.Path(path_type=Path), envvar="LLMD_CONFIG", help=_CONFIG)
@click.option("--socket", type=click.Path(path_type=Path), envvar="LLMD_SOCKET", help=_SOCKET)
@click.version_option(package_name="llmd")
@click.pass_context
def main(context: click.Context, config: Path | None, socket: Path | None) -> None:
    """One daemon that runs a GPU host's language models.

    New here? `llmd doctor` says what this host lacks, `llmd add` writes a profile for a model, `llmd serve` runs the
    daemon, and `llmd status`, `llmd top` and `llmd why` tell what it does.

    Exit codes: 0 done, 1 refused or failed with a reason, 2 usage, 3 no daemon, 130 Ctrl-C.
    """
    context.obj = Place(config, socket)


for module in (acting, looking, foreseeing, preparing):
    for command in vars(module).values():
        if isinstance(command, click.Command):
            main.add_command(command)
