"""The same assertions on the stand-in engine and on a real vLLM: what llmd relies on, and what its tests may."""

from __future__ import annotations

import base64
import json
import os
import signal
import struct
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from supervisor.web.exposition import merged
from tests.real.conftest import CHAT_WINDOW, WINDOW, Engines
from tests.standin.launch import Engine, metric, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

HELLO = [{"role": "user", "content": "Hello, how are you?"}]
ENDLESS = {"messages": HELLO, "max_tokens": CHAT_WINDOW, "stream": True, "ignore_eos": True}
STAGES = [
    "Resolved architecture",
    "Initializing a V1 LLM engine",
    "Starting to load model",
    "Loading safetensors checkpoint shards:   0% Completed",
    "Loading safetensors checkpoint shards: 100% Completed",
    "Loading weights took",
    "init engine",
    "Supported tasks:",
    "Starting vLLM server on",
    "Application startup complete",
]


async def ask(engine: Engine, path: str, body: object | None = None, **headers: str) -> tuple[int, Any]:
    """Status and JSON of one request; GET without a body."""
    async with engine.client() as client:
        sending = (
            client.get(path, headers=headers)
            if body is None
            else client.post(path, json=body, headers=headers)
        )
        async with sending as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if text else None


async def stream(engine: Engine, path: str, body: dict[str, Any]) -> list[Any]:
    """The data of every event: JSON, or the text [DONE]."""
    async with engine.client() as client, client.post(path, json={"stream": True} | body) as answer:
        assert answer.status == 200
        assert answer.content_type == "text/event-stream"
        return events(await answer.read())


def events(raw: bytes) -> list[Any]:
    frames = raw.decode().split("\n\n")
    assert frames.pop() == ""
    datas = [frame.removeprefix("data: ") for frame in frames]
    return [data if data == "[DONE]" else json.loads(data) for data in datas]


async def gauge(engine: Engine, name: str) -> float:
    """vLLM may publish the numbers of a step after it has sent the tokens of that step."""
    async with engine.client() as client, client.get("/metrics", headers={"Authorization": ""}) as answer:
        return metric(await answer.text(), name)


async def until_gauge(engine: Engine, name: str, value: float, seconds: float = 5) -> None:
    async def reached() -> bool:
        return await gauge(engine, name) == value

    await until(reached, seconds, lambda: f"{name} is not {value}")


# --- what is always there ---


@pytest.mark.parametrize("task", ["chat", "embed", "rerank"])
async def test_health_is_empty_and_needs_no_key(engines: Engines, task: str) -> None:
    assert await ask(getattr(engines, task), "/health", Authorization="") == (200, None)


async def test_models_lists_every_name_and_the_window(engines: Engines) -> None:
    status, body = await ask(engines.chat, "/v1/models")
    assert status == 200
    assert [(entry["id"], entry["object"], entry["max_model_len"]) for entry in body["data"]] == [
        ("llama", "model", CHAT_WINDOW),
        ("llama_0", "model", CHAT_WINDOW),
    ]


async def test_the_key_guards_v1_before_anything_else(engines: Engines) -> None:
    for path, body in (("/v1/models", None), ("/v1/chat/completions", {}), ("/v1/nothing", {})):
        for header in ("Bearer wrong", ""):
            assert await ask(engines.chat, path, body, Authorization=header) == (
                401,
                {"error": "Unauthorized"},
            )
    status, _ = await ask(engines.chat, "/tokenize", {"prompt": "Hello"}, Authorization="")
    assert status == 200


async def test_metrics_have_what_llmd_reads(engines: Engines) -> None:
    before = await gauge(engines.chat, "generation_tokens_total")
    await ask(
        engines.chat, "/v1/chat/completions", {"model": "llama", "messages": HELLO, "max_tokens": 3} | STEADY
    )
    await until_gauge(engines.chat, "generation_tokens_total", before + 3)
    await until_gauge(engines.chat, "num_requests_running", 0)
    await until_gauge(engines.chat, "num_requests_waiting", 0)


