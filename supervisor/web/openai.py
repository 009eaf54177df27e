"""OpenAI's shapes: how an error reads, what the list of models says. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from supervisor.config import Config
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


def model_entries(
    config: Config, engines: Sequence[Mapping[str, Any]], created: int
) -> dict[str, dict[str, Any]]:
    """Every name that can be asked for, models first, cold ones too; `engines` are the status's."""
    state = {engine["profile"]: engine for engine in engines}
    return {
        name: _entry(name, [state.get(profile.name, {}) for profile in meant], created)
        for name, meant in config.named.items()
    }


def peer_entries(peers: Sequence[Mapping[str, Any]], created: int) -> dict[str, dict[str, Any]]:
    """The models of peers, as the status tells of them; of two peers that have one, the first that is up."""
    found: dict[str, dict[str, Any]] = {}
    for peer in sorted(peers, key=lambda peer: not peer["up"]):
        for name, model in peer["models"].items():
            state = "unreachable" if not peer["up"] else "ready" if model["warm"] else "cold"
            found.setdefault(name, _peer_entry(name, peer["peer"], model["max_model_len"], state, created))
    return found


def _peer_entry(name: str, peer: str, window: int | None, state: str, created: int) -> dict[str, Any]:
    known = {"max_model_len": window, "status": {"value": state}}
    return {"id": name, "object": "model", "created": created, "owned_by": peer, "name": name, **known}


def _entry(name: str, engines: list[Mapping[str, Any]], created: int) -> dict[str, Any]:
    states = [engine.get("state", "cold") for engine in engines]
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "llmd",
        "name": name,
        "max_model_len": max((engine.get("max_model_len") or 0 for engine in engines), default=0) or None,
        "status": {"value": "ready" if "ready" in states else states[0]},
    }
