"""How the APIs that llmd speaks tell of errors and of a stream's end. Pure.

OpenAI's clients read `{"error": {"message", "type", "param", "code"}}`, Anthropic's
`{"type": "error", "error": {"type", "message"}}`. vLLM 0.32.0 mixes them: on /v1/messages a missing field is
refused in OpenAI's shape and an unknown model in Anthropic's, and some errors come as `{"detail": ...}`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from supervisor.errors import BadRequest, EngineFailed, LlmdError
from supervisor.web.openai import error_body
from supervisor.web.routes import Dialect

_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}

_LONGEST_QUOTE = 500
"""Letters of another server's words in an error of ours."""


@dataclass(frozen=True, slots=True)
class Marks:
    """What begins the last event of a stream, and what ends it, perhaps with its chunk."""

    end: re.Pattern[bytes]
    close: tuple[bytes, ...] = (b"\n\n", b"\n\r\n")


MARKS: Mapping[Dialect, Marks] = {
    "openai": Marks(re.compile(rb"\ndata: \[DONE\]"), (b"",)),
    "anthropic": Marks(re.compile(rb"\nevent: message_stop\r?\n")),
    "responses": Marks(re.compile(rb"\nevent: response\.(?:completed|incomplete|failed)\r?\n")),
}
"""As vLLM 0.32.0 writes them; only the first kind ends with [DONE]. It completes every response, OpenAI's own API has
the other two ends."""


def told(error: LlmdError, dialect: Dialect) -> dict[str, Any]:
    """The body of an error of llmd's own."""
    body = error_body(error)
    return _anthropic(error.status, body["error"]["message"]) if dialect == "anthropic" else body


def event(error: LlmdError, dialect: Dialect) -> bytes:
    """The same as the last event of a stream. Anthropic's clients see only an `event: error`; OpenAI's pass on what an
    event of /v1/responses says, and raise what stands under `error`."""
    body = told(error, dialect)
    if dialect == "responses":
        body = {**body["error"], **body, "type": "error"}
    name = b"" if dialect == "openai" else b"event: error\n"
    return name + b"data: " + json.dumps(body).encode() + b"\n\n"


def retold(status: int, body: bytes, dialect: Dialect) -> bytes | None:
    """An engine's refusal in the shape of `dialect`; None where it has that shape, or is no error."""
    if status < 400:
        return None
    said = _read(body)
    error, words = said.get("error"), _words(said) or f"the engine answered with status {status}"
    if dialect == "anthropic":
        return json.dumps(_anthropic(status, words)).encode()
    if isinstance(error, dict) and "message" in error and "type" not in said:
        return None
    return json.dumps({"error": _openai(status, words)}).encode()


def as_error(status: int, body: bytes) -> LlmdError:
    """The same for a client to whom no status can be sent any more: its words under the nearest kind."""
    said = _read(body)
    error, words = said.get("error"), _words(said) or f"the engine answered with status {status}"
    if status >= 500:
        return EngineFailed(words, retry_after=5)
    param = error.get("param") if isinstance(error, dict) else None
    return BadRequest(words, param=param if isinstance(param, str) else None)


def quoted(body: bytes) -> str:
    """What a refusal says, in whatever shape, behind a colon; empty where it says nothing."""
    words = _words(_read(body))
    return f": {words}"[:_LONGEST_QUOTE] if words else ""


def _read(body: bytes) -> dict[str, Any]:
    """Empty for what is no object: vLLM's bugs are plain text, and proxies before a peer write HTML."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _words(said: Mapping[str, Any]) -> str | None:
    error = said.get("error", said.get("detail"))
    words = error.get("message") if isinstance(error, dict) else error
    return words if isinstance(words, str) or error is None else json.dumps(error)


def _anthropic(status: int, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": _kind(status), "message": message}}


def _openai(status: int, message: str) -> dict[str, Any]:
    return {"message": message, "type": _kind(status), "param": None, "code": status}


def _kind(status: int) -> str:
    return _KINDS.get(status, "api_error" if status >= 500 else "invalid_request_error")