async def test_metrics_can_be_shown_as_ours(engines: Engines) -> None:
    async with (
        engines.chat.client() as client,
        client.get("/metrics", headers={"Authorization": ""}) as answer,
    ):
        told = await answer.read()
    sent = [line for line in told.splitlines() if line.startswith(b"vllm:")]
    shown = list(text_string_to_metric_families(merged({"llama_0": told, "coder_1": told}).decode()))
    samples = [sample for family in shown for sample in family.samples]
    assert len(samples) == 2 * len(sent) > 0
    assert {sample.labels["profile"] for sample in samples} == {"llama_0", "coder_1"}
    assert len({family.name for family in shown}) == len(shown)


async def test_tokenize_counts(engines: Engines) -> None:
    status, body = await ask(engines.chat, "/tokenize", {"model": "llama", "messages": HELLO})
    assert status == 200
    assert body["count"] == len(body["tokens"]) > 0
    assert body["max_model_len"] == CHAT_WINDOW


@pytest.mark.parametrize("task", ["chat", "embed", "rerank"])
async def test_the_log_tells_the_stages_in_order(engines: Engines, task: str) -> None:
    log = getattr(engines, task).text()
    places = [log.find(stage) for stage in STAGES]
    assert -1 not in places
    assert places == sorted(places)


# --- chat and completions ---

STEADY = {"ignore_eos": True}  # else random weights may end an answer early


@pytest.mark.parametrize("name", ["llama", "llama_0"])
async def test_chat(engines: Engines, name: str) -> None:
    body = {"model": name, "messages": HELLO, "max_tokens": 5} | STEADY
    status, reply = await ask(engines.chat, "/v1/chat/completions", body)
    assert (status, reply["object"], reply["model"]) == (200, "chat.completion", "llama")
    choice = reply["choices"][0]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"]
    assert choice["finish_reason"] == "length"
    assert reply["usage"]["completion_tokens"] == 5
    assert reply["usage"]["total_tokens"] == reply["usage"]["prompt_tokens"] + 5


async def test_chat_takes_the_id_of_the_request(engines: Engines) -> None:
    body = {"model": "llama", "messages": HELLO, "max_tokens": 1}
    _, reply = await ask(engines.chat, "/v1/chat/completions", body, **{"X-Request-Id": "abc"})
    assert reply["id"] == "chatcmpl-abc"


async def test_a_missing_model_is_served(engines: Engines) -> None:
    status, reply = await ask(engines.chat, "/v1/chat/completions", {"messages": HELLO, "max_tokens": 1})
    assert (status, reply["model"]) == (200, "llama")


