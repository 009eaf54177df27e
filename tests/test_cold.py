"""Cold models on a whole daemon with stand-in engines, asked by the clients that people use."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.daemon import KEY, QUICK, Llmd, profile, until

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}


def cold(installed: list[Llmd], seconds: float = 2.0, *, mode: str = "comment", **knobs: str) -> Llmd:
    """A daemon whose one model takes `seconds` to load."""
    env = {"STANDIN_LOAD_SECONDS": str(seconds), **knobs}
    server = {"hold": mode, "hold_after": 0.2, "keepalive": 0.3}
    installed.append(Llmd({"tiny_0": profile("tiny", env=env)}, server=server, **QUICK))
    return installed[-1].start()


def client(llmd: Llmd, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{llmd.url}/v1", api_key=KEY, **{"max_retries": 0, "timeout": 60, **options}
    )


def text(chunks: list[Any]) -> str:
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def statuses(llmd: Llmd, least: int) -> list[int]:
    """Of requests in the log, oldest first, once there are so many: a line comes after its answer."""

    def logged() -> list[int]:
        return [line["status"] for line in llmd.logged() if line["event"] == "request" and line.get("model")]

    until(lambda: len(logged()) >= least, 5, llmd.text)
    return logged()


@pytest.mark.parametrize("mode", ["comment", "empty", "off"])
def test_a_stream_for_a_cold_model_is_held_and_answered(installed: list[Llmd], mode: str) -> None:
    with client(cold(installed, mode=mode)) as api:
        assert text(list(api.chat.completions.create(**CHAT, stream=True)))


def test_progress_is_shown_as_reasoning_before_the_answer(installed: list[Llmd]) -> None:
    with client(cold(installed, mode="reasoning")) as api:
        chunks = list(api.chat.completions.create(**CHAT, stream=True))
    thoughts = [getattr(c.choices[0].delta, "reasoning_content", None) for c in chunks if c.choices]
    told = [thought for thought in thoughts if thought]
    assert told
    assert all(thought.startswith("Loading tiny_0: ") and "%" in thought for thought in told)
    assert any("weights" in thought for thought in told), "the stage of the engine's own log"
    assert text(chunks)


def test_what_is_not_streamed_is_held_without_a_retry(installed: list[Llmd]) -> None:
    llmd = cold(installed)
    with client(llmd) as api:
        assert api.chat.completions.create(**CHAT).choices[0].message.content
    assert statuses(llmd, 1) == [200]


def test_the_first_message_of_a_chat_and_a_crowd_beside_it_are_one_start(installed: list[Llmd]) -> None:
    """Open WebUI asks for a title first, not streamed, then the chat, follow-ups and tags; and 16 others ask too."""
    llmd = cold(installed)

    def ask(stream: bool) -> bool:
        with client(llmd) as api:
            reply = api.chat.completions.create(**CHAT, stream=stream)
            return bool(text(list(reply)) if stream else reply.choices[0].message.content)

    with ThreadPoolExecutor(20) as pool:
        assert all(pool.map(ask, [False, True, False, False] + [True, False] * 8))
    assert llmd.engine("tiny_0")["starts"] == 1


def test_a_load_that_fails_while_a_stream_is_held_raises(installed: list[Llmd]) -> None:
    llmd = cold(installed, STANDIN_OOM="1")
    with client(llmd) as api, pytest.raises(openai.APIError, match="out of memory") as failed:
        list(api.chat.completions.create(**CHAT, stream=True))
    assert not isinstance(failed.value, openai.APIStatusError), "the head was out"
    assert statuses(llmd, 1) == [503]


def test_a_client_that_leaves_while_held_does_not_end_the_load_that_another_awaits(
    installed: list[Llmd],
) -> None:
    llmd = cold(installed, 3)
    with ThreadPoolExecutor(1) as pool, client(llmd) as api:
        leaving = held(llmd)
        assert llmd.engine("tiny_0")["queued"] == 1
        staying = pool.submit(lambda: list(api.chat.completions.create(**CHAT, stream=True)))
        until(lambda: llmd.engine("tiny_0")["queued"] == 2, 5, llmd.text)
        leaving.close()
        until(lambda: llmd.engine("tiny_0")["queued"] == 1, 2, llmd.text)
        assert text(staying.result())
    assert llmd.engine("tiny_0")["starts"] == 1
    assert sorted(statuses(llmd, 2)) == [200, 499]


def held(llmd: Llmd) -> socket.socket:
    """A connection whose stream has begun and is kept alive."""
    host, port = llmd.url.removeprefix("http://").split(":")
    body = json.dumps(CHAT | {"stream": True})
    connection = socket.create_connection((host, int(port)), 10)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {KEY}\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    got = b""
    while b": keepalive\n\n" not in got:
        got += connection.recv(4096)
    assert got.startswith(b"HTTP/1.1 200 OK\r\n")
    return connection


def test_who_cannot_wait_is_told_when_to_come_back_and_the_sdk_does(installed: list[Llmd]) -> None:
    """A start was measured, so an SDK that waits less is refused at once; it retries as told, and is served."""
    llmd = cold(installed, 3)
    assert llmd.run("start", "tiny_0").returncode == 0
    assert llmd.run("stop", "tiny_0").returncode == 0
    with client(llmd, timeout=2, max_retries=3) as api:
        assert api.chat.completions.create(**CHAT).choices[0].message.content
    until(lambda: 200 in statuses(llmd, 2), 5, llmd.text)
    *refused, served = statuses(llmd, 2)
    assert (set(refused), served) == ({503}, 200)
    assert llmd.engine("tiny_0")["starts"] == 2


def test_what_would_fail_again_is_not_tried_again(installed: list[Llmd]) -> None:
    """A URL that no engine will fetch is refused for good, before anything is started."""
    llmd = cold(installed)
    image = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}}
    messages: Any = [{"role": "user", "content": [image]}]
    with client(llmd, max_retries=2) as api, pytest.raises(openai.BadRequestError, match="data: URLs alone"):
        api.chat.completions.create(**CHAT | {"messages": messages})
    assert statuses(llmd, 1) == [400]
    assert llmd.engine("tiny_0")["starts"] == 0


def test_every_model_is_listed_while_cold(installed: list[Llmd]) -> None:
    llmd = cold(installed)
    with client(llmd, timeout=5) as api:
        found = {model.id: model.to_dict() for model in api.models.list()}
    assert found["tiny"]["status"] == {"value": "cold"}
    assert (found["tiny"]["name"], found["tiny"]["max_model_len"]) == ("tiny", 512)
    assert found["tiny"]["owned_by"] == "llmd"
    assert llmd.engine("tiny_0")["starts"] == 0
