"""The whole daemon, once with stand-ins and once with real vLLM engines: what stand-ins alone cannot prove.

A real start costs 20 seconds of two cores, so the tests share one daemon and run in the order in which they
stand; each asks for what it needs by a request, and can be run alone.
"""

from __future__ import annotations

import http.client
import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import openai
import pytest

from tests.daemon import KEY, QUICK, Llmd, runs, until
from tests.real.conftest import CHAT_WINDOW, MODELS, SMALL, real_vllm
from tests.standin.launch import STANDIN

HELLO: Any = [{"role": "user", "content": "Hello, how are you today?"}]
STEADY = {"ignore_eos": True}  # else random weights may end an answer early
ENDLESS: Any = {"model": "chat", "messages": HELLO, "max_tokens": CHAT_WINDOW, "stream": True}


@pytest.fixture(scope="module", params=["standin", pytest.param("real", marks=pytest.mark.real)])
def llmd(request: pytest.FixtureRequest) -> Iterator[Llmd]:
    command, models = real_vllm() if request.param == "real" else (STANDIN, "models")
    env = {"HF_HUB_OFFLINE": "1", "STANDIN_TOKENS_PER_SECOND": "100"}
    engine = QUICK["engine"] | {"command": [*command, "serve"], "env": env, "stop_grace": 15}
    made = Llmd(profiles(models), restarts=QUICK["restarts"], engine=engine)
    try:
        yield made.start()
    finally:
        made.close()


def profiles(models: str) -> dict[str, dict[str, Any]]:
    common = {"device": "cpu", "memory": "1900 MiB", "args": SMALL[:1] + SMALL[-2:]}
    fields: dict[str, dict[str, Any]] = {
        "chat": {"max_model_len": CHAT_WINDOW},
        "embed": {"task": "embed"},
        "rerank": {"task": "rerank"},
    }
    return {
        f"{task}_0": common | {"model": task, "weights": f"{models}/{MODELS[task]}"} | own
        for task, own in fields.items()
    }


@pytest.fixture
def api(llmd: Llmd) -> Iterator[openai.OpenAI]:
    """With a chat engine that is ready."""
    with openai.OpenAI(base_url=f"{llmd.url}/v1", api_key=KEY, max_retries=0, timeout=120) as client:
        assert say(client)
        yield client


def say(api: openai.OpenAI, model: str = "chat") -> str:
    reply = api.chat.completions.create(model=model, messages=HELLO, max_tokens=4, extra_body=STEADY)
    assert reply.usage
    assert reply.usage.completion_tokens == 4
    return reply.choices[0].message.content or ""


def embed(api: openai.OpenAI) -> list[int]:
    reply = api.embeddings.create(model="embed", input=["Hello", "The engine starts"])
    return [len(entry.embedding) for entry in reply.data]


def rerank(api: openai.OpenAI) -> list[Any]:
    asked = {"model": "rerank", "query": "The engine", "documents": ["Paris", "The engine starts", "A card"]}
    reply: Any = api.post("/rerank", body=asked, cast_to=object)
    return [result["relevance_score"] for result in reply["results"]]


def test_a_chat_an_embedding_and_a_rerank_each_start_their_engine(llmd: Llmd) -> None:
    client = openai.OpenAI(base_url=f"{llmd.url}/v1", api_key=KEY, max_retries=0, timeout=240)
    with client as api, ThreadPoolExecutor() as pool:
        replies = [pool.submit(ask, api) for ask in (say, embed, rerank)]
        said, (one, two), scores = (reply.result() for reply in replies)
    assert said
    assert one == two > 0
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 3
    assert {engine["state"] for engine in llmd.status()["engines"]} == {"ready"}


def test_the_profiles_name_is_a_model_too(api: openai.OpenAI) -> None:
    assert {"chat", "chat_0", "embed", "rerank"} <= {model.id for model in api.models.list()}
    assert say(api, "chat_0")


def test_a_stream_ends_with_its_usage(api: openai.OpenAI) -> None:
    asked: Any = ENDLESS | {"max_tokens": 5, "stream_options": {"include_usage": True}}
    *chunks, last = api.chat.completions.create(**asked, extra_body=STEADY)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "length"
    assert (last.choices, last.usage.completion_tokens) == ([], 5)


SENTENCE = "A model's engine starts when somebody asks for it and stops as soon as nobody does any more. "


def test_after_fifty_requests_tokens_are_told_from_letters_within_15_percent(
    llmd: Llmd, api: openai.OpenAI
) -> None:
    rng, missed = random.Random(5), []
    for number in range(60):
        text = (SENTENCE * 12)[: rng.randint(50, 1100)]
        known = learned(llmd) if number >= 50 else None
        messages: Any = [{"role": "user", "content": text}]
        usage = api.chat.completions.create(model="chat", messages=messages, max_tokens=1).usage
        assert usage
        if known:
            told = known["template_tokens"] + len(text) / known["letters_per_token"]
            missed.append(abs(told - usage.prompt_tokens) / usage.prompt_tokens)
    assert len(missed) == 10
    assert max(missed) <= 0.15
    assert learned(llmd)["version"]


