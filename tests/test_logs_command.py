"""`llmd logs` on a real daemon: all logs as one, filtered, followed, and what the daemon's own may never hold."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.daemon import KEY, QUICK, Llmd, profile, until

SECRET = "what no log may repeat"


@pytest.fixture(scope="module")
def llmd() -> Iterator[Llmd]:
    llmd = Llmd({"tiny_0": profile("tiny"), "llmd": profile("other")}, **QUICK)
    try:
        llmd.start()
        ask(llmd, "tiny", id="first-1")
        yield llmd
    finally:
        llmd.close()


def ask(llmd: Llmd, model: str, *, id: str, key: str = KEY, url: str | None = None) -> int:
    body = {"model": model, "messages": [{"role": "user", "content": SECRET}], "max_tokens": 8}
    head = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", "X-Request-Id": id}
    request = urllib.request.Request(
        f"{url or llmd.url}/v1/chat/completions", json.dumps(body).encode(), headers=head
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def entries(llmd: Llmd, *words: str) -> list[dict[str, Any]]:
    done = llmd.run("logs", "--json", *words)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_daemons_and_the_engines_lines_come_in_the_order_of_time(llmd: Llmd) -> None:
    found = entries(llmd, "-n", "1000")
    assert {entry["origin"] for entry in found} == {"llmd", "tiny_0"}
    assert [entry["at"] for entry in found] == sorted(entry["at"] for entry in found)
    own = [json.loads(entry["line"])["event"] for entry in found if entry["origin"] == "llmd"]
    assert own.index("engine_starting") < own.index("engine_ready") < own.index("request")
    assert len(entries(llmd, "-n", "3")) == 3


def test_filters(llmd: Llmd) -> None:
    assert [json.loads(e["line"])["request_id"] for e in entries(llmd, "--grep", "first-[0-9]")] == [
        "first-1"
    ]
    assert {entry["origin"] for entry in entries(llmd, "--since", "1h")} == {
        "llmd"
    }  # the engine's are of long ago
    assert {entry["origin"] for entry in entries(llmd, "tiny_0")} == {"tiny_0"}
    assert entries(llmd, "--grep", "nobody said this") == []


def test_for_people_the_daemons_json_is_words(llmd: Llmd) -> None:
    done = llmd.run("logs", "--grep", "first-1")
    line = r"\d\d-\d\d \d\d:\d\d:\d\d llmd \| request request_id=first-1 model=tiny .* status=200"
    assert re.fullmatch(line, done.stdout.strip()), done.stdout


def test_it_is_followed(llmd: Llmd) -> None:
    command = llmd.command("logs", "-f", "-n", "1", "--grep", '"event": "request"')
    following = subprocess.Popen(command, env=llmd.env | {"PYTHONUNBUFFERED": "1"}, stdout=subprocess.PIPE)
    try:
        assert following.stdout
        assert b"first-1" in following.stdout.readline()
        assert ask(llmd, "gone", id="second-2") == 404
        assert b"second-2" in following.stdout.readline()
    finally:
        following.terminate()
        following.communicate(timeout=30)


def test_a_flood_of_strangers_is_a_line_a_second_and_every_request_of_a_key_is_told(llmd: Llmd) -> None:
    began, url = time.monotonic(), llmd.url
    assert {ask(llmd, "tiny", id=f"stranger-{n}", key="sk-wrong", url=url) for n in range(100)} == {401}
    assert {ask(llmd, "tiny", id=f"known-{n}", url=url) for n in range(30)} == {200}
    until(lambda: "known-29" in own(llmd), 30)
    known, strangers = (re.findall(rf'"{who}-\d+"', own(llmd)) for who in ("known", "stranger"))
    assert len(known) == 30
    assert 1 <= len(strangers) <= min(50, 2 + time.monotonic() - began)


def own(llmd: Llmd) -> str:
    return (llmd.home / "state" / "llmd.log").read_text()


def test_no_prompt_and_no_key_is_in_any_log(llmd: Llmd) -> None:
    ask(llmd, "tiny", id="last-3")
    until(lambda: "last-3" in own(llmd), 30)
    texts = [file.read_bytes() for file in (llmd.home / "state").rglob("*") if file.suffix in (".log", ".1")]
    assert len(texts) >= 2
    for text in (*texts, llmd.log.read_bytes()):
        assert SECRET.encode() not in text
        assert KEY.encode() not in text


def test_the_log_outlives_the_daemon(llmd: Llmd) -> None:
    llmd.kill()
    llmd.start()
    assert [e for e in entries(llmd, "-n", "10000") if "first-1" in e["line"]]


def test_on_a_terminal_the_daemon_speaks_in_words() -> None:
    other = Llmd({"tiny_0": profile("tiny")})
    terminal, theirs = os.openpty()
    daemon = subprocess.Popen(other.command("serve"), env=other.env, stdout=theirs, stderr=theirs)
    os.close(theirs)
    try:
        shown = b""
        while b"serving" not in shown:
            shown += os.read(terminal, 4096)
        assert re.search(rb"\d\d:\d\d:\d\d serving", shown)
    finally:
        daemon.terminate()
        daemon.wait(60)
        os.close(terminal)
        other.close()
