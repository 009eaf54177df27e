"""One field of a multipart form, found without taking the form apart: its files stay where they are. Pure."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator

from aiohttp.helpers import parse_mimetype
from aiohttp.multipart import parse_content_disposition

from supervisor.errors import BadRequest

_HEAD = 8192
"""Bytes of a part's headers that are looked at."""
_LONGEST = 4096
_PARTS = 1000


def boundary(content_type: str) -> bytes:
    """What separates the parts, of a Content-Type. Raises BadRequest."""
    kind = parse_mimetype(content_type)
    found = kind.parameters.get("boundary", "")
    if (kind.type, kind.subtype) != ("multipart", "form-data") or not re.fullmatch(r"[ -~]{1,70}", found):
        raise BadRequest("a form is expected here: Content-Type: multipart/form-data; boundary=...")
    return b"--" + found.encode()


def field(data: bytes | mmap.mmap, delimiter: bytes, name: str) -> str | None:
    """The value of a text field, None where it is absent. Raises BadRequest for a form that is none, and for a
    field given twice: which one counts would be the engine's choice."""
    found = [data[start:end] for called, start, end in _parts(data, delimiter) if called == name]
    if len(found) > 1:
        raise BadRequest(f"the form has {len(found)} fields {name!r}", param=name)
    if not found:
        return None
    if len(found[0]) > _LONGEST:
        raise BadRequest(f"the field {name!r} is too long", param=name)
    try:
        return found[0].decode()
    except UnicodeDecodeError:
        raise BadRequest(f"the field {name!r} is no UTF-8", param=name) from None


def _parts(data: bytes | mmap.mmap, delimiter: bytes) -> Iterator[tuple[str | None, int, int]]:
    """Name, and where the content lies, of each part."""
    if data[: len(delimiter)] != delimiter:
        raise BadRequest("the form could not be read: it does not begin with its boundary")
    at = 0
    for _ in range(_PARTS):
        at += len(delimiter)
        if data[at : at + 2] == b"--":
            return
        body = data.find(b"\r\n\r\n", at, at + _HEAD)
        end = data.find(b"\r\n" + delimiter, body)
        if body < 0 or end < 0:
            raise BadRequest("the form could not be read: a part of it does not end")
        yield _name(data[at:body]), body + 4, end
        at = end + 2
    raise BadRequest(f"the form has more than {_PARTS} fields")


def _name(head: bytes) -> str | None:
    for line in head.decode("latin-1").split("\r\n"):
        header, _, value = line.partition(":")
        if header.strip().lower() == "content-disposition":
            return parse_content_disposition(value.strip())[1].get("name")
    return None
