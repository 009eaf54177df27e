"""What is read as a plain request is read so by aiohttp too, whatever is sent; and odd heads are left to it, quickly."""

from __future__ import annotations

import asyncio
import time

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParser
from hypothesis import example, given
from hypothesis import strategies as st

from supervisor.web.plain import LONGEST_BODY, is_bare, read_head

PLAIN = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: a.b:80\r\nAuthorization: Bearer x\r\n"
    b"Content-Type: application/json; charset=utf-8\r\nX-Own:  1 \r\nContent-Length: 2\r\n\r\n"
)
BARE = b"GET /v1/models?a=b HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\n"


def lines(*more: bytes, without: bytes = b"") -> bytes:
    kept = [line for line in PLAIN[:-4].split(b"\r\n") if not without or not line.startswith(without)]
    return b"\r\n".join([*kept, *more, b"", b""])


def test_a_plain_head_is_read() -> None:
    head = read_head(PLAIN + b"{}")
    assert head is not None
    assert (head.size, head.length, head.path) == (len(PLAIN), 2, "/v1/chat/completions")
    assert head.headers[b"x-own"] == b"1"
    assert head.keeps
    assert (b"Host", b"a.b:80") in head.pairs


@pytest.mark.parametrize(
    "data",
    [
        PLAIN[:-1],
        PLAIN.replace(b"1.1", b"1.0"),
        PLAIN.replace(b"POST", b"GET"),
        PLAIN.replace(b"/chat", b"/chat/../chat"),
        PLAIN.replace(b"completions", b"completions?a=b"),
        PLAIN.replace(b"application/json", b"text/plain"),
        PLAIN.replace(b"Host: a.b:80", b"Host: a@b"),
        PLAIN.replace(b"\r\n", b"\n"),
        PLAIN.replace(b"X-Own:", b"X-Own :"),
        PLAIN.replace(b"X-Own:  1 ", b"X-Own: \t1"),
        PLAIN.replace(b"X-Own:  1 ", b"X-Own: 1\r\n 2"),
        PLAIN.replace(b"Length: 2", b"Length: +2"),
        PLAIN.replace(b"Length: 2", b"Length: %d" % (LONGEST_BODY + 1)),
        lines(without=b"Host"),
        lines(without=b"Content-Length"),
        lines(b"content-length: 2"),
        lines(b"authorization: Bearer y"),
        lines(b"Transfer-Encoding: chunked"),
        lines(b"Content-Encoding: gzip"),
        lines(b"Expect: 100-continue"),
        lines(b"Connection: close, X-Own"),
        lines(b"Connection: X-Own"),
        lines(b"Upgrade: h2c"),
        lines(b"X-Llmd-Hops: 1"),
        lines(*(b"X-%d: y" % number for number in range(100))),
        lines(b"X-Long: " + b"y" * 9000),
    ],
)
def test_what_is_not_plain_is_left_to_aiohttp(data: bytes) -> None:
    assert read_head(data) is None


def read_by_aiohttp(data: bytes) -> list[tuple[str, str, int, str]]:
    """(method, path, bytes of body that are announced, Host) of every request in it. Raises HttpProcessingError."""
    loop = asyncio.new_event_loop()
    try:
        parser = HttpRequestParser(BaseProtocol(loop), loop, 1 << 16)
        found, _, _ = parser.feed_data(data)
        return [
            (m.method, m.path, int(m.headers.get("Content-Length", 0)), m.headers["Host"]) for m, _ in found
        ]
    finally:
        loop.close()


mutations = st.lists(
    st.tuples(
        st.integers(0, len(PLAIN) + 8),
        st.integers(0, 3),
        st.sampled_from(
            [
                b"",
                b"\r\n",
                b"\n",
                b"\r",
                b" ",
                b":",
                b"\x00",
                b"\t",
                b"a",
                b"\xff",
                b";",
                b"Content-Length: 5\r\n",
                b"Transfer-Encoding: chunked\r\n",
                b"Host: b\r\n",
                b"X: y\r\n",
                b"GET / HTTP/1.1\r\n",
            ]
        ),
    ),
    max_size=4,
)


@given(mutations)
@example([])
def test_whatever_is_plain_is_read_alike(changes: list[tuple[int, int, bytes]]) -> None:
    data = PLAIN + b"{}"
    for at, cut, put in changes:
        data = data[:at] + put + data[at + cut :]
    head = read_head(data)
    if head is None:
        return
    whole = data[: head.size].ljust(head.size) + b" " * head.length
    assert read_by_aiohttp(whole) == [("POST", head.path, head.length, head.headers[b"host"].decode())]


@given(mutations)
@example([])
def test_whatever_is_bare_is_one_request_without_a_body(changes: list[tuple[int, int, bytes]]) -> None:
    data = BARE
    for at, cut, put in changes:
        data = data[:at] + put + data[at + cut :]
    if not is_bare(data):
        return
    try:
        ((method, _, length, _),) = read_by_aiohttp(data + b"GET /next HTTP/1.1\r\nHost: b\r\n\r\n")[:1]
    except (HttpProcessingError, KeyError):
        return  # aiohttp refuses it, and closes
    assert (method in ("GET", "HEAD"), length) == (True, 0)


@pytest.mark.parametrize("filling", [b"X: y\r\n" * 2000, b"X:" + b" " * 9000, b"a" * 9000, b"X: " * 3000])
def test_odd_heads_are_told_quickly(filling: bytes) -> None:
    began = time.process_time()
    for start in (PLAIN[:-2], BARE[:-2]):
        for end in (b"", b"\r\n", b"\x00\r\n\r\n"):
            assert read_head(start + filling + end) is None
            assert not is_bare(start + filling + end)
    assert time.process_time() - began < 0.5
