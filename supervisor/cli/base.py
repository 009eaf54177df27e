"""What every command shares: where the configuration and the daemon are, and how errors are said."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from supervisor.errors import ConfigError, LlmdError, NoDaemon, OperatorError

if TYPE_CHECKING:
    from supervisor.cli.client import Client
    from supervisor.config import Config

CONFIGS = (Path("llmd.toml"), Path("/etc/llmd/llmd.toml"))
DEFAULT_SOCKET = Path("/run/llmd/llmd.sock")
REFUSED, NO_DAEMON, INTERRUPTED = 1, 3, 130

T = TypeVar("T")

as_json = click.option("--json", "as_json", is_flag=True, help="Answer in JSON, for scripts.")


class Interrupted(OperatorError):
    """Ctrl-C. The daemon keeps what it was asked for; the message says so."""

    code = "interrupted"


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

    def fixed(self) -> Place:
        """The same file from now on, whatever comes and goes beside it."""
        return Place((self._config_path() or CONFIGS[-1]).absolute(), self.socket)

    def find_socket(self) -> Path:
        """With no configuration at all the daemon may still be where it is by default."""
        path = self._config_path()
        if self.socket is not None or path is None:
            return self.socket or DEFAULT_SOCKET
        try:
            return self.load().server.admin_socket
        except ConfigError:
            from supervisor.config import admin_socket

            found = admin_socket(path)
            if found is None or not found.is_socket():
                raise
            return found  # a daemon may run on what was written before

    def _config_path(self) -> Path | None:
        return self.config or next((path for path in CONFIGS if path.exists()), None)


def call(
    place: Place, ask: Callable[[Client], Coroutine[Any, Any, T]], going_on: str = "nothing was changed"
) -> T:
    from supervisor.cli.client import Client

    async def call() -> T:
        async with Client(socket) as client:
            return await ask(client)

    socket = place.find_socket()
    try:
        return asyncio.run(call())
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted: {going_on}") from None


@contextlib.contextmanager
def errors(as_json: bool) -> Iterator[None]:
    """Says an error on stderr, with the engine's log where it brought one; as JSON on stdout for scripts."""
    try:
        yield
    except LlmdError as error:
        log = list(getattr(error, "log", ()))
        if as_json:
            code = getattr(error, "reason", error.code)
            print_json({"error": {"message": error.message, "code": code, "log": log}})
        else:
            click.echo("\n".join([str(error), *(f"  {line}" for line in log)]), err=True)
        sys.exit(exit_code(error))


def exit_code(error: LlmdError) -> int:
    if isinstance(error, Interrupted):
        return INTERRUPTED
    return NO_DAEMON if isinstance(error, NoDaemon) else REFUSED


def print_json(value: dict[str, Any]) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))
