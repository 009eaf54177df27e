"""`llmd top`: reads the status again and again, listens to keys, and draws; the terminal is given back as it was."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
import termios
import tty
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from rich.console import Console
from rich.live import Live

from supervisor.cli import itinerary, reasons
from supervisor.cli.client import Client
from supervisor.cli.screen import Doubt, Screen
from supervisor.errors import LlmdError, OperatorError

EVERY = 1.0
"""Seconds between two looks."""

KEYS = {"\x1b[A": "k", "\x1bOA": "k", "\x1b[B": "j", "\x1bOB": "j", "\x03": "q"}
"""What a terminal sends -> the key that it means."""

CHANGES: dict[str, Callable[[Screen], None]] = {
    "j": lambda screen: screen.move(1),
    "k": lambda screen: screen.move(-1),
    "\t": Screen.switch,
    "o": Screen.reorder,
    "s": Screen.doubt_stop,
    "c": Screen.doubt_cancel,
}
"""What a key does on the screen alone."""

_KEY = re.compile(r"\x1b[\[O][0-9;]*[A-Za-z~]|.", re.DOTALL)
"""Keys that are pressed fast, or pasted, come together."""


async def watch(client: Client) -> None:
    """Until q. Raises LlmdError where the daemon cannot be reached at first; later the screen says so."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise OperatorError("llmd top needs a terminal; for scripts there is `llmd status --json`")
    screen, keys = Screen(await client.status()), asyncio.Queue[str]()
    with _raw(keys), Live(screen, console=Console(), screen=True, auto_refresh=False) as live:
        asyncio.get_running_loop().add_signal_handler(signal.SIGWINCH, live.refresh)
        tasks = set[asyncio.Task[None]]()
        try:
            await _attend(client, screen, keys, live, tasks)
        finally:
            for task in tasks:
                task.cancel()


async def _attend(
    client: Client, screen: Screen, keys: asyncio.Queue[str], live: Live, tasks: set[asyncio.Task[None]]
) -> None:
    looking = asyncio.create_task(_look(client, screen, live))
    tasks.add(looking)
    live.refresh()
    while (key := await keys.get()) != "q":
        if work := _press(client, screen, key):
            tasks.add(task := asyncio.create_task(_done(work, screen, live)))
            task.add_done_callback(tasks.discard)
        live.refresh()


async def _look(client: Client, screen: Screen, live: Live) -> None:
    while True:
        try:
            screen.status = await client.status()
            screen.note(await client.requests())
        except LlmdError as error:
            screen.said = error.message
        live.refresh()
        await asyncio.sleep(EVERY)


def _press(client: Client, screen: Screen, key: str) -> Coroutine[Any, Any, None] | None:
    """Change the screen, or say what is to be asked of the daemon."""
    doubt, screen.doubt, screen.said = screen.doubt, None, ""
    if screen.page:
        screen.page = ()
    elif doubt is not None:
        return _do(client, screen, doubt) if key == "y" else None
    elif key == "w":
        return _explain(client, screen)
    elif change := CHANGES.get(key):
        change(screen)
    return None


async def _do(client: Client, screen: Screen, doubt: Doubt) -> None:
    if doubt.verb == "cancel":
        screen.said = f"{doubt.what}: {await client.cancel(doubt.name)}"
        return
    screen.said = f"stopping {doubt.name}"
    screen.said = await client.stop(doubt.name)


async def _explain(client: Client, screen: Screen) -> None:
    if screen.at_requests:
        asked = next(r["id"] for r in screen.requests if r["number"] == screen.chosen_request)
        screen.page = tuple(itinerary.lines(await client.why_request(asked)))
    elif screen.chosen is not None:
        screen.page = tuple(reasons.render(await client.why(screen.chosen)))


async def _done(work: Coroutine[Any, Any, None], screen: Screen, live: Live) -> None:
    try:
        await work
    except LlmdError as error:
        screen.said = " ".join(error.message.split())
    live.refresh()


@contextlib.contextmanager
def _raw(keys: asyncio.Queue[str]) -> Iterator[None]:
    """Keys as they are pressed, unechoed, into the queue."""
    loop, number = asyncio.get_running_loop(), sys.stdin.fileno()
    before = termios.tcgetattr(number)

    def read() -> None:
        pressed = os.read(number, 64).decode(errors="replace")
        for key in _KEY.findall(pressed) or ["q"]:  # nothing: the terminal has gone
            keys.put_nowait(KEYS.get(key, key))

    tty.setcbreak(number)
    loop.add_reader(number, read)
    try:
        yield
    finally:
        loop.remove_reader(number)
        termios.tcsetattr(number, termios.TCSADRAIN, before)
