"""Every route through the public port, on stand-in engines of every task."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp.client_exceptions import WSServerHandshakeError
from fakes import FakeDriver

from supervisor.config import Config, Profile, Server
from supervisor.config.secrets import digest
from supervisor.core.command import argv
from supervisor.web.auth import Keyring
from supervisor.web.openapi import OWN, document
from supervisor.web.routes import ROUTES
from supervisor.web.server import Server as Port
from tests.standin.launch import STANDIN, Engine, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = {"Authorization": "Bearer sesame"}
OTHER = {"x-api-key": "tahini"}
HELLO = [{"role": "user", "content": "Hello"}]
TASKS = {
    "llama": "generate",
    "bge": "embed",
    "reranker": "rerank",
    "moods": "classify",
    "whisper": "transcribe",
}
MODELS = {
    name: Profile(name=f"{name}_0", model=name, weights=name, gpus=(0,), task=task)
    for name, task in TASKS.items()
}  # type: ignore[arg-type]
MODELS["llama"] = MODELS["llama"].model_copy(
    update={"lora": {"french": "/lora/french", "org/latin": "/lora/latin"}}
)
CONFIG = Config(
    path=Path("llmd.toml"),
    server=Server(listen=("127.0.0.1:0",), drain=0.1),
    profiles={profile.name: profile for profile in MODELS.values()},
)


class World:
    def __init__(self, driver: FakeDriver, url: str, client: aiohttp.ClientSession) -> None:
        self.driver, self.url, self.client = driver, url, client

    async def ask(self, path: str, body: Any, headers: dict[str, str] = KEY) -> tuple[int, Any]:
        async with self.client.post(self.url + path, json=body, headers=headers) as answer:
            return answer.status, await answer.json()

    async def get(self, path: str, headers: dict[str, str] = KEY) -> tuple[int, Any]:
        async with self.client.get(self.url + path, headers=headers) as answer:
            return answer.status, await answer.json()

    async def stream(self, path: str, body: dict[str, Any]) -> list[str]:
        async with self.client.post(self.url + path, json=body | {"stream": True}, headers=KEY) as answer:
            assert answer.content_type == "text/event-stream"
            return (await answer.text()).split("\n\n")

    async def count(self, profile: str, what: str) -> int:
        connector = aiohttp.UnixConnector(str(self.driver.engines[profile]))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get("http://e/standin") as told,
        ):
            return int((await told.json())[what])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[World]:
    with ExitStack() as stack:
        engines = {p.name: stack.enter_context(started(p)) for p in MODELS.values()}
        for engine in engines.values():
            await engine.ready()
        driver = FakeDriver(CONFIG, engines={name: engine.socket for name, engine in engines.items()})
        port = Port(driver, Keyring({digest("sesame"): "webui", digest("tahini"): "n8n"}))
        await port.open()
        async with aiohttp.ClientSession() as client:
            yield World(driver, port.listening[0], client)
        await port.close()


def started(profile: Profile) -> Engine:
    """With the very flags that llmd gives it."""
    flags = argv(profile, CONFIG, Path("unused"), 0.9)[3:]
    flags = flags[2:] if flags[0] == "--uds" else flags
    return Engine(
        STANDIN, profile.weights, *flags, env={"VLLM_API_KEY": "engine", "STANDIN_TOKENS_PER_SECOND": "0"}
    )


SIMPLE = [
    ("/v1/chat/completions", {"model": "llama", "messages": HELLO}, "choices"),
    ("/v1/completions", {"model": "llama", "prompt": "Hello"}, "choices"),
    ("/v1/responses", {"model": "llama", "input": "Hello"}, "output"),
    ("/v1/messages", {"model": "llama", "messages": HELLO, "max_tokens": 3}, "content"),
    ("/v1/messages/count_tokens", {"model": "llama", "messages": HELLO}, "input_tokens"),
    ("/v1/embeddings", {"model": "bge", "input": "Hello"}, "data"),
    ("/v1/rerank", {"model": "reranker", "query": "a", "documents": ["a"]}, "results"),
    ("/rerank", {"model": "bge", "query": "a", "documents": ["a"]}, "results"),
    ("/v1/score", {"model": "reranker", "text_1": "a", "text_2": ["a"]}, "data"),
    ("/score", {"model": "bge", "text_1": "a", "text_2": ["a"]}, "data"),
    ("/classify", {"model": "moods", "input": "a"}, "data"),
    ("/classify", {"model": "reranker", "input": "a"}, "data"),
    ("/pooling", {"model": "bge", "input": "a"}, "data"),
    ("/pooling", {"model": "moods", "input": "a"}, "data"),
    ("/tokenize", {"model": "whisper", "prompt": "a"}, "tokens"),
    ("/detokenize", {"model": "moods", "tokens": [1]}, "prompt"),
]


@pytest.mark.parametrize(("path", "body", "holds"), SIMPLE)
async def test_each_route_answers(world: World, path: str, body: dict[str, Any], holds: str) -> None:
    status, said = await world.ask(path, body)
    assert (status, holds in said) == (200, True), said


async def test_every_route_with_a_body_is_tried_here() -> None:
    assert {path for path, _, _ in SIMPLE} == {route.path for route in ROUTES if route.body == "json"}


@pytest.mark.parametrize(
    ("path", "model", "able"),
    [
        ("/v1/chat/completions", "bge", "llama"),
        ("/v1/responses", "whisper", "llama"),
        ("/v1/embeddings", "llama", "bge"),
        ("/classify", "bge", "moods, reranker"),
        ("/v1/rerank", "moods", "bge, reranker"),
    ],
)
async def test_a_route_of_another_task_says_which_models_do_it(
    world: World, path: str, model: str, able: str
) -> None:
    status, said = await world.ask(path, {"model": model, "input": "a", "messages": []})
    assert (status, said["error"]["code"]) == (400, "wrong_task")
    assert said["error"]["message"].endswith(f"models that do: {able}")


async def test_anthropics_clients_are_refused_in_their_shape(world: World) -> None:
    body = {"model": "llama", "messages": HELLO, "max_tokens": 3}
    for sent, headers, status, kind in (
        (body, {}, 401, "authentication_error"),
        (body, {"x-api-key": "wrong"}, 401, "authentication_error"),
        (body | {"model": "bge"}, OTHER, 400, "invalid_request_error"),
        (body | {"model": "nope"}, OTHER, 404, "not_found_error"),
        ({"model": "llama"}, OTHER, 400, "invalid_request_error"),  # vLLM says this in OpenAI's shape
    ):
        found, said = await world.ask("/v1/messages", sent, headers)
        assert (found, said["type"], said["error"]["type"]) == (status, "error", kind)
    async with world.client.get(world.url + "/v1/messages", headers=OTHER) as answer:
        assert (answer.status, (await answer.json())["type"]) == (405, "error")


async def test_a_key_of_anthropics_clients_is_taken_and_not_passed_on(world: World) -> None:
    status, said = await world.ask(
        "/v1/messages",
        {"model": "llama", "messages": HELLO, "max_tokens": 3},
        OTHER | {"anthropic-version": "2023-06-01"},
    )
    assert (status, said["role"]) == (200, "assistant")
    assert world.driver.asks[-1].source == "n8n"


async def test_streams_of_both_newer_apis_end_whole(world: World) -> None:
    frames = await world.stream("/v1/messages", {"model": "llama", "messages": HELLO, "max_tokens": 3})
    assert [f.splitlines()[0] for f in frames[-3:-1]] == ["event: message_delta", "event: message_stop"]
    frames = await world.stream("/v1/responses", {"model": "llama", "input": "Hello"})
    assert frames[-2].startswith("event: response.completed\n")


async def test_a_stored_answer_is_asked_of_the_engine_that_keeps_it(world: World) -> None:
    _, made = await world.ask("/v1/responses", {"model": "llama", "input": "Hello", "background": True})
    path = f"/v1/responses/{made['id']}"
    assert await world.get(path) == (200, made)
    assert world.driver.asks[-1].model == "llama_0"
    status, said = await world.ask(f"{path}/cancel", None)
    assert (status, said["status"]) == (200, "cancelled")
    status, said = await world.ask(f"{path}/cancel", None)
    assert (status, said["error"]["message"]) == (400, "Cannot cancel a synchronous response.")


async def test_an_answer_goes_on_where_the_one_before_is_kept(world: World) -> None:
    frames = await world.stream("/v1/responses", {"model": "llama", "input": "Hello"})
    name = json.loads(frames[0].splitlines()[1].removeprefix("data: "))["response"]["id"]
    more = {"model": "llama", "input": "Go on", "previous_response_id": name}
    assert (await world.ask("/v1/responses", more))[0] == 200
    assert world.driver.asks[-1].model == "llama_0"
    status, said = await world.ask("/v1/responses", more | {"model": "bge"})
    assert (status, said["error"]["param"]) == (400, "previous_response_id")


async def test_an_answer_is_kept_for_the_key_that_asked_and_as_long_as_its_engine_lives(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, made = await world.ask("/v1/responses", {"model": "llama", "input": "Hello"})
    path = f"/v1/responses/{made['id']}"
    leases = len(world.driver.asks)
    for wrong, headers in (
        (path, OTHER),
        ("/v1/responses/resp_nope", KEY),
        ("/v1/responses/..%2Fmodels", KEY),
    ):
        status, said = await world.get(wrong, headers)
        assert (status, said["error"]["param"]) == (404, "response_id")
    monkeypatch.setattr(FakeDriver, "status", lambda self: {"engines": [{"incarnation": "i2"}]})
    assert (await world.get(path))[0] == 404
    assert len(world.driver.asks) == leases  # nobody is started for it


def sound(model: str | None, size: int = 3000) -> aiohttp.FormData:
    form = aiohttp.FormData()
    form.add_field("file", io.BytesIO(b"\0" * size), filename="a.wav", content_type="audio/wav")
    if model is not None:
        form.add_field("model", model)
    return form


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/audio/translations"])
async def test_a_form_names_its_model_after_a_file_as_large_as_it_may_be(world: World, path: str) -> None:
    for size in (3000, 3_000_000):
        async with world.client.post(world.url + path, data=sound("whisper", size), headers=KEY) as answer:
            assert answer.status == 200
            assert len((await answer.json())["text"].split()) == size // 1000


@pytest.mark.parametrize(("model", "code"), [(None, "invalid_request"), ("llama", "wrong_task")])
async def test_a_form_for_no_model_is_refused(world: World, model: str | None, code: str) -> None:
    path = world.url + "/v1/audio/transcriptions"
    async with world.client.post(path, data=sound(model), headers=KEY) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (400, code)


async def test_json_where_a_form_is_expected_is_refused(world: World) -> None:
    status, said = await world.ask("/v1/audio/transcriptions", {"model": "whisper"})
    assert (status, said["error"]["code"]) == (400, "invalid_request")


@pytest.mark.parametrize("query", ["?model=whisper", ""])
async def test_a_websocket_is_relayed_both_ways_and_ends_for_both(world: World, query: str) -> None:
    async with world.client.ws_connect(world.url + "/v1/realtime" + query, headers=KEY) as socket:
        assert await socket.receive_json() == {"type": "session.created"}
        for number in range(3):
            await socket.send_json({"type": "session.update", "n": number})
            assert (await socket.receive_json())["delta"]["n"] == number
        assert world.driver.held == 1
        await socket.send_json({"type": "end"})
        assert (await socket.receive()).type is aiohttp.WSMsgType.CLOSE
    await until(lambda: world.driver.held == 0)


async def test_a_websocket_that_its_client_leaves_gives_its_place_back(world: World) -> None:
    socket = await world.client.ws_connect(world.url + "/v1/realtime?model=whisper", headers=KEY)
    await socket.receive_json()
    assert world.driver.held == 1
    await socket.close()
    await until(lambda: world.driver.held == 0)


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [("?model=whisper", {}, 401), ("?model=llama", KEY, 400), ("?model=nope", KEY, 404)],
)
async def test_a_websocket_is_refused_before_it_is_one(
    world: World, query: str, headers: dict[str, str], status: int
) -> None:
    with pytest.raises(WSServerHandshakeError) as refused:
        await world.client.ws_connect(world.url + "/v1/realtime" + query, headers=headers)
    assert refused.value.status == status


async def test_a_plain_get_of_a_websocket_is_refused(world: World) -> None:
    async with world.client.get(world.url + "/v1/realtime?model=whisper", headers=KEY) as answer:
        assert answer.status == 400
        assert "error" in await answer.json()


async def test_adapters_are_models(world: World) -> None:
    _, said = await world.get("/v1/models")
    listed = {entry["id"]: entry for entry in said["data"]}
    assert {"llama", "llama_0", "french", "org/latin"} <= set(listed)
    assert (await world.get("/v1/models/org%2Flatin"))[1]["id"] == "org/latin"
    status, said = await world.ask("/v1/chat/completions", {"model": "french", "messages": HELLO})
    assert (status, said["model"]) == (200, "french")
    status, said = await world.ask("/v1/embeddings", {"model": "french", "input": "a"})
    assert (status, said["error"]["code"]) == (400, "wrong_task")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"model": "llama", "prompt": "many words " * 20_000}),
        ("/detokenize", {"model": "llama", "tokens": [5] * 20_000}),
    ],
)
async def test_tokens_beyond_the_context_are_counted(world: World, path: str, body: Any) -> None:
    """Whoever counts them wants to know by how much."""
    before = len(world.driver.asks)
    status, _ = await world.ask(path, body)
    assert status == 200
    assert [(ask.tokens, ask.least) for ask in world.driver.asks[before:]] == [(0, 0)]


async def test_a_large_body_comes_to_the_engine_whole(world: World) -> None:
    body = io.BytesIO(json.dumps({"model": "llama", "prompt": "ab " * (1 << 20)}).encode())
    headers = KEY | {"Content-Type": "application/json"}
    async with world.client.post(world.url + "/tokenize", data=body, headers=headers) as answer:
        assert (answer.status, (await answer.json())["count"]) == (200, (1 << 20) + 3)


async def test_the_document_holds_every_route_that_is_served_and_no_other(world: World) -> None:
    async with world.client.get(world.url + "/openapi.json") as answer:  # it needs no key
        told = await answer.json()
    assert told == document()
    for path, methods in told["paths"].items():
        for method in methods:
            where = world.url + path.replace("{id}", "x")
            async with world.client.request(method, where, headers=KEY) as answer:
                assert answer.status != 405, (method, path)
                if answer.status == 404:
                    assert (await answer.json())["error"]["code"] == "model_not_found"
    served = {(route.method.lower(), route.path) for route in ROUTES} | {("get", path) for path in OWN}
    assert {(m, path) for path, methods in told["paths"].items() for m in methods} == served


@pytest.mark.parametrize(
    "path",
    [
        "/sleep",
        "/v1/load_lora_adapter",
        "/invocations",
        "/docs",
        "/collective_rpc",
        "/v1/responses/a/b",
        "/version",
    ],
)
async def test_whatever_else_an_engine_has_is_closed(world: World, path: str) -> None:
    status, said = await world.ask(path, {"model": "llama"})
    assert (status, said["error"]["code"]) == (404, "route_not_found")


# --- bursts of embeddings ---


async def embed(world: World, text: Any, headers: dict[str, str] = KEY, **more: Any) -> tuple[int, Any]:
    return await world.ask("/v1/embeddings", {"model": "bge", "input": text, **more}, headers)


async def calls(world: World) -> int:
    return await world.count("bge_0", "received")


async def test_a_burst_is_a_few_calls_and_everyone_gets_what_is_theirs(world: World) -> None:
    texts = [f"chunk {number}" for number in range(100)]
    alone = [(await embed(world, text))[1]["data"] for text in texts[:3]]
    before = await calls(world)
    answers = await asyncio.gather(*(embed(world, text) for text in texts))
    assert await calls(world) - before <= 10
    assert {status for status, _ in answers} == {200}
    assert [said["data"] for _, said in answers[:3]] == alone
    assert len({json.dumps(said["data"]) for _, said in answers}) == len(texts)
    assert all(said["usage"]["prompt_tokens"] > 0 for _, said in answers)


async def test_one_bad_text_is_told_to_its_sender_alone(world: World) -> None:
    texts = ["good"] * 10 + ["bad " * 600] + ["good"] * 10
    answers = await asyncio.gather(*(embed(world, text) for text in texts))
    assert [status for status, _ in answers] == [200] * 10 + [400] + [200] * 10
    assert answers[10][1]["error"]["param"] == "input_tokens"


async def test_what_was_asked_otherwise_or_by_another_is_not_mixed(world: World) -> None:
    base64 = {"encoding_format": "base64"}
    before = len(world.driver.asks)
    answers = await asyncio.gather(
        *(embed(world, f"a {n}") for n in range(10)),
        *(embed(world, f"a {n}", **base64) for n in range(10)),
        *(embed(world, f"a {n}", OTHER) for n in range(10)),
    )
    vectors = [said["data"][0]["embedding"] for _, said in answers]
    assert {type(vector) for vector in vectors[:10]} == {list}
    assert {type(vector) for vector in vectors[10:20]} == {str}
    assert vectors[:10] == vectors[20:]
    assert {ask.source for ask in world.driver.asks[before:]} == {"webui", "n8n"}


async def test_one_who_leaves_takes_nobody_along(world: World) -> None:
    before = len(world.driver.asks)
    leaving = [asyncio.create_task(embed(world, f"gone {n}")) for n in range(5)]
    staying = [asyncio.create_task(embed(world, f"here {n}")) for n in range(5)]
    await until(lambda: len(world.driver.asks) > before)
    for task in leaving:
        task.cancel()
    assert {status for status, _ in await asyncio.gather(*staying)} == {200}
    await asyncio.gather(*leaving, return_exceptions=True)
    await until(lambda: world.driver.held == 0)


async def test_a_dead_engine_fails_the_whole_burst_and_nothing_is_sent_twice(world: World) -> None:
    real = world.driver.engines["bge_0"]
    world.driver.engines["bge_0"] = Path("/nowhere")
    try:
        before = len(world.driver.asks)
        answers = await asyncio.gather(*(embed(world, f"a {n}") for n in range(10)))
    finally:
        world.driver.engines["bge_0"] = real
    assert {(status, said["error"]["code"]) for status, said in answers} == {(502, "engine_failed")}
    assert len(world.driver.asks) - before <= 10
