"""SIGTERM while a stream runs: no new connections, the stream goes on to its end or to the limit of the drain."""

from __future__ import annotations

import json
import signal
import socket

from tests.daemon import KEY, QUICK, Llmd, profile, until

PATIENCE = 60


def running(installed: list[Llmd], drain: float) -> Llmd:
    slow = profile("tiny", env={"STANDIN_TOKENS_PER_SECOND": "5"})
    installed.append(Llmd({"tiny_0": slow}, server={"drain": drain}, **QUICK))
    llmd = installed[0].start()
    assert llmd.run("start", "tiny_0").returncode == 0
    return llmd


def connect(llmd: Llmd) -> socket.socket:
    host, port = llmd.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE)


def stream(connection: socket.socket, tokens: int) -> None:
    """Ask for so many tokens, and read until the first of them is here."""
    ask = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": tokens,
        "stream": True,
    }
    body = json.dumps(ask)
    connection.sendall(
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\n"
        f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    )
    got = b""
    while b"data: " not in got:
        got += connection.recv(4096)
    assert got.startswith(b"HTTP/1.1 200")


def rest(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


def refuses(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=PATIENCE).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_running_stream_ends_well_while_nobody_new_gets_in(installed: list[Llmd]) -> None:
    llmd = running(installed, drain=30)
    assert llmd.process
    with connect(llmd) as connection:
        stream(connection, tokens=15)  # three seconds
        llmd.process.send_signal(signal.SIGTERM)
        until(lambda: refuses(connection.getpeername()), PATIENCE, llmd.text)
        assert llmd.status()["daemon"]["closing"] is True
        assert llmd.engine("tiny_0")["in_flight"] == 1
        got = rest(connection)
    assert got.count(b"data: [DONE]") == 1
    assert b'"error"' not in got
    assert got.endswith(b"0\r\n\r\n")  # ended, not cut
    assert llmd.process.wait(PATIENCE) == 0
    assert llmd.leftovers() == []


def test_a_stream_longer_than_the_drain_is_ended_and_says_so(installed: list[Llmd]) -> None:
    llmd = running(installed, drain=1)
    assert llmd.process
    with connect(llmd) as connection:
        stream(connection, tokens=400)  # more than a minute
        llmd.process.send_signal(signal.SIGTERM)
        got = rest(connection)
    assert b'"finish_reason": "abort"' in got
    assert got.count(b"data: ") < 100
    assert llmd.process.wait(PATIENCE) == 0
    assert llmd.leftovers() == []


def test_a_connection_that_was_kept_gets_a_refusal_or_an_end(installed: list[Llmd]) -> None:
    """It is no new connection, but no new request is begun on it."""
    llmd = running(installed, drain=30)
    assert llmd.process
    with connect(llmd) as kept, connect(llmd) as busy:
        kept.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert kept.recv(65536).startswith(b"HTTP/1.1 200")
        stream(busy, tokens=15)
        llmd.process.send_signal(signal.SIGTERM)
        until(lambda: refuses(busy.getpeername()), PATIENCE, llmd.text)
        body = b'{"model": "tiny", "prompt": "x", "max_tokens": 1}'
        head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\n"
        kept.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        answer = kept.recv(65536)
        assert answer.startswith(b"HTTP/1.1 503"), answer
        assert b"data: [DONE]" in rest(busy)
    assert llmd.process.wait(PATIENCE) == 0
