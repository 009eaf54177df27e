"""What a request's body asks for, as functions of what goes in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.routing import Ask
from supervisor.errors import BadRequest
from supervisor.web.contents import read

TASKS = frozenset({"generate"})
DEEP = b'{"model": "m", "prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}"


def ask_of(body: bytes) -> Ask:
    return read(body, "webui", TASKS)[0]


def ask_tokens(**body: Any) -> int:
    return ask_of(json.dumps({"model": "llama", **body}).encode()).tokens


def test_an_ask_names_model_source_and_tasks() -> None:
    ask = ask_of(b'{"model": "llama", "unknown": [1, {}]}')
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
    ask = ask_of(json.dumps({"model": "llama", **body}).encode())
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
    assert ask_of(json.dumps({"model": "llama", **body}).encode()).least == tokens


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
    ask = ask_of(body.encode())
    assert (ask.tokens, ask.least, ask.letters) == (2000, 0, None)


HELLO = {"role": "user", "content": "Hello"}
MORE = [{"role": "assistant", "content": "Hi"}, {"role": "user", "content": "And now?"}]
SAID = [{"role": "user", "content": [{"type": "input_text", "text": "Hello"}]}]


def conversation(**body: Any) -> str | None:
    return ask_of(json.dumps({"model": "llama", **body}).encode()).conversation


@pytest.mark.parametrize(
    ("first", "later"),
    [
        ({"messages": [HELLO]}, {"messages": [HELLO, *MORE]}),
        ({"input": [HELLO]}, {"input": [HELLO, *MORE]}),
        ({"input": "Hello"}, {"input": [HELLO, *MORE]}),
        ({"input": SAID, "instructions": "Be kind."}, {"input": [*SAID, *MORE], "instructions": "Be kind."}),
        ({"system": "Be kind.", "messages": [HELLO]}, {"system": "Be kind.", "messages": [HELLO, *MORE]}),
    ],
    ids=["chat", "responses", "responses of a text", "responses with instructions", "messages"],
)
def test_a_later_turn_by_any_api_is_of_the_same_conversation(
    first: dict[str, Any], later: dict[str, Any]
) -> None:
    assert conversation(**first) == conversation(**later) is not None


@pytest.mark.parametrize("lead", ["system", "instructions"])
def test_another_lead_is_another_conversation(lead: str) -> None:
    """Its beginning is not what an engine has in its cache."""
    asked: dict[str, Any] = {"input" if lead == "instructions" else "messages": [HELLO]}
    parts = [{"type": "text", "text": "Be kind."}]
    names = [conversation(**asked, **more) for more in ({}, {lead: "Be kind."}, {lead: "Be rude."})]
    assert len(set(names)) == 3
    assert conversation(**asked, **{lead: parts}) == names[1]


def test_where_a_document_is_from_is_no_image() -> None:
    assert ask_tokens(query="", documents=[{"text": "x" * 40, "source": "y" * 40}]) == 20


def ask_letters(**body: Any) -> int | None:
    return ask_of(json.dumps({"model": "llama", **body}).encode()).letters


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
        ask_of(body)


KEYS = ["role", "content", "type", "text", "source", "image_url", "file", "file_url", "url", "notes"]
VALUES = st.recursive(
    st.none()
    | st.text(max_size=20)
    | st.integers(0, 9)
    | st.sampled_from(["url", "assistant", "user", "x" * 64]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": VALUES})
)
FIELDS = ["messages", "system", "instructions", "prompt", "input", "documents", "text_1", "query", "unknown"]
BODIES = st.dictionaries(st.sampled_from(FIELDS), VALUES | MESSAGES, max_size=4) | st.fixed_dictionaries(
    {"messages": MESSAGES}, optional={"tools": VALUES, "truncation": st.sampled_from(["auto", "disabled"])}
)


def leaves(value: Any) -> Iterator[Any]:
    """What counts of it, one by one: texts, numbers, and `...` for a medium."""
    if isinstance(value, list):
        for part in value:
            yield from leaves(part)
    elif isinstance(value, dict):
        for key, part in value.items():
            if key in ("image_url", "file") or (key == "source" and isinstance(part, dict)):
                yield ...
            elif key not in ("type", "role"):
                yield from leaves(part)
    elif value is not None:
        yield value


def letters(found: Iterable[Any]) -> int:
    return sum(len(value) for value in found if isinstance(value, str))


def numbers(found: Iterable[Any]) -> int:
    return sum(isinstance(value, int) for value in found)


def kept(part: Any) -> Any:
    if isinstance(part, list) and part and isinstance(part[0], dict):
        return [m.get("content") for m in part if isinstance(m, dict) and m.get("role") != "assistant"]
    return part


def prompts(body: dict[str, Any]) -> tuple[bool, list[Any]]:
    """Whether the engine reads them one by one, and which they are."""
    if isinstance(body.get("documents"), list):
        return True, body["documents"]
    for name in ("input", "prompt"):
        part = body.get(name)
        if isinstance(part, list) and part and isinstance(part[0], str | list):
            return True, part
    return False, [kept(body.get(name)) for name in ("messages", "system", "instructions", "input", "prompt")]


def urls(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for part in value:
            yield from urls(part)
    elif isinstance(value, dict):
        for key, part in value.items():
            inner = part.get("url") if isinstance(part, dict) else part
            from_url = key == "source" and isinstance(part, dict) and part.get("type") == "url"
            if (from_url or key in ("image_url", "file_url")) and isinstance(inner, str):
                yield inner
            yield from urls(part)


@given(BODIES, st.sampled_from([0, 64 << 10]), st.booleans())
def test_what_is_counted_and_found_is_what_is_there(body: dict[str, Any], more: int, ascii: bool) -> None:
    data = json.dumps({"model": "llama", "other": "x" * more, **body}, ensure_ascii=ascii)
    ask, demands = read(data.encode(), "webui", TASKS)
    documents = body.get("documents")
    found = [leaf for name in FIELDS[:7] for leaf in leaves(body.get(name))]
    again = max(1, len(documents)) if isinstance(documents, list) else 1
    count = letters(found) + letters(leaves(body.get("query"))) * again
    count += len(json.dumps(body["tools"], ensure_ascii=ascii).encode()) if "tools" in body else 0
    tokens, media = numbers(found), found.count(...)
    assert ask.tokens == count // 4 + tokens + media * 1000
    assert ask.letters == (None if tokens or media else count)
    several, parts = prompts(body)
    least = [letters(leaves(part)) // 8 + numbers(leaves(part)) for part in parts]
    cut = body.get("truncation", "disabled") != "disabled"
    assert ask.least == (0 if cut else max(least, default=0) if several else sum(least))
    assert sorted(demands.urls) == sorted(urls(body))
