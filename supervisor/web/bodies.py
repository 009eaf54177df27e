"""A request's body: in memory while it is small, else in a nameless file, and never more than is allowed."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import AsyncIterator
from typing import IO

from aiohttp import web

from supervisor.errors import BadRequest, BodyTooLarge

SMALL = 1 << 20
"""Bytes; more go to a file, whose pages the kernel may drop. Writing them there takes no longer than copying."""

_PIECE = 1 << 16


class Body:
    """`data` is a buffer: bytes, or a file's pages. The file goes with the last reference to it."""

    def __init__(self, data: bytes | mmap.mmap) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def sendable(self) -> bytes | AsyncIterator[bytes] | None:
        """For a request to an engine; a file goes piece by piece."""
        return (self.data or None) if isinstance(self.data, bytes) else self._pieces()

    async def _pieces(self) -> AsyncIterator[bytes]:
        for at in range(0, len(self.data), _PIECE):
            yield self.data[at : at + _PIECE]


async def read_body(request: web.Request, limit: int) -> Body:
    """Decompressed. Raises BodyTooLarge over `limit` bytes, and BadRequest where it cannot be read."""
    if (request.content_length or 0) > limit:
        raise _too_large(limit)
    try:
        return await _read(request, limit)
    except (web.RequestPayloadError, ValueError) as error:  # a length or a compression that does not hold
        raise BadRequest(f"the body could not be read: {type(error).__name__}") from None


async def _read(request: web.Request, limit: int) -> Body:
    head, size = bytearray(), 0
    file: IO[bytes] | None = None
    try:
        async for chunk in request.content.iter_any():
            size += len(chunk)
            if size > limit:
                raise _too_large(limit)
            if file is None and size > SMALL:
                file = tempfile.TemporaryFile(prefix="llmd-")  # noqa: SIM115 - closed below, its pages live on
                file.write(head)
            (file.write if file else head.extend)(chunk)
        if file is None:
            return Body(bytes(head))
        file.flush()
        return Body(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))
    finally:
        if file:
            file.close()


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than the {limit} bytes that server.max_body allows")
