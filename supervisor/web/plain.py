"""A plain request, read at once: a POST of JSON whose head any two readers understand alike. Pure.

Everything else is left to aiohttp, which refuses what has to be refused. Strict, so that it can be short: one
spelling of each header, no folding, no chunks, nothing that asks for another protocol.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

LONGEST_HEAD = 8 << 10
LONGEST_BODY = 8 << 20
"""Bytes; what is longer waits on disk, by the ordinary way, as does what comes slowly."""

_HEAD = re.compile(
    rb"POST (/v1/(?:chat/completions|completions|messages)) HTTP/1\.1\r\n((?:[A-Za-z0-9-]{1,64}+:[ -~]*+\r\n){2,64}+)\r\n"
)
_BARE = re.compile(rb"(?:GET|HEAD) /[!-~]* HTTP/1\.1\r\n((?:[A-Za-z0-9-]{1,64}+:[ -~]*+\r\n){1,64}+)\r\n")
"""A request without a body, such as for the list of models: aiohttp's, but its end is known."""

_HOST = re.compile(rb"[A-Za-z0-9.-]+(?::\d{1,5})?")
_LENGTH = re.compile(rb"[0-9]{1,7}")
_OTHERWISE = frozenset({b"transfer-encoding", b"content-encoding", b"expect", b"upgrade", b"x-llmd-hops"})
_JSON = b"application/json"


class Head(NamedTuple):
    """`size` is its own bytes, `length` the body's. `keeps`: the connection is for more requests. `headers` are lower
    case, `pairs` as they came."""

    size: int
    length: int
    keeps: bool
    path: str
    pairs: list[tuple[bytes, bytes]]
    headers: Mapping[bytes, bytes]


def read_head(data: bytes) -> Head | None:
    """None where it is not all here, or not plain."""
    found = _HEAD.match(data, 0, LONGEST_HEAD)
    if found is None:
        return None
    pairs = _pairs(found[2])
    headers = {name.lower(): value for name, value in pairs}
    if len(headers) < len(pairs) or not _OTHERWISE.isdisjoint(headers) or not _is_plain(headers):
        return None
    length = headers.get(b"content-length", b"")
    if _LENGTH.fullmatch(length) is None or int(length) > LONGEST_BODY:
        return None
    keeps = headers.get(b"connection", b"").lower() != b"close"
    return Head(found.end(), int(length), keeps, found[1].decode(), pairs, headers)


def is_bare(data: bytes) -> bool:
    """Whether this is one whole request without a body, and nothing else."""
    found = _BARE.fullmatch(data, 0, LONGEST_HEAD)
    names = {name.lower() for name, _ in _pairs(found[1])} if found else set()
    return found is not None and b"content-length" not in names and _OTHERWISE.isdisjoint(names)


def _pairs(lines: bytes) -> list[tuple[bytes, bytes]]:
    pairs = [line.partition(b":") for line in lines[:-2].split(b"\r\n")]
    return [(name, value.strip(b" ")) for name, _, value in pairs]


def _is_plain(headers: Mapping[bytes, bytes]) -> bool:
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    known = headers.get(b"connection", b"close").lower() in (b"close", b"keep-alive")
    return kind == _JSON and known and _HOST.fullmatch(headers.get(b"host", b"")) is not None
