"""A request's body: in memory while it is small, else in a nameless file, and never more than is allowed."""

from __future__ import annotations

import contextlib
import mmap
import tempfile
from collections.abc import Iterator
from typing import IO

from aiohttp import web

from supervisor.errors import BadRequest, BodyTooLarge, NotAvailable
from supervisor.web.demands import NO_DEMANDS
from supervisor.web.invitation import invite

SMALL = 1 << 20
"""Bytes; more go to a file, whose pages the kernel may drop. Writing them there takes no longer than copying."""


class Body:
    """`data` is a buffer: bytes, or a file's pages. The file goes with the last reference to it."""

    def __init__(self, data: bytes | mmap.mmap) -> None:
        self.data = data
        self.demands = NO_DEMANDS
        """Found as its ask is read; a form has none."""

    def __len__(self) -> int:
        return len(self.data)


async def read_body(request: web.Request, limit: int) -> Body:
    """Decompressed. Raises BodyTooLarge over `limit` bytes, and BadRequest where it cannot be read."""
    if (request.content_length or 0) > limit:
        raise _too_large(limit)
    invite(request)
    try:
        return await _read(request, limit)
    except (web.RequestPayloadError, ValueError) as error:  # a length or a compression that does not hold
        raise BadRequest(f"the body could not be read: {type(error).__name__}") from None


async def _read(request: web.Request, limit: int) -> Body:
    size = 0
    with contextlib.closing(_Spool()) as spool:
        async for chunk in request.content.iter_any():
            size += len(chunk)
            if size > limit:
                raise _too_large(limit)
            spool.add(chunk)
        return spool.body()


class _Spool:
    """What has come of a body so far. Its methods raise NotAvailable where the disk takes no more."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._file: IO[bytes] | None = None

    def add(self, chunk: bytes) -> None:
        if self._file is None and len(self._head) + len(chunk) <= SMALL:
            self._head += chunk
            return
        with _room():
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="llmd-")  # noqa: SIM115 - `close` does
                self._file.write(self._head)
            self._file.write(chunk)

    def body(self) -> Body:
        if self._file is None:
            return Body(bytes(self._head))
        with _room():
            self._file.flush()
            return Body(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ))

    def close(self) -> None:
        """The pages of a body outlive its file."""
        if self._file:
            with contextlib.suppress(OSError):  # what did not fit is tried once more, and not wanted
                self._file.close()


@contextlib.contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = f"there is no room on disk for the body: {error.strerror}"
        raise NotAvailable(what, retry_after=10) from error


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than the {limit} bytes that server.max_body allows")
