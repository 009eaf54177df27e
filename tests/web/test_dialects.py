"""Errors in the shape that each API's clients read; the engine's words are those of a real vLLM 0.32.0."""

from __future__ import annotations

import json
from typing import Any

import pytest

from supervisor.errors import BadRequest, EngineFailed, ModelNotFound, NotAvailable, Overloaded, Unauthorized
from supervisor.web.dialects import MARKS, as_error, event, quoted, retold, told
from supervisor.web.framing import chunk
from supervisor.web.passing import Events, Passing

MISSING = {"error": {"message": "1 validation error", "type": "Bad Request", "param": "body.x", "code": 400}}
UNKNOWN = {"type": "error", "error": {"type": "NotFoundError", "message": "The model `nope` does not exist."}}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Unauthorized("no"), "authentication_error"),
        (ModelNotFound("no"), "not_found_error"),
        (Overloaded("no"), "rate_limit_error"),
        (NotAvailable("no"), "overloaded_error"),
        (EngineFailed("no"), "api_error"),
    ],
)
def test_anthropics_clients_are_told_in_their_way(error: Any, kind: str) -> None:
    assert told(error, "anthropic") == {"type": "error", "error": {"type": kind, "message": "no"}}


@pytest.mark.parametrize(
    ("status", "said", "kind", "message"),
    [
        (400, MISSING, "invalid_request_error", "1 validation error"),
        (404, UNKNOWN, "not_found_error", "The model `nope` does not exist."),
        (400, {"detail": "no"}, "invalid_request_error", "no"),
    ],
)
def test_an_engines_refusals_are_retold_to_anthropics_clients(
    status: int, said: object, kind: str, message: str
) -> None:
    body = retold(status, json.dumps(said).encode(), "anthropic")
    assert body is not None
    assert json.loads(body) == {"type": "error", "error": {"type": kind, "message": message}}


def test_an_engines_refusals_stay_as_they_are_for_openais_clients() -> None:
    assert retold(400, json.dumps(MISSING).encode(), "openai") is None


@pytest.mark.parametrize("said", [{"detail": "no"}, {"error": "no"}, {"detail": [{"loc": "x"}]}])
def test_other_shapes_are_retold_to_openais_clients(said: dict[str, object]) -> None:
    body = retold(400, json.dumps(said).encode(), "openai")
    assert body is not None
    error = json.loads(body)["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", 400)
    assert isinstance(error["message"], str)


@pytest.mark.parametrize("said", [b"", b"<html>", b"[]", b"3", b'{"a": 1}', b"[" * 100_000])
def test_what_is_no_known_error_is_told_by_its_status_alone(said: bytes) -> None:
    words = "the engine answered with status 500"
    body = retold(500, said, "anthropic")
    assert body is not None
    assert json.loads(body) == {"type": "error", "error": {"type": "api_error", "message": words}}
    body = retold(500, said, "openai")
    assert body is not None
    error = {"message": words, "type": "api_error", "param": None, "code": 500}
    assert json.loads(body) == {"error": error}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "404"),
        (b"[]", "404"),
        (b"{}", "404"),
        (b"[" * 100_000, "404"),
        (b'{"error": "Unauthorized"}', "Unauthorized"),
        (b'{"detail": "Not Found"}', "Not Found"),
    ],
)
def test_a_refusal_that_comes_after_the_head_is_raised_in_its_words_or_by_its_status(
    body: bytes, words: str
) -> None:
    assert isinstance(as_error(404, body), BadRequest)
    assert words in as_error(404, body).message
    assert isinstance(as_error(500, body), EngineFailed)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"error": {"message": "come back later"}}', ": come back later"),
        (b'{"error": {"message": "%s"}}' % (b"x" * 9000), ": " + "x" * 498),
        (b'{"error": "no"}', ": no"),
        (b'{"detail": "no"}', ": no"),
        (b"<html>", ""),
        (b"[" * 100_000, ""),
    ],
)
def test_a_peers_words_are_quoted_where_they_are_words(body: bytes, words: str) -> None:
    assert quoted(body) == words


def test_what_is_no_error_is_left() -> None:
    assert retold(307, b"", "openai") is None


def test_the_last_event_of_a_broken_stream() -> None:
    broken = EngineFailed("died")
    assert event(broken, "anthropic").startswith(b'event: error\ndata: {"type": "error"')
    name, data = event(broken, "responses").rstrip().split(b"\ndata: ")
    assert (name, json.loads(data)["type"], json.loads(data)["message"]) == (b"event: error", "error", "died")
    assert event(broken, "openai").startswith(b'data: {"error"')


STREAMS = {
    "openai": b'data: {"x": 1}\n\ndata: [DONE]\n\n',
    "anthropic": b'event: ping\ndata: {}\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n',
    "responses": b"event: a\ndata: {}\n\nevent: response.completed\ndata: " + b"x" * 40_000 + b"\n\n",
}


LINES = pytest.mark.parametrize("line", [b"\n", b"\r\n"])
"""What ends a line: other servers may write both."""


@LINES
@pytest.mark.parametrize("size", [1, 7, 30, 50_000])
@pytest.mark.parametrize("dialect", STREAMS)
def test_a_stream_ends_with_its_last_event(dialect: Any, size: int, line: bytes) -> None:
    stream, passing = STREAMS[dialect].replace(b"\n", line), Events(MARKS[dialect])
    for at in range(0, len(stream), size):
        assert not passing.ended() or at + 2 * len(line) >= len(stream)
        passing.see(stream[at : at + size])
    assert passing.ended()


@LINES
@pytest.mark.parametrize("dialect", STREAMS)
def test_a_stream_in_chunks_ends_with_its_last_event(dialect: Any, line: bytes) -> None:
    events, passing = STREAMS[dialect].replace(b"\n", line).split(2 * line)[:-1], Events(MARKS[dialect])
    for told_of in events:
        assert not passing.ended()
        passing.see(chunk(told_of + 2 * line))
    assert passing.ended()
    passing.see(b"0\r\n\r\n")
    assert passing.ended()


@pytest.mark.parametrize("end", ["incomplete", "failed"])
@pytest.mark.parametrize("size", [1, 7, 50_000])
def test_a_response_of_another_server_may_end_before_it_is_complete(end: str, size: int) -> None:
    stream = STREAMS["responses"].replace(b"completed", end.encode())
    passing = Events(MARKS["responses"])
    for at in range(0, len(stream), size):
        passing.see(stream[at : at + size])
    assert passing.ended()


@LINES
@pytest.mark.parametrize("dialect", ["anthropic", "responses"])
def test_a_stream_that_lacks_its_last_bytes_was_broken_off(dialect: Any, line: bytes) -> None:
    passing = Events(MARKS[dialect])
    passing.see(STREAMS[dialect].replace(b"\n", line)[: -len(line)])
    assert not passing.ended()


@pytest.mark.parametrize(
    "answer",
    [
        b'data: {"type":"message_delta","usage":{"input_tokens":9,"output_tokens":4}}\n\n',
        b'{"usage":{"input_tokens":9,"input_tokens_details":{"cached_tokens":7},"output_tokens":4,"x":{"y":1}},"user":0}',
    ],
)
def test_the_tokens_of_the_newer_apis_are_counted(answer: bytes) -> None:
    passing = Passing()
    passing.see(answer)
    assert passing.usage() == (9, 4)