def learned(llmd: Llmd) -> dict[str, Any]:
    (profile,) = json.loads(llmd.run("why", "chat", "--json").stdout)["profiles"]
    return dict(profile["learned"])


def test_a_prompt_beyond_the_window_is_the_clients_error(api: openai.OpenAI) -> None:
    words: Any = [{"role": "user", "content": "the " * (CHAT_WINDOW + 100)}]
    with pytest.raises(
        openai.BadRequestError, match=f"maximum context length is {CHAT_WINDOW} tokens"
    ) as refused:
        api.chat.completions.create(model="chat", messages=words)
    assert refused.value.param == "input_tokens"


def test_a_client_that_leaves_ends_its_request_in_the_engine_within_a_second(
    llmd: Llmd, api: openai.OpenAI
) -> None:
    engine = llmd.door("chat_0")
    before = engine.metric("generation_tokens_total")
    stream = api.chat.completions.create(**ENDLESS, extra_body=STEADY)
    next(iter(stream))
    until(lambda: engine.metric("num_requests_running") == 1, 5, llmd.text)
    stream.close()
    until(lambda: engine.metric("num_requests_running") == 0, 1, llmd.text)
    assert engine.metric("generation_tokens_total") < before + CHAT_WINDOW / 2
    assert say(api)


def test_a_killed_daemon_leaves_its_engines_to_the_next_one(llmd: Llmd, api: openai.OpenAI) -> None:
    before = {engine["profile"]: engine["pid"] for engine in llmd.status()["engines"] if engine["pid"]}
    assert "chat_0" in before
    llmd.kill()
    llmd.start()
    until(lambda: all(llmd.engine(name)["state"] == "ready" for name in before), 10, llmd.text)
    after = [llmd.engine(name) for name in before]
    assert {engine["profile"]: engine["pid"] for engine in after} == before
    assert [engine["starts"] for engine in after] == [0] * len(before)
    with openai.OpenAI(base_url=f"{llmd.url}/v1", api_key=KEY, max_retries=0, timeout=5) as again:
        assert say(again)


def test_a_killed_api_server_leaves_nobody_and_the_next_request_gets_a_new_engine(
    llmd: Llmd, api: openai.OpenAI
) -> None:
    before, tree = llmd.engine("chat_0"), llmd.tree("chat_0")
    assert len(tree) > 1
    tree[0].kill()
    until(lambda: not any(map(runs, tree)), 2, llmd.text)
    assert say(api)
    assert llmd.engine("chat_0")["incarnation"] not in (None, before["incarnation"])


def test_a_killed_engine_core_cuts_its_streams_with_an_error(llmd: Llmd, api: openai.OpenAI) -> None:
    """One stream as the SDK sees it, one as its bytes are: a success is told by a clean end alone."""
    before, tree = llmd.engine("chat_0"), llmd.tree("chat_0")
    core = next(process for process in tree if process.name().startswith("VLLM::EngineCo"))
    with closing(raw(llmd, ENDLESS | STEADY)) as answer:
        chunks = iter(api.chat.completions.create(**ENDLESS, extra_body=STEADY))
        next(chunks)
        said = answer.readline()
        core.kill()
        with pytest.raises(openai.APIError, match="EngineCore"):
            list(chunks)
        with pytest.raises(http.client.IncompleteRead) as cut:
            answer.read()
    *_, last, end = (said + cut.value.partial).split(b"\n\n")
    assert last.startswith(b'data: {"error":')
    assert end == b""
    until(lambda: not any(map(runs, tree)), 5, llmd.text)
    assert say(api)
    assert llmd.engine("chat_0")["incarnation"] not in (None, before["incarnation"])


def raw(llmd: Llmd, body: dict[str, Any]) -> http.client.HTTPResponse:
    """A chat's answer as it comes; it ends the connection when closed."""
    connection = http.client.HTTPConnection(llmd.url.removeprefix("http://"), timeout=60)
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers | {"Connection": "close"})
    answer = connection.getresponse()
    assert answer.status == 200
    return answer


def test_a_stop_ends_all_engines_and_leaves_nobody(llmd: Llmd, api: openai.OpenAI) -> None:
    running = [engine["profile"] for engine in llmd.status()["engines"] if engine["pid"]]
    assert "chat_0" in running
    trees = [process for profile in running for process in llmd.tree(profile)]
    assert llmd.stop() == 0
    assert not [process for process in trees if runs(process)]
    assert llmd.leftovers() == []
