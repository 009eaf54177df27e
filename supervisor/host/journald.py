"""systemd's journal, where stderr is one: lines with fields to search by, in its native protocol.

`journalctl -u llmd LLMD_PROFILE=llama_0` finds what is about one profile. A line's own text stays its MESSAGE.
"""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

SOCKET = "/run/systemd/journal/socket"

PRIORITIES = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3}
"""Level -> syslog's, which systemd also takes from a `<N>` before a line."""

_NAME = re.compile(r"[A-Z0-9_]{1,58}")
"""After the prefix; journald throws away a field of another name."""

_TOLD = frozenset({"timestamp", "level", "message"})
"""The journal has a field of its own for these."""


def listens() -> bool:
    """Whether stderr is the journal, which says so by the socket's device and inode."""
    told = os.environ.get("JOURNAL_STREAM")
    if not told:
        return False
    try:
        found = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return told == f"{found.st_dev}:{found.st_ino}"


def deliver(lines: str) -> str:
    """Send JSON lines. What it does not take (it is full, it is not there, a line is too long) comes back, with the
    priority in front, for stderr."""
    told = [(json.loads(text), text) for text in lines.split("\n") if text]
    left = [f"<{_priority(line)}>{text}\n" for line, text in told if not _sent(line, text)]
    return "".join(left)


def _priority(line: Mapping[str, Any]) -> int:
    return PRIORITIES.get(line["level"], 6)


def _sent(line: Mapping[str, Any], text: str) -> bool:
    try:
        _sender().sendto(_encoded(_fields(line, text)), socket.MSG_DONTWAIT, SOCKET)
    except OSError:
        return False
    return True


def _fields(line: Mapping[str, Any], text: str) -> dict[str, str]:
    """Lists and objects are in the text alone."""
    head = {"MESSAGE": text, "PRIORITY": str(_priority(line)), "SYSLOG_IDENTIFIER": "llmd"}
    plain = {name.upper(): value for name, value in line.items() if name not in _TOLD}
    return head | {
        f"LLMD_{name}": str(value)
        for name, value in plain.items()
        if isinstance(value, str | int | float) and _NAME.fullmatch(name)
    }


def _encoded(fields: Mapping[str, str]) -> bytes:
    """NAME=VALUE lines; a value with a line break has its length in front, as 64 bits, the least first."""
    return b"".join(_field(name.encode(), value.encode(errors="replace")) for name, value in fields.items())


def _field(name: bytes, value: bytes) -> bytes:
    if b"\n" not in value:
        return name + b"=" + value + b"\n"
    return name + b"\n" + struct.pack("<Q", len(value)) + value + b"\n"


@cache
def _sender() -> socket.socket:
    """One for the process; it has no other end, so that a journal that restarts is found."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
