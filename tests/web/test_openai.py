"""How errors read to OpenAI's clients."""

from __future__ import annotations

import pytest

from supervisor.errors import BadRequest, EngineFailed, LlmdError, NotAvailable, Overloaded
from supervisor.web.openai import error_body, error_headers


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


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (NotAvailable("night", retry_after=3600), "night (try again in about 3600 s)"),
        (Overloaded("full", retry_after=0.2), "full (try again in about 1 s)"),
        (NotAvailable("died\nof this", retry_after=7.2), "died (try again in about 8 s)\nof this"),
        (NotAvailable("too large"), "too large"),
    ],
)
def test_the_wait_is_told_in_words_before_what_the_engine_said(error: LlmdError, message: str) -> None:
    """They are all that most people see: no client shows a header."""
    assert error_body(error)["error"]["message"] == message
