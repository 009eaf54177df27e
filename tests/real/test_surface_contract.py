"""The routes beyond chat, embeddings and ranking: the same assertions on the stand-in and on a real vLLM."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from supervisor.config import Config, Profile, Server
from supervisor.web.auth import Keyring
from supervisor.web.dialects import MARKS, retold
from supervisor.web.embeddings import merged, read_wish, split
from supervisor.web.passing import Events
from supervisor.web.server import Server as Port
from tests.real.conftest import SMALL, real_vllm
from tests.standin.launch import KEY, STANDIN, Engine
from tests.web.fakes import FakeDriver

pytestmark = pytest.mark.asyncio(loop_scope="module")

HELLO = [{"role": "user", "content": "Hello, how are you?"}]
STEADY = {"ignore_eos": True}
STORE = {"VLLM_ENABLE_RESPONSES_API_STORE": "1"}
HIDDEN, LAYERS, RANK = 160, 2, 8
"""The shape of tiny-llama, and of an adapter for it."""


@dataclass(frozen=True)
class Engines:
    chat: Engine
    embed: Engine
    classify: Engine


@pytest_asyncio.fixture(
    scope="module", params=["standin", pytest.param("real", marks=pytest.mark.real)], loop_scope="module"
)
async def engines(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Engines]:
    command, models = real_vllm() if request.param == "real" else (STANDIN, "models")
    adapter = write_adapter(tmp_path_factory.mktemp("french"))
    lora = ["--enable-lora", "--lora-modules", f"french={adapter}"]
    names = ["--served-model-name", "llama", "llama_0"]
    with ExitStack() as stack:

        def start(model: str, *flags: str) -> Engine:
            return stack.enter_context(Engine(command, f"{models}/{model}", *flags, *SMALL, env=STORE))

        started = Engines(
            start("tiny-llama", *names, "--max-model-len", "2048", *lora),
            start("tiny-embed", "--served-model-name", "bge", "--runner", "pooling", "--convert", "embed"),
            start(
                "tiny-rerank", "--served-model-name", "moods", "--runner", "pooling", "--convert", "classify"
            ),
        )
        for engine in (started.chat, started.embed, started.classify):
            await engine.ready(240)
        yield started


def write_adapter(place: Path) -> Path:
    """A LoRA adapter of nothing but zeros, as PEFT writes one: the smallest that vLLM loads."""
    layer = "base_model.model.model.layers.{}.self_attn.o_proj.lora_{}.weight"
    shapes = {layer.format(n, "A"): [RANK, HIDDEN] for n in range(LAYERS)}
    shapes |= {layer.format(n, "B"): [HIDDEN, RANK] for n in range(LAYERS)}
    size, header = RANK * HIDDEN * 4, {}
    for number, (name, shape) in enumerate(shapes.items()):
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [number * size, (number + 1) * size]}
    head = json.dumps(header).encode()
    weights = struct.pack("<Q", len(head)) + head + bytes(size * len(shapes))
    (place / "adapter_model.safetensors").write_bytes(weights)
    told = {"peft_type": "LORA", "r": RANK, "lora_alpha": 16, "target_modules": ["o_proj"], "bias": "none"}
    (place / "adapter_config.json").write_text(json.dumps(told | {"task_type": "CAUSAL_LM"}))
    return place


async def ask(engine: Engine, path: str, body: object | None = None, **headers: str) -> tuple[int, Any]:
    async with engine.client() as client:
        method = "GET" if body is None else "POST"
        async with client.request(method, path, json=body, headers=headers) as answer:
            return answer.status, await answer.json()


async def stream(engine: Engine, path: str, body: dict[str, Any]) -> bytes:
    async with engine.client() as client, client.post(path, json={"stream": True} | body) as answer:
        assert answer.content_type == "text/event-stream"
        return await answer.read()


# --- responses ---


async def test_a_response(engines: Engines) -> None:
    status, said = await ask(
        engines.chat, "/v1/responses", {"model": "llama", "input": "Hello", "max_output_tokens": 5}
    )
    assert (status, said["object"], said["model"]) == (200, "response", "llama")
    assert next(iter(said)) == "id"
    assert said["id"].startswith("resp_")
    assert said["output"][0]["content"][0]["type"] == "output_text"
    assert said["usage"]["output_tokens"] <= 5
    assert said["usage"]["input_tokens"] > 0


async def test_a_response_is_kept_under_an_id_of_its_own(engines: Engines) -> None:
    asked = {"model": "llama", "input": "Hello", "max_output_tokens": 2}
    _, made = await ask(engines.chat, "/v1/responses", asked, **{"X-Request-Id": "abc"})
    assert "abc" not in made["id"]
    path = f"/v1/responses/{made['id']}"
    status, found = await ask(engines.chat, path)
    assert (status, found["id"]) == (200, made["id"])
    error = {"message": "Cannot cancel a synchronous response.", "param": "response_id", "code": 400}
    status, said = await ask(engines.chat, f"{path}/cancel", {})
    assert (status, said) == (400, {"error": error | {"type": "invalid_request_error"}})


async def test_a_response_that_is_not_kept(engines: Engines) -> None:
    status, said = await ask(engines.chat, "/v1/responses/resp_nope")
    assert (status, said["error"]["param"]) == (404, "response_id")
    assert said["error"]["message"] == "Response with id 'resp_nope' not found."


async def test_a_response_in_the_background_is_told_at_once(engines: Engines) -> None:
    asked = {"model": "llama", "input": "Hello", "background": True, "max_output_tokens": 2}
    status, said = await ask(engines.chat, "/v1/responses", asked)
    assert (status, said["status"], said["output"]) == (200, "queued", [])


async def test_a_stream_of_a_response_tells_its_id_first_and_ends_with_completed(engines: Engines) -> None:
    asked = {"model": "llama", "input": "Hello", "max_output_tokens": 3}
    raw = await stream(engines.chat, "/v1/responses", asked)
    assert raw.startswith(b"event: response.created\ndata: {")
    assert b'"resp_' in raw.splitlines()[1]
    assert b"[DONE]" not in raw
    passing = Events(MARKS["responses"])
    passing.see(raw)
    assert passing.ended()


# --- messages ---


async def test_a_message(engines: Engines) -> None:
    asked = {"model": "llama_0", "messages": HELLO, "max_tokens": 4}
    status, said = await ask(engines.chat, "/v1/messages", asked, **{"X-Request-Id": "abc"})
    assert (status, said["type"], said["role"], said["model"]) == (200, "message", "assistant", "llama")
    assert said["id"] == "chatcmpl-abc"
    assert said["content"][0]["type"] == "text"
    assert said["usage"]["input_tokens"] > 0


async def test_a_stream_of_a_message_ends_with_message_stop(engines: Engines) -> None:
    raw = await stream(engines.chat, "/v1/messages", {"model": "llama", "messages": HELLO, "max_tokens": 4})
    assert raw.startswith(b"event: message_start\ndata: {")
    name, data = raw.removesuffix(b"\n\n").split(b"\n\n")[-1].split(b"\ndata: ")
    assert (name, json.loads(data)) == (b"event: message_stop", {"type": "message_stop"})
    passing = Events(MARKS["anthropic"])
    passing.see(raw)
    assert passing.ended()


async def test_vllms_refusals_of_messages_are_of_both_shapes_and_retold_in_one(engines: Engines) -> None:
    body = {"model": "nope", "messages": HELLO, "max_tokens": 4}
    status, unknown = await ask(engines.chat, "/v1/messages", body)
    assert (status, unknown["type"], unknown["error"]["type"]) == (404, "error", "NotFoundError")
    async with engines.chat.client() as client:
        json_type = {"Content-Type": "application/json"}
        async with client.post("/v1/messages", data=b"{", headers=json_type) as answer:
            broken = await answer.json()
    assert (answer.status, broken["error"]["type"]) == (400, "Bad Request")
    for code, said in ((404, unknown), (400, broken)):
        told = retold(code, json.dumps(said).encode(), "anthropic")
        assert told is not None
        assert json.loads(told)["error"]["type"] in ("not_found_error", "invalid_request_error")


async def test_tokens_of_messages_are_counted(engines: Engines) -> None:
    status, said = await ask(engines.chat, "/v1/messages/count_tokens", {"model": "llama", "messages": HELLO})
    assert (status, said["input_tokens"] > 0) == (200, True)


# --- adapters, tokens, classes ---


async def test_an_adapter_is_a_model_under_the_first_name(engines: Engines) -> None:
    _, said = await ask(engines.chat, "/v1/models")
    found = {entry["id"]: entry for entry in said["data"]}
    assert list(found) == ["llama", "llama_0", "french"]
    assert (found["french"]["parent"], found["french"]["max_model_len"]) == ("llama", None)
    asked = {"model": "french", "messages": HELLO, "max_tokens": 2}
    status, said = await ask(engines.chat, "/v1/chat/completions", asked)
    assert (status, said["model"]) == (200, "french")


async def test_tokens_become_a_text(engines: Engines) -> None:
    status, said = await ask(engines.chat, "/detokenize", {"model": "llama", "tokens": [10, 20]})
    assert (status, isinstance(said["prompt"], str)) == (200, True)
    status, said = await ask(engines.chat, "/detokenize", {"model": "llama"})
    assert (status, said["error"]["type"]) == (400, "Bad Request")


async def test_classes(engines: Engines) -> None:
    status, said = await ask(engines.classify, "/classify", {"model": "moods", "input": ["Hello", "x"]})
    assert (status, said["object"]) == (200, "list")
    assert [(entry["index"], entry["label"]) for entry in said["data"]] == [(0, "LABEL_0"), (1, "LABEL_0")]
    assert [len(entry["probs"]) for entry in said["data"]] == [1, 1]
    assert await ask(engines.embed, "/classify", {}) == (404, {"detail": "Not Found"})


@pytest.mark.parametrize("name", ["embed", "classify"])
async def test_pooling(engines: Engines, name: str) -> None:
    model = {"embed": "bge", "classify": "moods"}[name]
    status, said = await ask(getattr(engines, name), "/pooling", {"model": model, "input": "Hello"})
    assert (status, [entry["object"] for entry in said["data"]]) == (200, ["pooling"])
    assert all(isinstance(number, float) for number in said["data"][0]["data"])


# --- many embeddings as one call ---


@pytest.mark.parametrize("more", [{}, {"encoding_format": "base64"}])
@pytest.mark.parametrize(
    "inputs", [["Hello", ["The engine", "Paris"], ""], [[10, 11], [[12], [13, 14]], [15]]]
)
async def test_merged_and_split_is_as_each_alone(engines: Engines, inputs: list[Any], more: Any) -> None:
    bodies = [json.dumps({"model": "bge", "input": given, **more}).encode() for given in inputs]
    wishes = [wish for body in bodies if (wish := read_wish(body))]
    assert len(wishes) == len(inputs)
    status, together = await ask(engines.embed, "/v1/embeddings", json.loads(merged(wishes)))
    assert status == 200
    parts = split(json.dumps(together).encode(), wishes, ["a", "b", "c"])
    total = 0
    for body, (part, count) in zip(bodies, parts, strict=True):
        _, alone = await ask(engines.embed, "/v1/embeddings", json.loads(body))
        mine = json.loads(part)
        assert [entry["index"] for entry in mine["data"]] == [entry["index"] for entry in alone["data"]]
        for one, other in zip(mine["data"], alone["data"], strict=True):
            assert numbers(one["embedding"]) == pytest.approx(numbers(other["embedding"]), abs=0.05)
        assert mine["usage"]["prompt_tokens"] == count
        total += alone["usage"]["prompt_tokens"]
    assert sum(count for _, count in parts) == total


def numbers(embedding: str | list[float]) -> list[float]:
    if isinstance(embedding, list):
        return embedding
    raw = base64.b64decode(embedding)
    return list(struct.unpack(f"<{len(raw) // 4}f", raw))


async def test_one_bad_text_fails_a_whole_call(engines: Engines) -> None:
    """Why those that were merged go apart when a call is refused."""
    status, said = await ask(engines.embed, "/v1/embeddings", {"model": "bge", "input": ["a", "the " * 600]})
    assert (status, said["error"]["param"]) == (400, "input_tokens")


async def test_a_burst_through_the_port_is_a_few_calls_and_everyone_gets_what_is_theirs(
    engines: Engines,
) -> None:
    bge = Profile(name="bge_0", model="bge", weights="w", gpus=(0,), task="embed")
    config = Config(
        path=Path("llmd.toml"), server=Server(listen=("127.0.0.1:0",), drain=0.1), profiles={"bge_0": bge}
    )
    driver = FakeDriver(config, engine=engines.embed.socket, key=KEY)
    port = Port(driver, Keyring({}, open=True))
    await port.open()
    texts = [f"Chunk {number} of a document" for number in range(80)]
    try:
        async with aiohttp.ClientSession(port.listening[0]) as client:
            answers = await asyncio.gather(*(embedded(client, text) for text in [*texts, "the " * 600]))
    finally:
        await port.close()
    assert [status for status, _ in answers] == [200] * 80 + [400]
    assert len(driver.asks) < 60  # the refused call's members went again, alone
    for text, (_, said) in zip(texts[::16], answers[::16], strict=False):
        _, alone = await ask(engines.embed, "/v1/embeddings", {"model": "bge", "input": text})
        assert said["data"][0]["embedding"] == pytest.approx(alone["data"][0]["embedding"], abs=0.05)


async def embedded(client: aiohttp.ClientSession, text: str) -> tuple[int, Any]:
    async with client.post("/v1/embeddings", json={"model": "bge", "input": text}) as answer:
        return answer.status, await answer.json()
