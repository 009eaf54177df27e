"""Commands that tell what is, what was, and why."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

import click

from supervisor.cli import completing
from supervisor.cli.arguments import Duration, Pattern
from supervisor.cli.base import Interrupted, Place, as_json, call, errors, print_json

if TYPE_CHECKING:
    from supervisor.cli.client import Client


@click.command()
@as_json
@click.pass_obj
def status(place: Place, as_json: bool) -> None:
    """Show devices and models. TTL is what is left until an idle model stops; TOK/S is of the last seconds."""
    with errors(as_json):
        answer = call(place, lambda client: client.status())
        if as_json:
            print_json(answer)
            return
        from rich.console import Console

        from supervisor.cli import tables

        tables.show(answer, Console(highlight=False))


@click.command(short_help="Show devices, models and requests, live.")
@click.pass_obj
def top(place: Place) -> None:
    """Show devices, models and requests in flight as they change.

    Up and down choose a model; Tab goes to the requests, where they choose a request, and back. o: the order of
    either. s: stop the model. c: cancel the request. w: why the model is (not) loaded, or why the request went where
    it did. q: quit.

    Stopping and cancelling ask for a y first. TOK/S is of the last 5 s. Where a terminal is short, GPUs get a line
    each, and what there is no room for is counted; what is chosen from comes first.
    """
    from supervisor.cli.watch import watch

    with errors(False), contextlib.suppress(Interrupted):
        call(place, watch)


@click.command(short_help="Print the logs of the daemon and its engines.")
@click.argument("profile", required=False, shell_complete=completing.profiles)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on.")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(0, 100_000),
    default=100,
    show_default=True,
    help="The newest so many.",
)
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

    with errors(as_json), contextlib.suppress(Interrupted):
        call(place, copy if as_it_is else read)


@click.command(short_help="Tell why a model is (not) loaded.")
@click.argument("model", required=False, shell_complete=completing.models)
@click.option("--history", is_flag=True, help="What was decided before, of MODEL or of all.")
@click.option("--request", metavar="ID", help="Why the request of this id went where it did.")
@click.option("--since", "seconds", type=Duration(), help="History of this long alone, such as 1h.")
@click.option(
    "-n", "limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="The newest so many."
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
    with errors(as_json):
        if request is not None:
            answer = call(place, lambda client: client.why_request(request))
        elif history:
            answer = call(place, lambda client: client.decisions(model, seconds, limit))
        else:
            answer = call(place, lambda client: client.why(model or ""))
        if as_json:
            print_json(answer)
            return
        from rich.console import Console

        from supervisor.cli import itinerary, reasons

        console = Console(highlight=False)
        if request is not None:
            itinerary.show(answer, console)
            return
        reasons.show_history(answer["decisions"], console) if history else reasons.show(answer, console)


@click.command(short_help="Tell who asked for what.")
@click.argument("model", required=False, shell_complete=completing.models)
@click.option("--key", shell_complete=completing.sources, help="Of this key alone, by its name in llmd.toml.")
@click.option("--since", "seconds", type=Duration(), help="Of this long alone, such as 7d.")
@click.option("--failed", is_flag=True, help="Those alone that did not end well.")
@click.option("--totals", is_flag=True, help="Sums by day, key and model.")
@click.option(
    "-n", "limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="The newest so many."
)
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
    with errors(as_json):
        rows = call(
            place, lambda client: client.activity(model=model, key=key, since=seconds, limit=limit, **flags)
        )
        if as_json:
            print_json({"totals" if totals else "requests": rows})
            return
        from rich.console import Console

        from supervisor.cli import requests

        if as_csv:
            requests.write_csv(rows)
        else:
            requests.show(rows, Console(highlight=False), totals=totals)
