"""The command line. Exit codes: 0 done, 1 refused or failed with a reason, 2 usage, 3 no daemon, 130 Ctrl-C.

What is slow to import (aiohttp, rich, pydantic) is imported by the command that needs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from supervisor.errors import ConfigError, LlmdError, NoDaemon, OperatorError, Problem

if TYPE_CHECKING:
    from supervisor.cli.client import Client
    from supervisor.config import Config

CONFIGS = (Path("llmd.toml"), Path("/etc/llmd/llmd.toml"))
DEFAULT_SOCKET = Path("/run/llmd/llmd.sock")
REFUSED, NO_DAEMON, INTERRUPTED = 1, 3, 130

STARTS = ("%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M", "%Y-%m-%d")

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
@click.pass_obj
def top(place: Place) -> None:
    """Show devices and models as they change; keys choose, sort, stop and tell why."""
    from supervisor.cli.watch import watch

    with _errors(False), contextlib.suppress(Interrupted):
        _call(place, watch)


@main.command()
@click.argument("profile")
@as_json
@click.pass_obj
def start(place: Place, profile: str, as_json: bool) -> None:
    """Start PROFILE's engine and wait until it is ready. Ctrl-C ends the waiting alone."""
    with _errors(as_json):
        going_on = f"the daemon goes on starting {profile}; `llmd stop {profile}` ends that"
        if as_json:
            _print_json({"message": _call(place, lambda client: client.start(profile), going_on)})
            return
        from supervisor.cli.starting import shown, start_watched

        with shown(profile) as show:
            message = _call(place, lambda client: start_watched(client, profile, show), going_on)
        click.echo(message)


@main.command()
@click.argument("profile")
@click.option("--now", is_flag=True, help="Do not wait for running requests.")
@as_json
@click.pass_obj
def stop(place: Place, profile: str, now: bool, as_json: bool) -> None:
    """Stop PROFILE's engine, after its running requests."""
    with _errors(as_json):
        going_on = f"the daemon goes on stopping {profile}"
        message = _call(place, lambda client: client.stop(profile, now=now), going_on)
        _print_json({"message": message}) if as_json else click.echo(message)


class Duration(click.ParamType[float]):
    """`2h`, `90m`, `45s`, or seconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        from pydantic_core import PydanticCustomError

        from supervisor.config.quantities import duration

        try:
            return duration(float(str(value)) if str(value).isdecimal() else value)
        except PydanticCustomError as error:
            self.fail(f"{error.message()}; {(error.context or {}).get('instead')}", param, ctx)


class Size(click.ParamType[int]):
    """`12GiB`, `512MiB`, or bytes."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from pydantic_core import PydanticCustomError

        from supervisor.config.quantities import size

        try:
            return size(int(str(value)) if str(value).isdecimal() else value)
        except PydanticCustomError as error:
            self.fail(f"{error.message()}; {(error.context or {}).get('instead')}", param, ctx)


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("size", type=Size(), required=False)
@click.option("--gpu", "gpus", type=int, multiple=True, help="On this GPU; again for several. [default: 0]")
@click.option("--ttl", type=Duration(), help="For so long, such as 20m. [default: 1h; a week with a command]")
@click.option("--as", "borrower", help="Who borrows, for status. [default: the command, or you]")
@click.option("--end", help="Give back the loan of this name.")
@as_json
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def lease(
    place: Place,
    size: int | None,
    gpus: tuple[int, ...],
    ttl: float | None,
    borrower: str | None,
    end: str | None,
    as_json: bool,
    command: tuple[str, ...],
) -> None:
    """Borrow SIZE of GPU memory for another program.

    Idle engines make room, busy ones are waited for. With `-- COMMAND ...` the loan lasts as long as the
    command, whose exit code is passed on; without, until its time is over or `llmd lease --end NAME`.
    """
    import getpass

    from supervisor.cli.lending import run_under_loan

    if (size is None) == (end is None):
        raise click.UsageError("say how much, such as 12GiB, or --end and the name of a loan")
    with _errors(as_json):
        if end is not None:
            message = _call(place, lambda client: client.take_back(end))
            _print_json({"message": message}) if as_json else click.echo(message)
            return
        who = borrower or (Path(command[0]).name if command else getpass.getuser())
        lasts = ttl or (7 * 86400.0 if command else 3600.0)
        wish = {"borrower": who, "gpus": list(gpus or (0,)), "size": size, "ttl": lasts}
        if command:
            say = partial(click.echo, err=True)
            sys.exit(_call(place, lambda client: run_under_loan(client, wish, command, say)))
        answer = _call(place, lambda client: client.lend(wish))
        _print_json(answer) if as_json else click.echo(f"{answer['message']}; it is called {answer['name']}")


