"""Shell completion: click's scripts for bash, zsh and fish, and the names that a configuration holds.

A shell asks by running `llmd` itself with `_LLMD_COMPLETE` set, so what it offers is never out of date.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click

from supervisor.cli.base import Place
from supervisor.errors import LlmdError

if TYPE_CHECKING:
    from supervisor.config import Config

SHELLS = ("bash", "zsh", "fish")

Completer = Callable[[click.Context, click.Parameter, str], list[str]]


def script(main: click.Command, shell: str) -> str:
    """What `shell` reads to complete `llmd`. Raises KeyError for one that click does not know."""
    from click.shell_completion import ShellComplete, get_completion_class

    found: type[ShellComplete] | None = get_completion_class(shell)
    if found is None:
        raise KeyError(shell)
    words = found(main, {}, "llmd", "_LLMD_COMPLETE")
    return words.source_template % words.source_vars()


def _names(pick: Callable[[Config], Iterable[str]]) -> Completer:
    """Offers names of the configuration that the line so far means; nothing where it is not good."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
        given = context.find_root().params
        try:
            config = Place(given.get("config"), given.get("socket")).load()
        except LlmdError:
            return []
        return sorted(name for name in pick(config) if name.startswith(incomplete))

    return complete


def _models(config: Config) -> set[str]:
    models = {profile.model for profile in config.profiles.values()}
    return models | set(config.profiles) | {name for each in config.profiles.values() for name in each.lora}


profiles = _names(lambda config: config.profiles)
models = _names(_models)
modes = _names(lambda config: (*config.modes, "auto"))
sources = _names(lambda config: config.keys)
