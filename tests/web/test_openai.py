"""OpenAI's shapes, as functions of what goes in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from supervisor.config import Config, Profile
from supervisor.errors import BadRequest, EngineFailed, LlmdError, NotAvailable, Overloaded
from supervisor.web.openai import error_body, error_headers, model_entries, read_ask

TASKS = frozenset({"generate"})
DEEP = b'{"model": "m", "prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}"


def ask_tokens(**body: Any) -> int:
    return read_ask(json.dumps({"model": "llama", **body}).encode(), "webui", TASKS).tokens


def test_an_ask_names_model_source_and_tasks() -> None:
    ask = read_ask(b'{"model": "llama", "unknown": [1, {}]}', "webui", TASKS)
    assert (ask.model, ask.source, ask.tokens, ask.tasks) == ("llama", "webui", 0, TASKS)


@pytest.mark.parametrize(
    ("body", "most", "stream"),
    [
        ({}, None, False),
        ({"max_tokens": 7}, 7, False),
        ({"max_tokens": 7, "max_completion_tokens": 5, "stream": True}, 5, True),
        ({"max_output_tokens": 9, "stream": False}, 9, False),
        ({"max_tokens": "many", "stream": "yes"}, None, False),
        ({"max_tokens": None, "max_completion_tokens": -1}, None, False),
    ],
)
def test_what_an_ask_wants_written(body: dict[str, Any], most: int | None, stream: bool) -> None:
    ask = read_ask(json.dumps({"model": "llama", **body}).encode(), "webui", TASKS)
    assert (ask.max_tokens, ask.stream) == (most, stream)


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": "x" * 4000}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 4000}]}]},
        {"prompt": "x" * 4000},
        {"prompt": list(range(1000))},
        {"input": ["x" * 2000, "x" * 2000]},
        {"query": "x" * 2000, "documents": ["x" * 2000]},
    ],
)
def test_tokens_are_guessed_from_all_text(body: dict[str, Any]) -> None:
    assert ask_tokens(**body) == 1000


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"messages": [{"role": "user", "content": "x" * 4000}]}, 500),
        ({"messages": [{"role": "assistant", "content": "<think>" * 4000}]}, 0),
        (
            {"messages": [{"role": "user", "content": "x" * 80, "notes": "x" * 4000}], "tools": ["x" * 4000]},
            10,
        ),
        ({"prompt": list(range(1000))}, 1000),
        ({"prompt": ["x" * 800, "x" * 4000]}, 500),
        ({"input": ["x" * 4000] * 32}, 500),
        ({"input": [[1, 2, 3], [4]]}, 3),
        ({"input": [{"role": "user", "content": "x" * 4000}, {"role": "user", "content": "x" * 4000}]}, 1000),
        ({"query": "x" * 80, "documents": ["x" * 4000] * 9}, 500),
        ({"documents": []}, 0),
        ({"input": "x" * 4000, "truncate_prompt_tokens": -1}, 0),
        ({"input": "x" * 4000, "truncation": "auto"}, 0),
        ({"input": "x" * 4000, "truncation": "disabled"}, 500),
    ],
)
def test_what_is_certain_is_the_longest_prompt_at_eight_letters_a_token(
    body: dict[str, Any], tokens: int
) -> None:
    assert read_ask(json.dumps({"model": "llama", **body}).encode(), "webui", TASKS).least == tokens


@pytest.mark.parametrize(
    "image",
    [
        {"type": "image_url", "image_url": {"url": "data:" + "x" * 1_000_000}},
        {"type": "input_image", "image_url": "data:" + "x" * 1_000_000},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "x" * 1_000_000}},
    ],
    ids=["chat", "responses", "messages"],
)
def test_an_image_counts_whatever_its_bytes(image: dict[str, Any]) -> None:
    body = json.dumps({"model": "llama", "messages": [{"role": "user", "content": [image, image]}]})
    ask = read_ask(body.encode(), "webui", TASKS)
    assert (ask.tokens, ask.least, ask.letters) == (2000, 0, None)


def test_where_a_document_is_from_is_no_image() -> None:
    assert ask_tokens(query="", documents=[{"text": "x" * 40, "source": "y" * 40}]) == 20


def ask_letters(**body: Any) -> int | None:
    return read_ask(json.dumps({"model": "llama", **body}).encode(), "webui", TASKS).letters


def test_letters_are_those_of_all_text_and_of_tools_as_written() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "x" * 90}]}]
    assert ask_letters(messages=messages) == 90
    assert ask_letters(messages=messages, tools=[{"strict": True}]) == 90 + len('[{"strict": true}]')


def test_a_reranker_reads_its_query_with_each_document() -> None:
    assert ask_letters(query="x" * 10, documents=["y" * 50] * 3) == 3 * (10 + 50)


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]},
        {"prompt": [1, 2, 3]},
    ],
)
def test_what_is_not_text_alone_has_no_letters_to_learn_from(body: dict[str, Any]) -> None:
    assert ask_letters(**body) is None


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"{}", b'{"model": 3}', b'{"model": null}', b'\xff\xfe{"model"', b"[" * 100_000, DEEP],
)
def test_what_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        read_ask(body, "webui", TASKS)


def test_an_error_has_openais_four_fields() -> None:
    said = error_body(BadRequest("no", param="model"))
    assert said == {
        "error": {
            "message": "no",
            "type": "invalid_request_error",
            "param": "model",
            "code": "invalid_request",
        }
    }


def test_a_dead_engines_last_lines_are_told() -> None:
    message = error_body(EngineFailed("died", log=["first", "out of memory"]))["error"]["message"]
    assert message.startswith("died\n")
    assert message.endswith("out of memory")


@pytest.mark.parametrize(
    ("error", "headers"),
    [
        (Overloaded("full", retry_after=0.2), {"Retry-After": "1", "retry-after-ms": "200"}),
        (Overloaded("full", retry_after=7.2), {"Retry-After": "8", "retry-after-ms": "7200"}),
        (NotAvailable("loads", retry_after=58.4), {"Retry-After": "59", "retry-after-ms": "58400"}),
        (NotAvailable("loads", retry_after=59.2), {"Retry-After": "59"}),
        (NotAvailable("night", retry_after=3600), {"Retry-After": "59"}),
        (NotAvailable("too large"), {"x-should-retry": "false"}),
    ],
)
def test_when_to_try_again(error: LlmdError, headers: dict[str, str]) -> None:
    assert error_headers(error) == headers


def test_a_longer_wait_is_told_in_words() -> None:
    assert "about 3600 s" in error_body(NotAvailable("night", retry_after=3600))["error"]["message"]


def test_models_and_profiles_are_listed_cold_ones_too() -> None:
    profiles = {
        name: Profile(name=name, model="llama", weights="w", gpus=(0,)) for name in ("llama_0", "llama_1")
    }
    config = Config(path=Path("llmd.toml"), profiles=profiles)
    engines = [
        {"profile": "llama_0", "state": "cold", "max_model_len": 4096},
        {"profile": "llama_1", "state": "ready", "max_model_len": 8192},
    ]
    entries = model_entries(config, engines, 17)
    assert list(entries) == ["llama", "llama_0", "llama_1"]
    assert entries["llama"] == {
        "id": "llama",
        "object": "model",
        "created": 17,
        "owned_by": "llmd",
        "name": "llama",
        "max_model_len": 8192,
        "status": {"value": "ready"},
    }
    assert entries["llama_0"]["status"] == {"value": "cold"}
    assert model_entries(config, [], 17)["llama"]["status"] == {"value": "cold"}
