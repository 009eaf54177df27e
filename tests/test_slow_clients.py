"""slowhttptest (Debian's) against a whole daemon: heads and bodies that come drop by drop, and others served meanwhile."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator

import psutil
import pytest

from tests.daemon import KEY, QUICK, Llmd, profile, until

PROGRAM = shutil.which("slowhttptest")
CONNECTIONS = 100
LIMIT = 2.0
"""Seconds that a head, and 1 KiB of a body, have."""
HEADS = ["-H", "-t", "GET"]
BODIES = ["-B", "-t", "POST", "-s", "8192", "-f", "application/json"]

pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason="no slowhttptest here (Debian: apt install slowhttptest)"
)


@pytest.fixture(scope="module")
def llmd() -> Iterator[Llmd]:
    limits = {"header_timeout": LIMIT, "body_timeout": LIMIT}
    made = Llmd({"tiny_0": profile("tiny", max_concurrent=1)}, server=limits, **QUICK)
    try:
        made.start()
        assert made.run("start", "tiny_0").returncode == 0
        yield made
    finally:
        made.close()


def chat(llmd: Llmd) -> float:
    """Seconds that a healthy one takes."""
    body = json.dumps({"model": "tiny", "messages": [], "max_tokens": 1}).encode()
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    began = time.monotonic()
    asked = urllib.request.Request(f"{llmd.url}/v1/chat/completions", body, headers)
    with urllib.request.urlopen(asked, timeout=10) as answer:
        assert answer.status == 200
    return time.monotonic() - began


def sockets(llmd: Llmd) -> int:
    """That the daemon has open."""
    assert llmd.process
    return psutil.Process(llmd.process.pid).num_fds()


@pytest.mark.parametrize("how", [HEADS, BODIES], ids=["heads", "bodies"])
def test_slow_ones_are_let_go_and_others_served_meanwhile(llmd: Llmd, how: list[str]) -> None:
    """The one place of the engine is free for whoever asks properly."""
    assert PROGRAM
    url, many = f"{llmd.url}/v1/chat/completions", str(CONNECTIONS)
    words = [PROGRAM, *how, "-i", "1", "-c", many, "-r", many, "-l", "30", "-p", "3", "-u", url]
    began = time.monotonic()
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as slow:
        until(lambda: sockets(llmd) > CONNECTIONS // 2, 10, llmd.text)
        assert chat(llmd) < 2
        said, _ = slow.communicate(timeout=40)
    assert "No open connections left" in said
    assert time.monotonic() - began < LIMIT + 10
    assert "internal_error" not in llmd.log.read_text()
    assert llmd.engine("tiny_0")["in_flight"] == 0
    chat(llmd)
