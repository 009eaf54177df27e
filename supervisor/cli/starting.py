"""A start as it goes on: a bar where a person watches, a line for each stage where stderr is a file or a pipe."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click

from supervisor.cli.client import Client
from supervisor.errors import LlmdError

Show = Callable[[dict[str, Any]], None]
"""Is given an engine's entry in the status."""

_LOOK_AGAIN = 0.5
_LOADING = frozenset({"starting", "waking"})


async def start_watched(client: Client, profile: str, show: Show, pin: bool | None = None) -> str:
    """As `Client.start`, calling `show` twice a second meanwhile."""
    looking = asyncio.create_task(_look(client, profile, show))
    try:
        return await client.start(profile, pin=pin)
    finally:
        looking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await looking


async def _look(client: Client, name: str, show: Show) -> None:
    while True:
        with contextlib.suppress(LlmdError):  # the start may go well all the same, and it will tell
            for engine in _engines(await client.status(), name):
                show(engine)
        await asyncio.sleep(_LOOK_AGAIN)


def _engines(status: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The engines that `name` may mean: a profile, or the model of a single profile."""
    engines = status.get("engines", [])
    named = [engine for engine in engines if engine.get("profile") == name]
    return named or [engine for engine in engines if engine.get("model") == name][:1]


def shown(profile: str) -> contextlib.AbstractContextManager[Show]:
    watched = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    return _bar(profile) if watched else contextlib.nullcontext(_lines())


@contextlib.contextmanager
def _bar(profile: str) -> Iterator[Show]:
    """Gone when the start is over: its result is a line of its own."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(profile, total=100)

        def show(engine: dict[str, Any]) -> None:
            stage, percent = _stage(engine)
            progress.update(task, description=f"{engine['profile']}: {stage}", completed=percent or 0)

        yield show


def _lines() -> Show:
    told: set[str] = {"cold"}  # a look may come before the start

    def show(engine: dict[str, Any]) -> None:
        stage, percent = _stage(engine)
        if stage not in told:
            told.add(stage)
            done = "" if percent is None else f"{percent:.0f} % "
            with contextlib.suppress(OSError):  # whoever read this has gone; the start goes on
                click.echo(f"{engine['profile']}: {done}{stage}", err=True)

    return show


def _stage(engine: dict[str, Any]) -> tuple[str, float | None]:
    """A stage of loading with its percentage, or the state where there is none."""
    if engine.get("state") in _LOADING and engine.get("stage"):
        return str(engine["stage"]), engine.get("percent")
    return str(engine.get("state")), None