async def test_chat_stream_with_usage(engines: Engines) -> None:
    body = {
        "model": "llama",
        "messages": HELLO,
        "max_tokens": 4,
        "stream_options": {"include_usage": True},
    } | STEADY
    opening, *tokens, closing, usage, done = await stream(engines.chat, "/v1/chat/completions", body)
    assert done == "[DONE]"
    assert opening["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in tokens)
    assert {chunk["object"] for chunk in (opening, *tokens, closing, usage)} == {"chat.completion.chunk"}
    assert closing["choices"][0]["finish_reason"] == "length"  # it may carry the last of the text, too
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 4
    assert usage["usage"]["total_tokens"] == usage["usage"]["prompt_tokens"] + 4


async def test_stream_without_usage(engines: Engines) -> None:
    body = {"model": "llama", "messages": HELLO, "max_tokens": 2} | STEADY
    *chunks, done = await stream(engines.chat, "/v1/chat/completions", body)
    assert done == "[DONE]"
    assert all(chunk.get("usage") is None and chunk["choices"] for chunk in chunks)


async def test_completions(engines: Engines) -> None:
    body = {"model": "llama", "prompt": "Hello", "max_tokens": 3} | STEADY
    status, reply = await ask(engines.chat, "/v1/completions", body)
    assert (status, reply["object"], reply["usage"]["completion_tokens"]) == (200, "text_completion", 3)
    assert isinstance(reply["choices"][0]["text"], str)
    *tokens, done = await stream(engines.chat, "/v1/completions", body)
    assert done == "[DONE]"
    assert [chunk["choices"][0]["finish_reason"] for chunk in tokens][-1] == "length"


async def test_max_tokens_beyond_the_window_is_clamped(engines: Engines) -> None:
    body = {"model": "llama", "prompt": "the " * (CHAT_WINDOW - 100), "max_tokens": CHAT_WINDOW} | STEADY
    status, reply = await ask(engines.chat, "/v1/completions", body)
    assert status == 200
    assert reply["usage"]["total_tokens"] <= CHAT_WINDOW
    assert reply["choices"][0]["finish_reason"] == "length"


async def test_a_client_that_leaves_ends_its_request(engines: Engines) -> None:
    before = await gauge(engines.chat, "generation_tokens_total")
    async with engines.chat.client() as client:
        async with client.post("/v1/chat/completions", json=ENDLESS) as answer:
            await answer.content.readuntil(b"\n\n")
            await until_gauge(engines.chat, "num_requests_running", 1)
            answer.close()
        await until_gauge(engines.chat, "num_requests_running", 0, 2)
    assert await gauge(engines.chat, "generation_tokens_total") < before + CHAT_WINDOW / 2


# --- refusals ---


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_prompt_beyond_the_window(engines: Engines, streamed: bool) -> None:
    messages = [{"role": "user", "content": longer_than(CHAT_WINDOW)}]
    body = {"model": "llama", "messages": messages, "stream": streamed}
    too_long(await ask(engines.chat, "/v1/chat/completions", body), CHAT_WINDOW, "input_tokens")


async def test_a_prompt_so_long_that_no_token_is_counted(engines: Engines) -> None:
    body = {"model": "llama", "messages": [{"role": "user", "content": 20 * longer_than(CHAT_WINDOW)}]}
    too_long(await ask(engines.chat, "/v1/chat/completions", body), CHAT_WINDOW, "input_text")


async def test_a_text_beyond_the_window(engines: Engines) -> None:
    text = longer_than(WINDOW)
    answer = await ask(engines.embed, "/v1/embeddings", {"model": "bge", "input": text})
    too_long(answer, WINDOW, "input_tokens")
    status, _ = await ask(engines.rerank, "/rerank", {"model": "reranker", "query": text, "documents": ["a"]})
    assert status == 400


def longer_than(window: int) -> str:
    """A word is a token at least."""
    return "the " * (window + 100)


def too_long(answer: tuple[int, Any], window: int, param: str) -> None:
    status, body = answer
    assert status == 400
    error = body["error"]
    assert error["message"].startswith(f"This model's maximum context length is {window} tokens.")
    assert (error["type"], error["param"], error["code"]) == ("BadRequestError", param, 400)


async def test_an_unknown_model(engines: Engines) -> None:
    asked = {"model": "nope", "messages": HELLO}
    message = "The model `nope` does not exist. Valid aliases: llama, llama_0."
    error = {"message": message, "type": "NotFoundError", "param": "model", "code": 404}
    assert await ask(engines.chat, "/v1/chat/completions", asked) == (404, {"error": error})
    error = {
        "message": "The model `nope` does not exist.",
        "type": "NotFoundError",
        "param": None,
        "code": 404,
    }
    assert await ask(engines.embed, "/v1/embeddings", {"model": "nope", "input": "a"}) == (
        404,
        {"error": error},
    )


async def test_a_missing_field(engines: Engines) -> None:
    status, body = await ask(engines.chat, "/v1/chat/completions", {"model": "llama"})
    assert status == 400
    assert (body["error"]["type"], body["error"]["param"]) == ("Bad Request", "body.messages")
    assert body["error"]["message"].startswith("1 validation error:\n  {'type': 'missing'")


async def test_a_body_that_is_not_json(engines: Engines) -> None:
    json_type = {"Content-Type": "application/json"}
    path = "/v1/chat/completions"
    async with engines.chat.client() as client, client.post(path, data=b"{no", headers=json_type) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]["type"] == "Bad Request"


@pytest.mark.parametrize(
    ("task", "path"),
    [
        ("chat", "/v1/embeddings"),
        ("chat", "/rerank"),
        ("chat", "/v1/score"),
        ("embed", "/v1/chat/completions"),
        ("rerank", "/v1/completions"),
        ("rerank", "/v1/embeddings"),
        ("chat", "/nothing"),
    ],
)
async def test_a_route_of_another_task(engines: Engines, task: str, path: str) -> None:
    assert await ask(getattr(engines, task), path, {}) == (404, {"detail": "Not Found"})


