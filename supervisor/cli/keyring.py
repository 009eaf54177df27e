"""`llmd keys`: which keys the configuration has, new ones, and the hash of one. A secret is shown when it is made,
once, and never again."""

from __future__ import annotations

import os
import re
import secrets
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from supervisor.cli.base import Place, as_json, errors, print_json
from supervisor.errors import OperatorError

if TYPE_CHECKING:
    from supervisor.config import Config, Key

BITS = 256

_PLACES = ("env", "file", "hash")


@click.group(invoke_without_command=True, short_help="List the API keys, make new ones.")
@as_json
@click.pass_context
def keys(context: click.Context, as_json: bool) -> None:
    """List the API keys of the configuration, never their secrets; make new ones.

    FOUND tells whether the secret is where the configuration says, as this shell sees it: a variable may be set
    for the daemon alone.
    """
    if context.invoked_subcommand is not None:
        if as_json:
            raise click.UsageError("write --json after the subcommand")
        return
    with errors(as_json):
        config = context.obj.load()
        listed = [_entry(source, key) for source, key in config.keys.items()]
        print_json({"keys": listed}) if as_json else _show(listed, config)


@keys.command()
@click.argument("name")
@click.option("--priority", type=click.Choice(["interactive", "batch"]), help="Who waits for whom.")
@click.option("--scope", type=click.Choice(["api", "read", "admin"]), help="What it opens besides the API.")
@click.option("--weight", type=click.FloatRange(0, 1000, min_open=True), help="Its share among several keys.")
@click.option("--write", is_flag=True, help="Add it to llmd.toml, instead of printing what to add.")
@as_json
@click.pass_obj
def new(place: Place, /, name: str, write: bool, as_json: bool, **limits: str | float | None) -> None:
    """Make a key for the source NAME. Its secret is printed this once; the configuration gets its hash."""
    with errors(as_json):
        config, secret = place.load(), _secret()
        text = _table(name, secret, limits, config)
        told = _write(place, config, text) if write else None
        if as_json:
            print_json({"name": name, "secret": secret, "toml": text, "written": write})
            return
        click.echo(secret)
        said = told or f"add this to {config.path}, then run `llmd reload`:\n\n{text}"
        click.echo(f"this is the secret of {name}, shown once; {said.rstrip()}", err=True)


@keys.command("hash")
@as_json
def hash_(as_json: bool) -> None:
    """Read a secret from stdin and print its hash, as [keys.NAME] takes it."""
    from supervisor.config.secrets import digest

    with errors(as_json):
        typed = sys.stdin.isatty()
        given = (click.prompt("secret", hide_input=True, err=True) if typed else sys.stdin.read()).strip()
        if not given:
            raise OperatorError("there is no secret on stdin")
        hashed = f"sha256:{digest(given)}"
        print_json({"hash": hashed}) if as_json else click.echo(hashed)


def _secret() -> str:
    return f"sk-{secrets.token_urlsafe(BITS // 8)}"


def _table(name: str, secret: str, limits: dict[str, str | float | None], config: Config) -> str:
    """The lines for llmd.toml. Raises OperatorError for a name that is taken, or is none."""
    import tomli_w

    from supervisor.config.secrets import digest

    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        raise OperatorError(f"{name!r} is no name for a key; write letters, digits, _ and -, such as webui")
    if name in config.keys:
        raise OperatorError(f"there is a key {name} already; take it out of {config.path} first")
    given = {limit: value for limit, value in limits.items() if value is not None}
    return tomli_w.dumps({"keys": {name: {"hash": f"sha256:{digest(secret)}", **given}}})


def _write(place: Place, config: Config, text: str) -> str:
    """Adds `text` to llmd.toml, if that is good with it."""
    from supervisor.cli.telling import tell_daemon
    from supervisor.config import load
    from supervisor.host import draft

    try:
        whole = f"{config.path.read_text(encoding='utf-8').rstrip()}\n\n{text}"
        load(config.path, {config.path: whole})
        draft.replace(config.path, whole)
    except OSError as error:
        raise OperatorError(f"{config.path} cannot be written: {error.strerror}") from error
    return f"{config.path} has its hash; {tell_daemon(place)}"


def _entry(source: str, key: Key) -> dict[str, Any]:
    from supervisor.config.secrets import find

    kind = next(place for place in _PLACES if getattr(key, place) is not None)
    where = None if kind == "hash" else str(getattr(key, kind))
    found = find(key, os.environ)
    limits = {name: getattr(key, name) for name in type(key).model_fields if name not in _PLACES}
    state = {"found": found.digest is not None, "trouble": found.trouble}
    return {"name": source, "kind": kind, "where": where, **limits, **state}


def _show(listed: list[dict[str, Any]], config: Config) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not listed:
        click.echo(
            f"{config.path} has no keys: everyone who reaches the port may ask; see `llmd keys new -h`"
        )
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for heading in ("KEY", "FROM", "PRIORITY", "SCOPE", "LIMITS", "FOUND"):
        table.add_column(heading, overflow="fold")
    for entry in listed:
        table.add_row(*map(Text, _row(entry)))
    Console(highlight=False).print(table)


def _row(entry: dict[str, Any]) -> Iterator[str]:
    yield entry["name"]
    yield " ".join(filter(None, (entry["kind"], entry["where"])))
    yield entry["priority"]
    yield entry["scope"]
    told = {"name", "kind", "where", "priority", "scope", "found", "trouble"}
    limits = {name: value for name, value in entry.items() if name not in told and value is not None}
    yield ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in limits.items()
    )
    yield entry["trouble"] or "yes"
