"""What may go together, how it is put together and taken apart; the rest of the way is in test_bursts.py."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.web.embeddings import NoAnswer, Wish, merged, read_wish, shares, split

TEXTS = st.lists(st.text(), min_size=1, max_size=5)
IDS = st.lists(st.lists(st.integers(0, 9999), max_size=4), min_size=1, max_size=5)


def wish(given: Any, **fields: Any) -> Wish | None:
    return read_wish(json.dumps({"model": "bge", "input": given, **fields}).encode())


def sure(given: Any, **fields: Any) -> Wish:
    found = wish(given, **fields)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("given", "kind", "inputs"),
    [
        ("a", "text", [b'"a"']),
        (["a", "b"], "text", [b'"a"', b'"b"']),
        ([1, 2], "ids", [b"[1, 2]"]),
        ([[1], [2, 3]], "ids", [b"[1]", b"[2, 3]"]),
    ],
)
def test_inputs_are_kept_as_written(given: Any, kind: str, inputs: list[bytes]) -> None:
    found = sure(given)
    assert (found.kind, list(found.inputs)) == (kind, inputs)


@pytest.mark.parametrize("given", [None, 3, [], ["a", 1], ["a", [1]], [None], {}, [1, -1], [1.5]])
def test_what_is_no_plain_input_goes_alone(given: Any) -> None:
    assert wish(given) is None


def test_an_answer_that_is_no_json_goes_alone() -> None:
    assert wish("a", encoding_format="bytes") is None


def test_the_order_of_fields_is_no_difference_and_their_values_are() -> None:
    one = read_wish(b'{"model": "bge", "input": "a", "dimensions": 8, "user": "u"}')
    other = read_wish(b'{"dimensions": 8, "user": "u", "input": ["b"], "model": "bge"}')
    assert one is not None
    assert other is not None
    assert one.rest == other.rest
    assert sure("a", dimensions=8).rest != sure("a", dimensions=9).rest
    assert sure("a").rest != sure("a", encoding_format="base64").rest


def answer(inputs: list[Any], tokens: int) -> bytes:
    """Each input's embedding is the input itself, last one first."""
    data = [{"index": n, "object": "embedding", "embedding": [text]} for n, text in enumerate(inputs)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return json.dumps({"id": "x", "model": "bge", "data": data[::-1], "usage": usage}).encode()


@given(st.lists(TEXTS, min_size=1, max_size=6) | st.lists(IDS, min_size=1, max_size=6), st.integers(0, 1000))
def test_everyone_gets_the_embeddings_of_their_inputs_in_order(
    requests: list[list[Any]], tokens: int
) -> None:
    wishes = [sure(inputs, dimensions=8) for inputs in requests]
    body = json.loads(merged(wishes))
    assert (body["model"], body["dimensions"]) == ("bge", 8)
    assert body["input"] == [item for inputs in requests for item in inputs]
    names = [str(n) for n in range(len(wishes))]
    parts = split(answer(body["input"], tokens), wishes, names)
    for name, inputs, (part, count) in zip(names, requests, parts, strict=True):
        told = json.loads(part)
        assert (told["id"], told["object"], told["model"]) == (f"embd-{name}", "list", "bge")
        assert [(e["index"], e["embedding"]) for e in told["data"]] == [
            (n, [i]) for n, i in enumerate(inputs)
        ]
        assert told["usage"]["prompt_tokens"] == told["usage"]["total_tokens"] == count
    assert sum(count for _, count in parts) == tokens


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        answer(["a"], 1),
        answer(["a", "b", "c"], 1),
        answer(["a", "b"], 1).replace(b": 1,", b": 0,"),
    ],
)
def test_an_answer_that_is_none_is_not_given_out(body: bytes) -> None:
    with pytest.raises(NoAnswer):
        split(body, [sure("a"), sure("b")], ["1", "2"])


def test_numbers_of_an_embedding_are_passed_as_they_are() -> None:
    body = b'{"model":"m","usage":{"prompt_tokens":2},"data":[{"index":0,"embedding":[0.10000000149011612,1e-3]}]}'
    [(part, _)] = split(body, [sure("a")], ["1"])
    assert b"[0.10000000149011612,1e-3]" in part


@given(st.integers(0, 10**6), st.lists(st.integers(0, 10**4), min_size=1))
def test_shares_add_up_and_none_is_negative(total: int, weights: list[int]) -> None:
    found = shares(total, weights)
    assert len(found) == len(weights)
    assert sum(found) == total
    assert min(found) >= 0
