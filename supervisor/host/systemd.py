"""What a daemon tells systemd about itself: the protocol of sd_notify(3), nothing where nobody listens."""

from __future__ import annotations

import os
import socket


def notify(*assignments: str) -> bool:
    """Send assignments such as `READY=1`. False where no service manager asked for any, or it has gone."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):  # the abstract namespace: no file, the name begins with a zero byte
        address = "\0" + address[1:]
    # MSG_DONTWAIT: a stuck service manager must not stop the loop that calls this.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.sendto("\n".join(assignments).encode(), socket.MSG_DONTWAIT, address)
        except OSError:
            return False
    return True


def ready(status: str) -> bool:
    return notify("READY=1", _status(status))


def say(status: str) -> bool:
    """One line for people, shown by `systemctl status`."""
    return notify(_status(status))


def stopping(status: str) -> bool:
    return notify("STOPPING=1", _status(status))


def pat_watchdog() -> bool:
    return notify("WATCHDOG=1")


def watchdog_interval() -> float | None:
    """Seconds between pats: half of what systemd allows, as it advises. None where it watches nobody."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    watched = os.environ.get("WATCHDOG_PID") or str(os.getpid())
    if not microseconds.isdigit() or int(microseconds) == 0 or watched != str(os.getpid()):
        return None
    return int(microseconds) / 2e6


def _status(text: str) -> str:
    """A line break would begin another assignment."""
    return "STATUS=" + " ".join(text.split())