@main.command()
@click.argument("name", required=False)
@click.option(
    "--for", "seconds", type=Duration(), help="Only for so long, such as 2h; then the calendar again."
)
@click.option("--plan", is_flag=True, help="Tell what the change would do, and do nothing.")
@as_json
@click.pass_obj
def mode(place: Place, name: str | None, seconds: float | None, plan: bool, as_json: bool) -> None:
    """Show the mode, or change to mode NAME; NAME `auto` goes back to the calendar."""
    from supervisor.cli import modes

    if name is None and (plan or seconds):
        raise click.UsageError("name the mode: llmd mode NAME")
    if seconds is not None and (plan or name == "auto"):
        raise click.UsageError("--for goes with the name of a mode alone")
    with _errors(as_json):
        if name is None:
            answer = {"mode": _call(place, lambda client: client.status())["daemon"]["mode"]}
        elif plan:
            answer = _call(place, lambda client: client.plan_mode(name))
        else:
            answer = {"message": _call(place, lambda client: client.set_mode(name, seconds))}
        _print_json(answer) if as_json else click.echo(modes.told(answer))


class Pattern(click.ParamType["re.Pattern[str]"]):
    """A regular expression, as Python has them."""

    name = "pattern"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> re.Pattern[str]:
        try:
            return re.compile(str(value))
        except re.error as error:
            self.fail(f"{value!r} is no regular expression: {error}", param, ctx)


