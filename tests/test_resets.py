"""Clients that are cut off: in the queue, while the engine reads their prompt, in the middle of their answer."""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

import pytest

from tests.daemon import KEY, QUICK, Llmd, profile, told, until

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: a close is a reset."""

STREAM: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "x"}],
    "max_tokens": 400,
    "stream": True,
}


def running(installed: list[Llmd], **knobs: str) -> Llmd:
    """A daemon whose engine has one place."""
    installed.append(Llmd({"tiny_0": profile("tiny", max_concurrent=1, env=knobs)}, **QUICK))
    llmd = installed[-1].start()
    assert llmd.run("start", "tiny_0").returncode == 0, llmd.text()
    return llmd


def asking(llmd: Llmd, **more: Any) -> socket.socket:
    host, port = llmd.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), 10)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    body = json.dumps(STREAM | more)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {KEY}\r\n"
    connection.sendall(
        f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    )
    return connection


def seen(llmd: Llmd) -> dict[str, int]:
    """What the engine counted."""
    door = llmd.door("tiny_0")
    counters: dict[str, int] = json.loads(told(door.socket, "/standin", Authorization=f"Bearer {door.key}"))
    return {name: counters[name] for name in ("received", "aborted", "in_flight")}


@pytest.mark.parametrize("stream", [True, False])
def test_one_that_is_cut_while_its_prompt_is_read_is_aborted_within_a_second(
    installed: list[Llmd], stream: bool
) -> None:
    llmd = running(installed, STANDIN_READING_SECONDS="30", STANDIN_TOKENS_PER_SECOND="1")
    connection = asking(llmd, stream=stream)
    until(lambda: seen(llmd)["in_flight"] == 1, 5, llmd.text)
    connection.close()
    until(lambda: seen(llmd) == {"received": 2, "aborted": 1, "in_flight": 0}, 1, llmd.text)
    assert llmd.engine("tiny_0")["in_flight"] == 0


def test_one_that_is_cut_in_the_middle_of_its_answer_is_aborted_within_a_second(
    installed: list[Llmd],
) -> None:
    llmd = running(installed, STANDIN_TOKENS_PER_SECOND="5")
    connection = asking(llmd)
    got = b""
    while got.count(b"data: ") < 3:
        got += connection.recv(4096)
    connection.close()
    until(lambda: seen(llmd) == {"received": 2, "aborted": 1, "in_flight": 0}, 1, llmd.text)
    assert llmd.engine("tiny_0")["in_flight"] == 0


@pytest.mark.parametrize("stream", [True, False])
def test_one_that_is_cut_in_the_queue_is_never_sent(installed: list[Llmd], stream: bool) -> None:
    llmd = running(installed, STANDIN_TOKENS_PER_SECOND="5")
    with asking(llmd) as busy:
        until(lambda: seen(llmd)["in_flight"] == 1, 5, llmd.text)
        waiting = asking(llmd, stream=stream)
        until(lambda: llmd.engine("tiny_0")["queued"] == 1, 5, llmd.text)
        waiting.close()
        until(lambda: llmd.engine("tiny_0")["queued"] == 0, 1, llmd.text)
        assert busy.recv(1)
    until(lambda: llmd.engine("tiny_0")["in_flight"] == 0, 2, llmd.text)
    with asking(llmd, max_tokens=1) as last:
        assert last.recv(1), "the place is free"
    assert seen(llmd)["received"] == 3  # the probe, who was busy and who came last
