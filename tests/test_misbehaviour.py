"""Engines that answer their first probe and misbehave then, in a whole daemon: junk, floods, silence, slow starts."""

from __future__ import annotations

import http.client
import json
import re
from typing import Any

import psutil
import pytest

from tests.daemon import KEY, QUICK, Llmd, profile, told, until

MIB = 1 << 20
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}


def started(installed: list[Llmd], *, engine: dict[str, Any] | None = None, **knobs: str) -> Llmd:
    env = {"STANDIN_GOOD_FIRST": "1", **knobs}
    tables = QUICK | {"engine": QUICK["engine"] | (engine or {})}
    installed.append(Llmd({"tiny_0": profile("tiny", env=env)}, **tables))
    llmd = installed[-1].start()
    assert llmd.run("start", "tiny_0").returncode == 0, llmd.text()
    return llmd


def ask(llmd: Llmd, **more: Any) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(llmd.url.removeprefix("http://"), timeout=30)
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    connection.request(
        "POST", "/v1/chat/completions", json.dumps(CHAT | more), headers | {"Connection": "close"}
    )
    return connection.getresponse()


def error_of(answer: http.client.HTTPResponse) -> tuple[int, dict[str, Any]]:
    error: dict[str, Any] = json.loads(answer.read())["error"]
    return answer.status, error


def standin(llmd: Llmd, what: str) -> int:
    """A counter of the engine's own."""
    door = llmd.door("tiny_0")
    return int(json.loads(told(door.socket, "/standin", Authorization=f"Bearer {door.key}"))[what])


@pytest.mark.parametrize("junk", ["status", "chunk"])
def test_junk_is_told_and_too_much_of_it_replaces_the_engine(installed: list[Llmd], junk: str) -> None:
    llmd = started(installed, engine={"breaker_failures": 3}, STANDIN_JUNK=junk)
    first = llmd.engine("tiny_0")["incarnation"]
    for number in range(3):
        assert llmd.engine("tiny_0")["incarnation"] == first, f"after {number}"
        status, error = error_of(ask(llmd))
        assert (status, error["code"]) == (502, "engine_failed")
        assert "the engine of tiny_0 (model 'tiny')" in error["message"]
    until(lambda: llmd.engine("tiny_0")["incarnation"] not in (None, first), 20, llmd.text)
    assert "3 requests in a row failed" in llmd.run("why", "tiny_0", "--history").stdout


def test_an_answer_without_an_end_passes_in_little_memory_and_stops_with_its_reader(
    installed: list[Llmd],
) -> None:
    llmd = started(installed, STANDIN_JUNK="endless")
    assert llmd.process
    daemon = psutil.Process(llmd.process.pid)
    before = daemon.memory_info().rss
    with ask(llmd) as answer:
        for _ in range(64):
            assert len(answer.read(MIB)) == MIB
            assert daemon.memory_info().rss - before < 32 * MIB
    until(lambda: standin(llmd, "in_flight") == 0, 2, llmd.text)
    until(lambda: llmd.engine("tiny_0")["in_flight"] == 0, 2, llmd.text)


@pytest.mark.parametrize("stream", [True, False])
def test_an_engine_that_never_answers_is_given_up_and_asked_once(installed: list[Llmd], stream: bool) -> None:
    limits = {"first_token_timeout": 1, "answer_timeout": 1}
    llmd = started(installed, engine=limits, STANDIN_HANG_AT="request")
    status, error = error_of(ask(llmd, stream=stream))
    assert (status, error["code"]) == (504, "engine_timeout")
    assert "did not begin to answer within 1 s" in error["message"]
    until(lambda: standin(llmd, "in_flight") == 0, 2, llmd.text)
    assert standin(llmd, "received") == 2  # the probe before it was ready, and this


def test_who_waited_in_vain_hears_of_which_model_in_which_state_and_how_long_still(
    installed: list[Llmd],
) -> None:
    env = {"STANDIN_LOAD_SECONDS": "30"}
    installed.append(Llmd({"tiny_0": profile("tiny", env=env)}, server={"max_wait": 2}, **QUICK))
    llmd = installed[-1].start()
    answer = ask(llmd)
    status, error = error_of(answer)
    assert (status, error["code"]) == (503, "model_not_available")
    wait = int(answer.headers["Retry-After"])
    assert 1 <= wait <= 60
    said = (
        r"model 'tiny' was not ready after \d+ s: tiny_0 is (reserved|starting) \(0/4 in flight\) "
        rf"\(try again in about {wait} s\)"
    )
    assert re.fullmatch(said, error["message"]), error
