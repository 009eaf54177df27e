"""How the end of a body is told in HTTP/1.1: by chunks; and a body without what its sender framed it in."""

from __future__ import annotations

from types import SimpleNamespace

import httptools

from supervisor.host.upstream import Head

LAST_CHUNK = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """A piece of a body whose length is not told before."""
    return b"%x\r\n%s\r\n" % (len(data), data)


class Unframed:
    """The slow way of an answer: its body taken out of its framing, in chunks of our own or, for HTTP/1.0, bare."""

    def __init__(self, head: Head, chunked: bool) -> None:
        self.chunked = chunked
        self._body: list[bytes] = []
        tells = SimpleNamespace(on_body=self._body.append)  # and holds nothing that holds the parser
        self._parser = httptools.HttpResponseParser(tells)
        self._parser.feed_data(head.raw)

    def take_out(self, data: bytes) -> bytes:
        if data:
            self._parser.feed_data(data)
        body = b"".join(self._body)
        self._body.clear()
        return body

    def wrap(self, body: bytes, done: bool) -> bytes:
        if not self.chunked:
            return body
        return (chunk(body) if body else b"") + (LAST_CHUNK if done else b"")