async def test_the_wrong_method(engines: Engines) -> None:
    assert await ask(engines.chat, "/v1/chat/completions") == (405, {"detail": "Method Not Allowed"})


# --- embeddings and ranking ---


async def test_embeddings(engines: Engines) -> None:
    asked = {"model": "bge", "input": ["Hello", "The engine starts"]}
    status, body = await ask(engines.embed, "/v1/embeddings", asked)
    assert (status, body["object"], body["model"]) == (200, "list", "bge")
    assert [(entry["index"], entry["object"]) for entry in body["data"]] == [
        (0, "embedding"),
        (1, "embedding"),
    ]
    one, two = (entry["embedding"] for entry in body["data"])
    assert len(one) == len(two) > 0
    assert one != two
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] > 2


async def test_embeddings_in_base64_are_little_endian_floats(engines: Engines) -> None:
    asked = {"model": "bge", "input": "Hello"}
    _, plain = await ask(engines.embed, "/v1/embeddings", asked)
    _, coded = await ask(engines.embed, "/v1/embeddings", asked | {"encoding_format": "base64"})
    raw = base64.b64decode(coded["data"][0]["embedding"])
    assert list(struct.unpack(f"<{len(raw) // 4}f", raw)) == pytest.approx(
        plain["data"][0]["embedding"], rel=1e-3
    )


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
async def test_rerank_gives_the_best_first(engines: Engines, path: str) -> None:
    documents = ["Every card has a budget", "The engine starts", "Paris"]
    asked = {"model": "reranker", "query": "The engine", "documents": documents}
    status, body = await ask(engines.rerank, path, asked)
    assert status == 200
    scores = [result["relevance_score"] for result in body["results"]]
    assert scores == sorted(scores, reverse=True)
    assert all(result["document"]["text"] == documents[result["index"]] for result in body["results"])
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] > 0
    _, best = await ask(engines.rerank, path, asked | {"top_n": 1})
    assert [result["index"] for result in best["results"]] == [body["results"][0]["index"]]


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
async def test_score_keeps_the_order(engines: Engines, path: str) -> None:
    asked = {"model": "reranker", "text_1": "Hello", "text_2": ["Paris", "engine"]}
    status, body = await ask(engines.rerank, path, asked)
    assert (status, body["object"]) == (200, "list")
    assert [entry["index"] for entry in body["data"]] == [0, 1]
    assert all(0 <= entry["score"] <= 1 for entry in body["data"])


# --- processes; these end the engines, so they come last ---


async def test_engine_core_is_a_process_of_the_same_session(engines: Engines) -> None:
    for engine in (engines.chat, engines.embed, engines.rerank):
        assert len(engine.named("VLLM::EngineCore")) == 1


async def test_death_of_engine_core_ends_streams_with_an_error_and_the_server_with_0(
    engines: Engines,
) -> None:
    engine = engines.chat
    async with engine.client() as client, client.post("/v1/chat/completions", json=ENDLESS) as answer:
        start = await answer.content.readuntil(b"\n\n")
        os.kill(engine.named("VLLM::EngineCore")[0], signal.SIGKILL)
        *_, error, done = events(start + await answer.read())
    assert error["error"]["code"] == 500
    assert error["error"]["message"].startswith("EngineCore encountered an issue.")
    assert done == "[DONE]"
    await until(lambda: engine.process.poll() is not None, 20)
    assert engine.process.returncode == 0


async def test_sigterm_when_ready_ends_with_0_and_leaves_no_process(engines: Engines) -> None:
    engine = engines.rerank
    engine.process.send_signal(signal.SIGTERM)
    await until(lambda: engine.process.poll() is not None, 20)
    assert engine.process.returncode == 0
    await until(lambda: not engine.session())


async def test_sigkill_of_the_api_server_leaves_engine_core_alive(engines: Engines) -> None:
    engine = engines.embed
    core = engine.named("VLLM::EngineCore")
    engine.process.kill()
    engine.process.wait()
    assert engine.named("VLLM::EngineCore") == core
