"""Which headers go on, from a client to an engine and back, as the bytes that go on the wire. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from http import HTTPStatus

Headers = Iterable[tuple[bytes, bytes]]

_HOP = frozenset(
    {
        b"connection",
        b"content-length",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_KEYS = frozenset({b"authorization", b"x-api-key", b"cookie"})
_PRIVILEGES = frozenset({b"x-vllm-priority", b"x-data-parallel-rank"})
_OURS = frozenset(
    {b"host", b"expect", b"accept-encoding", b"content-encoding", b"x-request-id", b"x-llmd-hops"}
)
_NOT_FOR_ENGINES = _HOP | _KEYS | _PRIVILEGES | _OURS
"""vLLM grants the privileges to whoever asks; bodies have been decompressed when they come here."""
_TOLD = frozenset({b"x-request-id", b"request-id", b"x-llmd-profile", b"x-llmd-queue-ms", b"x-llmd-dropped"})
"""By llmd itself, whatever a peer says of its own."""
_NOT_FOR_CLIENTS = _HOP | _TOLD | {b"server", b"date", b"set-cookie", b"x-accel-buffering"}
_OF_BODY = frozenset({b"content-type", b"content-encoding", b"content-language", b"etag", b"last-modified"})
UNGATHERED = b"X-Accel-Buffering: no\r\n"
"""With events: nginx before llmd, where it compresses them, would keep tokens and signs of life back to the end."""

_PEOPLE = b"x-openwebui-user"
_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}


def for_engine(headers: Headers) -> bytes:
    """Of a client's headers."""
    return lines(_without(headers, _NOT_FOR_ENGINES))


def for_peer(headers: Headers) -> bytes:
    """The same, and nothing of the person who asks."""
    kept = _without(headers, _NOT_FOR_ENGINES)
    return lines([pair for pair in kept if not pair[0].lower().startswith(_PEOPLE)])


@lru_cache(maxsize=64)
def for_client(headers: tuple[tuple[bytes, bytes], ...]) -> bytes:
    """Of an engine's headers, which are the same for many of its answers."""
    return lines(_without(headers, _NOT_FOR_CLIENTS))


def kept_for_client(headers: Headers) -> list[tuple[bytes, bytes]]:
    return _without(headers, _NOT_FOR_CLIENTS)


def kept_of_refusal(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Where llmd tells it in its own words."""
    kept = _without(headers, _NOT_FOR_CLIENTS | _OF_BODY)
    return [*kept, (b"Content-Type", b"application/json")]


def status_line(status: int) -> bytes:
    return b"HTTP/1.1 %d %s\r\n" % (status, _REASONS.get(status, b""))


def lines(headers: Headers) -> bytes:
    """As they go on the wire."""
    return b"".join([b"%s: %s\r\n" % pair for pair in headers])


def _without(headers: Headers, names: frozenset[bytes]) -> list[tuple[bytes, bytes]]:
    """Nor those that `Connection` names."""
    kept, named = [], b""
    for pair in headers:
        lowered = pair[0].lower()
        if lowered == b"connection":
            named += pair[1] + b","
        elif lowered not in names:
            kept.append(pair)
    if not named:
        return kept
    hop = {name.strip().lower() for name in named.split(b",")}
    return [pair for pair in kept if pair[0].lower() not in hop]
