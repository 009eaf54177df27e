"""Commands that change something: the daemon itself, its engines, the mode, what is lent."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import click

from supervisor.cli import completing
from supervisor.cli.arguments import Duration, Size
from supervisor.cli.base import Place, as_json, call, errors, print_json

LEAST_LOAN = 1 << 20
"""Bytes. Whoever writes less has left out the unit."""


@click.command()
@click.option("--keep-engines", is_flag=True, help="Leave engines running at the end, for the next daemon.")
@click.pass_obj
def serve(place: Place, keep_engines: bool) -> None:
    """Run the daemon here, until Ctrl-C or SIGTERM."""
    with errors(False):
        here = place.fixed()
        config = here.load()
        from supervisor.daemon import serve as run

        sys.exit(run(config, here.load, keep_engines=keep_engines))


@click.command()
@click.argument("profile", shell_complete=completing.profiles)
@click.option(
    "--pin/--no-pin",
    default=None,
    help="Keep it, busy or idle, until it is stopped; or no longer.",
)
@as_json
@click.pass_obj
def start(place: Place, profile: str, pin: bool | None, as_json: bool) -> None:
    """Start PROFILE's engine and wait until it is ready. Ctrl-C ends the waiting alone."""
    with errors(as_json):
        going_on = f"the daemon goes on starting {profile}; `llmd stop {profile}` ends that"
        if as_json:
            print_json({"message": call(place, lambda client: client.start(profile, pin=pin), going_on)})
            return
        from supervisor.cli.starting import shown, start_watched

        with shown(profile) as show:
            message = call(place, lambda client: start_watched(client, profile, show, pin), going_on)
        click.echo(message)


@click.command()
@click.argument("profile", shell_complete=completing.profiles)
@click.option("--now", is_flag=True, help="Do not wait for running requests.")
@as_json
@click.pass_obj
def stop(place: Place, profile: str, now: bool, as_json: bool) -> None:
    """Stop PROFILE's engine, after its running requests."""
    with errors(as_json):
        going_on = f"the daemon goes on stopping {profile}"
        message = call(place, lambda client: client.stop(profile, now=now), going_on)
        print_json({"message": message}) if as_json else click.echo(message)


@click.command(short_help="Use a quarantined GPU again.")
@click.argument("gpu")
@as_json
@click.pass_obj
def release(place: Place, gpu: str, as_json: bool) -> None:
    """Use a quarantined GPU again, by its number or UUID: what did not come back counts as other people's memory."""
    with errors(as_json):
        message = call(place, lambda client: client.release(gpu))
        print_json({"message": message}) if as_json else click.echo(message)


@click.command(short_help="Take up a changed configuration.")
@click.option("--plan", is_flag=True, help="Tell what would change, and do nothing.")
@as_json
@click.pass_obj
def reload(place: Place, plan: bool, as_json: bool) -> None:
    """Have the daemon read llmd.toml and the profiles again: tells what changes, then changes that alone.

    A configuration with mistakes changes nothing. SIGHUP does the same, with the answer in the log.
    """
    from supervisor.cli import changes

    with errors(as_json):
        if not as_json:
            answer = call(place, lambda client: client.plan_reload())
            click.echo("\n".join(changes.told(answer)))
            if plan:
                return
            click.echo(changes.done(call(place, lambda client: client.reload()), answer))
            return
        print_json(call(place, lambda client: client.plan_reload() if plan else client.reload()))


@click.command(short_help="Show the mode, or change it.")
@click.argument("name", required=False, shell_complete=completing.modes)
@click.option(
    "--for", "seconds", type=Duration(), help="Only for so long, such as 2h; then the calendar again."
)
@click.option("--plan", is_flag=True, help="Tell what the change would do, and do nothing.")
@as_json
@click.pass_obj
def mode(place: Place, name: str | None, seconds: float | None, plan: bool, as_json: bool) -> None:
    """Show the mode, or change to mode NAME; NAME `auto` goes back to the calendar, --plan tells to which."""
    from supervisor.cli import modes

    if name is None and (plan or seconds is not None):
        raise click.UsageError("name the mode: llmd mode NAME")
    if seconds == 0:
        raise click.BadParameter("no time is too short; write 2h", param_hint="--for")
    if seconds is not None and (plan or name == "auto"):
        raise click.UsageError("--for goes with the name of a mode alone")
    with errors(as_json):
        if name is None:
            answer = {"mode": call(place, lambda client: client.status())["daemon"]["mode"]}
        elif plan:
            answer = call(place, lambda client: client.plan_mode(name))
        else:
            answer = {"message": call(place, lambda client: client.set_mode(name, seconds))}
        print_json(answer) if as_json else click.echo(modes.told(answer))


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("size", type=Size(), required=False)
@click.option("--gpu", "gpus", type=int, multiple=True, help="On this GPU; again for several. [default: 0]")
@click.option("--ttl", type=Duration(), help="For so long, such as 20m. [default: 1h; a week with a command]")
@click.option("--as", "borrower", help="Who borrows, for status. [default: the command, or you]")
@click.option("--end", help="Give back the loan of this name, or to this borrower.")
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
    if size is not None and size < LEAST_LOAN:
        raise click.BadParameter(f"{size} bytes is less than 1 MiB; write 12GiB", param_hint="SIZE")
    if ttl == 0:
        raise click.BadParameter("no time is too short; write 20m", param_hint="--ttl")
    with errors(as_json):
        if end is not None:
            message = call(place, lambda client: client.take_back(end))
            print_json({"message": message}) if as_json else click.echo(message)
            return
        who = borrower or (Path(command[0]).name if command else getpass.getuser())
        lasts = ttl if ttl is not None else 7 * 86400.0 if command else 3600.0
        wish = {"borrower": who, "gpus": list(gpus or (0,)), "size": size, "ttl": lasts}
        if command:
            say = partial(click.echo, err=True)
            sys.exit(call(place, lambda client: run_under_loan(client, wish, command, say)))
        answer = call(place, lambda client: client.lend(wish))
        print_json(answer) if as_json else click.echo(f"{answer['message']}; it is called {answer['name']}")
