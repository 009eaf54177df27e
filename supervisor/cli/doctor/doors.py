"""Verdicts on how llmd is reached, and on the daemon itself. Pure."""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterator
from typing import Any

from supervisor.cli.doctor.finding import Finding, fail, good, warn
from supervisor.errors import LlmdError, NoDaemon
from supervisor.host.ports import Door, explain
from supervisor.host.tailnet import TAILNET

Json = dict[str, Any]


def port(listen: str, address: tuple[str, int] | None, door: Door, daemon: Json | None) -> Finding:
    """`listen` as written; `address` None while the tailnet has none. `daemon`: what the one that runs says."""
    if address is None:
        instead = "run tailscale up; llmd starts without it, and looks again every 5 s"
        return warn("listen", f"{listen}: this host has no address in a tailnet yet", instead)
    where = f"{address[0]}:{address[1]}" if listen.startswith(TAILNET) else listen
    if door.trouble is None:
        return good("listen", f"{where} is free")
    if door.trouble == errno.EADDRINUSE:
        if daemon and (door.pid == daemon.get("pid") or f"http://{where}" in daemon.get("listening", ())):
            return good("listen", f"{where}: llmd itself")
        who = f"{door.name} {door.pid}" if door.pid else "another program, of another user"
        return fail("listen", f"{where} is taken by {who}", "end it, or write another port in server.listen")
    if door.trouble == errno.EADDRNOTAVAIL:
        return fail(
            "listen", f"this host has no address {address[0]}", "write one of its own in server.listen"
        )
    if door.trouble in (errno.EACCES, errno.EPERM):
        return fail("listen", f"{where} needs rights that you lack", "write a port of 1024 or more")
    return fail("listen", f"{where}: {explain(door.trouble)}", "write another address in server.listen")


def tailnet(address: str | None, listens: Collection[str]) -> Finding:
    if any(listen.startswith(f"{TAILNET}:") for listen in listens):
        if address is None:
            return warn("tailscale", "no address yet", "run tailscale up, and see `tailscale status`")
        return good("tailscale", address)
    return good("tailscale", f"{address}, not listened on" if address else "not used")


def daemon(status: Json | None, trouble: LlmdError | None) -> Iterator[Finding]:
    if status is None:
        if trouble is None or isinstance(trouble, NoDaemon):
            yield good("daemon", "none is running")
        else:
            yield warn("daemon", trouble.message, "ask it as root, or as a member of its group")
        return
    told = status["daemon"]
    yield good("daemon", f"llmd {told.get('version')}, pid {told.get('pid')}")
    for engine in status.get("engines", []):
        if why := engine.get("failure"):
            yield warn(
                "engines",
                f"{engine['profile']}: {' '.join(why.split())}",
                f"see `llmd logs {engine['profile']}`",
            )
    for stray in status.get("strays", []):
        what = f"pid {stray.get('pid')} of {stray.get('profile')} was left behind: {stray.get('reason')}"
        yield warn("engines", what, "end it, if it is not wanted")