@main.command()
@click.argument("profile", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on.")
@click.option("-n", "--lines", type=click.IntRange(0, 100_000), default=100, show_default=True)
@click.option("--since", "seconds", type=Duration(), help="Of this long alone, such as 10m.")
@click.option("--grep", "pattern", type=Pattern(), help="Lines alone that match this regular expression.")
@as_json
@click.pass_obj
def logs(
    place: Place,
    profile: str | None,
    follow: bool,
    lines: int,
    seconds: float | None,
    pattern: re.Pattern[str] | None,
    as_json: bool,
) -> None:
    """Print the log of PROFILE's engine; without one those of the daemon and all engines. Ctrl-C ends it."""
    from supervisor.cli import loglines

    wanted = loglines.Filter(profile, lines, seconds, pattern, follow)
    as_it_is = profile is not None and seconds is None and pattern is None and not as_json

    async def copy(client: Client) -> None:
        async for chunk in client.logs(profile or "", lines=lines, follow=follow):
            click.echo(chunk, nl=False)

    def read(client: Client) -> Coroutine[Any, Any, None]:
        return loglines.show(client, wanted, click.echo, as_json=as_json)

    with _errors(as_json), contextlib.suppress(Interrupted):
        _call(place, copy if as_it_is else read)


@main.command()
@click.argument("model", required=False)
@click.option("--history", is_flag=True, help="What was decided before, of MODEL or of all.")
@click.option("--request", metavar="ID", help="Why the request of this id went where it did.")
@click.option("--since", "seconds", type=Duration(), help="History of this long alone, such as 1h.")
@click.option(
    "-n", "limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="Decisions."
)
@as_json
@click.pass_obj
def why(
    place: Place,
    model: str | None,
    history: bool,
    request: str | None,
    seconds: float | None,
    limit: int,
    as_json: bool,
) -> None:
    """Tell why MODEL, or a profile, is (not) loaded, what it needs and who holds that."""
    if request is not None and (history or model is not None or seconds is not None):
        raise click.UsageError("--request goes alone")
    if not history and request is None and (model is None or seconds is not None):
        raise click.UsageError("name a model, or ask for --history or --request")
    with _errors(as_json):
        if request is not None:
            answer = _call(place, lambda client: client.why_request(request))
        elif history:
            answer = _call(place, lambda client: client.decisions(model, seconds, limit))
        else:
            answer = _call(place, lambda client: client.why(model or ""))
        if as_json:
            _print_json(answer)
            return
        from rich.console import Console

        from supervisor.cli import itinerary, reasons

        console = Console(highlight=False)
        if request is not None:
            itinerary.show(answer, console)
            return
        reasons.show_history(answer["decisions"], console) if history else reasons.show(answer, console)


@main.command()
@click.argument("model", required=False)
@click.option("--key", help="Of this key alone, by its name in llmd.toml.")
@click.option("--since", "seconds", type=Duration(), help="Of this long alone, such as 7d.")
@click.option("--failed", is_flag=True, help="Those alone that did not end well.")
@click.option("--totals", is_flag=True, help="Sums by day, key and model.")
@click.option("-n", "limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="Requests.")
@click.option("--csv", "as_csv", is_flag=True, help="Answer in CSV, for spreadsheets.")
@as_json
@click.pass_obj
def activity(
    place: Place,
    model: str | None,
    key: str | None,
    seconds: float | None,
    failed: bool,
    totals: bool,
    limit: int,
    as_csv: bool,
    as_json: bool,
) -> None:
    """Tell who asked for what (of MODEL, or a profile), with tokens and times; never what was written.

    IN and OUT are tokens, WAIT is for an engine, TOOK is all of it. In totals ENGINE is the time on engines.
    """
    if as_csv and as_json:
        raise click.UsageError("--csv or --json, not both")
    flags = {"failed": int(failed) or None, "totals": int(totals) or None}
    with _errors(as_json):
        rows = _call(
            place, lambda client: client.activity(model=model, key=key, since=seconds, limit=limit, **flags)
        )
        if as_json:
            _print_json({"totals" if totals else "requests": rows})
            return
        from rich.console import Console

        from supervisor.cli import requests

        if as_csv:
            requests.write_csv(rows)
        else:
            requests.show(rows, Console(highlight=False), totals=totals)


@main.command()
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
        found = {"problems": [*map(_entry, problems)], "warnings": [*map(_entry, warnings)]}
        _print_json({"ok": not problems, "profiles": profiles, **found})
    else:
        _print_findings(problems, warnings)
        if not problems:
            click.echo(f"{config.path}: good, {profiles} {'profile' if profiles == 1 else 'profiles'}")
    sys.exit(1 if problems else 0)


@main.command("plan")
@click.argument("profiles", nargs=-1, metavar="[PROFILE]...")
@click.option("--gpus", metavar="CARDS", help="Plan for 2x24GiB, or 0:24GiB,1:48GiB, not for this host's.")
@as_json
@click.pass_obj
def plan_(place: Place, profiles: tuple[str, ...], gpus: str | None, as_json: bool) -> None:
    """Tell which profiles fit, alone and together, and what would make a misfit fit.

    Reads the weights' headers and config.json where they are on this host, never the network, and needs no
    daemon. NEEDS is what a profile asks of each card, in GiB, WEIGHTS and WORK what it takes of that before the
    KV cache; work is an estimate (~) until a start has logged it. KV/1K is MiB for 1024 tokens, KV TOKENS how
    many fit, FULL how many requests of max_model_len. Exits with 1 where a profile can never fit.
    """
    from supervisor.cli import plan

    with _errors(as_json):
        try:
            cards = plan.describe(gpus) if gpus is not None else None
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--gpus") from error
        config = place.load()
        found = plan.gather(config, plan.chosen(config, profiles), cards)
        _print_json(plan.as_json(found)) if as_json else plan.show(found)
        sys.exit(0 if found.possible else 1)


@main.command()
@click.argument("trace", type=click.Path(path_type=Path))
@click.option("--gpus", default="2x24GiB", show_default=True, help="The imaginary GPUs, such as 24GiB,48GiB.")
@click.option(
    "--policy", "policies", multiple=True, metavar="NAME", help="llmd, or another; can be repeated."
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
    since its beginning, who asks, for which model, prompt tokens and output tokens. The core that serves decides;
    engines load and answer at assumed speeds. Needs no daemon and no GPU.
    """
    from supervisor.cli import replay

    with _errors(as_json):
        begins = (start or datetime.now()).astimezone()
        asked = replay.asked(policies)
        found = replay.play(place.load(), trace, replay.cards(gpus), asked, begins)
        if as_json:
            _print_json(found)
            return
        from rich.console import Console

        replay.show(found, Console(highlight=False))


def _call(
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
        sys.exit(_exit_code(error))


def _exit_code(error: LlmdError) -> int:
    if isinstance(error, Interrupted):
        return INTERRUPTED
    return NO_DAEMON if isinstance(error, NoDaemon) else REFUSED


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
