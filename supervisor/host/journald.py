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
from functools import cache, lru_cache
from typing import Any

import msgspec

SOCKET = "/run/systemd/journal/socket"

PRIORITIES = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3}
"""Level -> syslog's, which systemd also takes from a `<N>` before a line."""

_NAME = re.compile(r"[A-Z0-9_]{1,58}")
"""After the prefix; journald throws away a field of another name."""

_TOLD = frozenset({"timestamp", "level", "message"})
"""The journal has a field of its own for these."""

_PLAIN = (str, int, float)


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
    told = [(_read(text), text) for text in lines.split("\n") if text]
    left = [f"<{_priority(line)}>{text}\n" for line, text in told if not _sent(line, text)]
    return "".join(left)


def _read(text: str) -> Mapping[str, Any]:
    try:
        found: Mapping[str, Any] = msgspec.json.decode(text)
    except msgspec.DecodeError:  # lone surrogates
        found = json.loads(text)
    return found


def _priority(line: Mapping[str, Any]) -> int:
    return PRIORITIES.get(line["level"], 6)


def _sent(line: Mapping[str, Any], text: str) -> bool:
    try:
        _sender().sendto(_entry(line, text), socket.MSG_DONTWAIT, SOCKET)
    except OSError:
        return False
    return True


def _entry(line: Mapping[str, Any], text: str) -> bytes:
    """NAME=VALUE lines; a value with a line break has its length in front. Lists and objects are in the text alone."""
    told = [(_called(name), str(value)) for name, value in line.items() if isinstance(value, _PLAIN)]
    short = [f"{name}={value}\n" for name, value in told if name and "\n" not in value]
    long = [_long(name, value) for name, value in told if name and "\n" in value]
    head = f"MESSAGE={text}\nPRIORITY={_priority(line)}\nSYSLOG_IDENTIFIER=llmd\n"
    return "".join((head, *short)).encode(errors="replace") + b"".join(long)


def _long(name: str, value: str) -> bytes:
    """The length as 64 bits, the least first."""
    told = value.encode(errors="replace")
    return b"%b\n%b%b\n" % (name.encode(), struct.pack("<Q", len(told)), told)


@lru_cache(maxsize=1024)
def _called(name: str) -> str | None:
    """As a field of the journal's."""
    return f"LLMD_{name.upper()}" if name not in _TOLD and _NAME.fullmatch(name.upper()) else None


@cache
def _sender() -> socket.socket:
    """One for the process; it has no other end, so that a journal that restarts is found."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
