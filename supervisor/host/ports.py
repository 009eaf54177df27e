"""Whether an address can be listened on, and else by whom it is taken."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class Door:
    """`trouble`: errno of the attempt, None where it can be listened on. `pid`: who does, as far as we may see."""

    trouble: int | None = None
    pid: int | None = None
    name: str | None = None


def knock(host: str, port: int) -> Door:
    """Binds for a moment and never listens, so nobody can connect. Raises nothing."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as bound:
            # As the daemon: old connections are no bar.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
    except socket.gaierror:
        return Door(errno.EADDRNOTAVAIL)
    except OSError as error:
        return _taken(port) if error.errno == errno.EADDRINUSE else Door(error.errno)
    return Door()


def _taken(port: int) -> Door:
    """Other users' sockets are listed without their process."""
    with contextlib.suppress(psutil.Error, OSError):
        listening = (each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN)
        pids = [each.pid for each in listening if each.laddr and each.laddr.port == port and each.pid]
        if pids:
            return Door(errno.EADDRINUSE, pids[0], _name(pids[0]))
    return Door(errno.EADDRINUSE)


def _name(pid: int) -> str:
    try:
        return psutil.Process(pid).name()
    except psutil.Error:
        return "?"


def explain(number: int) -> str:
    """`"Permission denied"`."""
    return os.strerror(number)
