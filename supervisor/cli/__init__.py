"""The command line. Exit codes: 0 done, 1 refused or failed with a reason, 2 usage, 3 no daemon.

What is slow to import (aiohttp, rich, pydantic) is imported by the command that needs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from supervisor.errors import ConfigError, LlmdError, NoDaemon, Problem

if TYPE_CHECKING:
    from supervisor.cli.client import Client
    from supervisor.config import Config
    from supervisor.core.devices import Survey

CONFIGS = (Path("llmd.toml"), Path("/etc/llmd/llmd.toml"))
DEFAULT_SOCKET = Path("/run/llmd/llmd.sock")
NO_DAEMON = 3

T = TypeVar("T")

as_json = click.option("--json", "as_json", is_flag=True, help="Answer in JSON, for scripts.")


@dataclass(frozen=True, slots=True)
class Place:
    """Where the configuration and the daemon are, as far as the caller said."""

    config: Path | None
    socket: Path | None

    def load(self) -> Config:
        from supervisor.config import load

        config = load(self._config_path() or CONFIGS[-1])
        if self.socket is None:
            return config
        server = config.server.model_copy(update={"admin_socket": self.socket.absolute()})
        return config.model_copy(update={"server": server})

    def find_socket(self) -> Path:
        """With no configuration at all the daemon may still be where it is by default."""
        if self.socket is None and self._config_path() is not None:
            return self.load().server.admin_socket
        return self.socket or DEFAULT_SOCKET

    def _config_path(self) -> Path | None:
        return self.config or next((path for path in CONFIGS if path.exists()), None)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", type=click.Path(path_type=Path), envvar="LLMD_CONFIG", help="Path of llmd.toml.")
@click.option("--socket", type=click.Path(path_type=Path), envvar="LLMD_SOCKET", help="The admin socket.")
@click.version_option(package_name="llmd")
@click.pass_context
def main(context: click.Context, config: Path | None, socket: Path | None) -> None:
    """One daemon that runs a GPU host's language models."""
    context.obj = Place(config, socket)


@main.command()
@click.option("--keep-engines", is_flag=True, help="Leave engines running at the end, for the next daemon.")
@click.pass_obj
def serve(place: Place, keep_engines: bool) -> None:
    """Run the daemon here, until Ctrl-C or SIGTERM."""
    with _errors(False):
        config = place.load()
        from supervisor.daemon import serve as run

        sys.exit(run(config, keep_engines=keep_engines))


@main.command()
@as_json
@click.pass_obj
def status(place: Place, as_json: bool) -> None:
    """Show devices and models."""
    with _errors(as_json):
        answer = _call(place, lambda client: client.status())
        if as_json:
            _print_json(answer)
            return
        from rich.console import Console

        from supervisor.cli import tables

        tables.show(answer, Console(highlight=False))


@main.command()
@click.argument("profile")
@as_json
@click.pass_obj
def start(place: Place, profile: str, as_json: bool) -> None:
    """Start PROFILE's engine and wait until it is ready."""
    with _errors(as_json):
        if as_json:
            _print_json({"message": _call(place, lambda client: client.start(profile))})
        else:
            click.echo(_start_shown(place, profile))


@main.command()
@click.argument("profile")
@click.option("--now", is_flag=True, help="Do not wait for running requests.")
@as_json
@click.pass_obj
def stop(place: Place, profile: str, now: bool, as_json: bool) -> None:
    """Stop PROFILE's engine, after its running requests."""
    with _errors(as_json):
        message = _call(place, lambda client: client.stop(profile, now=now))
        _print_json({"message": message}) if as_json else click.echo(message)


@main.command()
@click.argument("profile")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on.")
@click.option("-n", "--lines", type=click.IntRange(min=0), default=100, show_default=True)
@click.pass_obj
def logs(place: Place, profile: str, follow: bool, lines: int) -> None:
    """Print the log of PROFILE's engine."""

    async def copy(client: Client) -> None:
        async for chunk in client.logs(profile, lines=lines, follow=follow):
            click.echo(chunk, nl=False)

    with _errors(False), contextlib.suppress(KeyboardInterrupt):
        _call(place, copy)


@main.command()
@as_json
@click.pass_obj
def check(place: Place, as_json: bool) -> None:
    """Check the configuration against itself and this host."""
    warnings: list[Problem] = []
    profiles = 0
    try:
        config = place.load()
        problems, warnings = _examine(config)
        profiles = len(config.profiles)
    except ConfigError as error:
        problems = list(error.problems)
    if as_json:
        found = {"problems": [*map(_entry, problems)], "warnings": [*map(_entry, warnings)]}
        _print_json({"ok": not problems, "profiles": profiles, **found})
    else:
        _print_findings(problems, warnings)
        if not problems:
            click.echo(f"{config.path}: good, {profiles} {'profile' if profiles == 1 else 'profiles'}")
    sys.exit(1 if problems else 0)


def _call(place: Place, ask: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
    from supervisor.cli.client import Client

    async def call() -> T:
        async with Client(socket) as client:
            return await ask(client)

    socket = place.find_socket()
    return asyncio.run(call())


def _start_shown(place: Place, profile: str) -> str:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    from supervisor.cli.client import start_watched

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(profile, total=100)

        def show(engine: dict[str, Any]) -> None:
            stage = engine.get("stage") or engine.get("state")
            progress.update(task, description=f"{profile}: {stage}", completed=engine.get("percent") or 0)

        return _call(place, lambda client: start_watched(client, profile, show))


@contextlib.contextmanager
def _errors(as_json: bool) -> Iterator[None]:
    """Says an error on stderr, with the engine's log where it brought one; as JSON on stdout for scripts."""
    try:
        yield
    except LlmdError as error:
        log = list(getattr(error, "log", ()))
        if as_json:
            code = getattr(error, "reason", error.code)
            _print_json({"error": {"message": error.message, "code": code, "log": log}})
        else:
            click.echo("\n".join([str(error), *(f"  {line}" for line in log)]), err=True)
        sys.exit(NO_DAEMON if isinstance(error, NoDaemon) else 1)


def _examine(config: Config) -> tuple[list[Problem], list[Problem]]:
    from supervisor.config import locate, warnings
    from supervisor.core.fit import check_devices

    return locate(check_devices(config, asyncio.run(_survey()))), warnings(config)


async def _survey() -> Survey:
    from supervisor.host.gpus import Gpus
    from supervisor.host.memory import read_host_memory

    gpus = Gpus()
    gpus.start(lambda survey: None)
    try:
        survey = await gpus.read()
    finally:
        gpus.close()
    return replace(survey, readings=(*survey.readings, read_host_memory()))


def _print_findings(problems: list[Problem], warnings: list[Problem]) -> None:
    for problem in problems:
        click.echo(str(problem), err=True)
    for warning in warnings:
        click.echo(f"{warning} (warning)", err=True)


def _entry(problem: Problem) -> dict[str, Any]:
    return {
        "file": str(problem.file),
        "line": problem.line,
        "what": problem.what,
        "instead": problem.instead,
    }


def _print_json(value: dict[str, Any]) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))
