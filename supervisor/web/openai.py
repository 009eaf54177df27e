"""How an error of llmd reads to OpenAI's clients, and when they come again. Pure."""

from __future__ import annotations

import math
from typing import Any

from supervisor.errors import EngineFailed, LlmdError

LONGEST_RETRY = 59
"""Seconds; openai-node takes a Retry-After of a minute or more for a mistake, and comes back at once."""

_LOG_LINES = 12


def error_body(error: LlmdError) -> dict[str, Any]:
    """`{"error": ...}`; its message is all that most people ever see, so it says everything."""
    return {
        "error": {"message": _message(error), "type": error.type, "param": error.param, "code": error.code}
    }


def _message(error: LlmdError) -> str:
    """What went wrong, when it is worth trying again, and below that what the engine said."""
    said, below, lines = error.message.partition("\n")
    if error.retry_after is not None:
        said += f" (try again in about {max(1, math.ceil(error.retry_after))} s)"
    message = said + below + lines
    if isinstance(error, EngineFailed) and error.log:
        message += "\nThe engine's last lines:\n" + "\n".join(error.log[-_LOG_LINES:])
    return message


def error_headers(error: LlmdError) -> dict[str, str]:
    """When to try again, or that it would not help: clients try three times unless told."""
    if error.retry_after is None:
        return {"x-should-retry": "false"}
    seconds = max(1, math.ceil(error.retry_after))
    if seconds > LONGEST_RETRY:
        return {"Retry-After": str(LONGEST_RETRY)}
    return {"Retry-After": str(seconds), "retry-after-ms": str(max(1, round(error.retry_after * 1000)))}
