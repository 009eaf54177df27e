"""OpenAI's shapes: what a request asks for, how an error reads, what the list of models says. Pure."""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from supervisor.config import Config
from supervisor.core.context import least
from supervisor.core.routing import Ask
from supervisor.errors import BadRequest, EngineFailed, LlmdError
from supervisor.web.conversation import by_session, by_words

LONGEST_RETRY = 59
"""Seconds; openai-node takes a Retry-After of a minute or more for a mistake, and comes back at once."""

_LETTERS_PER_TOKEN = 4
_TOKENS_PER_MEDIUM = 1000
"""Of an image, about: models that see make 256 to some thousands of it, whatever its bytes."""
_LOG_LINES = 12
_MEDIA = frozenset({"image_url", "input_audio", "audio_url", "video_url", "file"})
_NOT_TEXT = frozenset({"type", "role"})


class _Body(msgspec.Struct):
    model: str
    messages: Any = None
    system: Any = None
    instructions: Any = None
    prompt: Any = None
    input: Any = None
    query: Any = None
    documents: Any = None
    text_1: Any = None
    text_2: Any = None
    tools: msgspec.Raw = msgspec.Raw()
    """As written: templates show them as JSON, keys and all."""
    stream: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    truncate_prompt_tokens: Any = None
    truncation: Any = None

    @property
    def most(self) -> int | None:
        """The most tokens that it wants written. What is no number is left to the engine to refuse."""
        given = (self.max_completion_tokens, self.max_tokens, self.max_output_tokens)
        return next((value for value in given if type(value) is int and value > 0), None)


_decoder = msgspec.json.Decoder(_Body)


def read_ask(
    body: bytes | mmap.mmap | memoryview,
    source: str,
    tasks: frozenset[str],
    request: str = "",
    session: str | None = None,
) -> Ask:
    """The ask in a request's JSON; its tokens are a guess from the letters. `session`: what its client calls the
    conversation. Raises BadRequest."""
    try:
        read = _decoder.decode(body)
        text = _text_of(read)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not the JSON expected here: {error}") from None
    except RecursionError:
        raise BadRequest("the body is nested too deeply") from None
    return Ask(
        read.model,
        source,
        text.letters // _LETTERS_PER_TOKEN + text.ids + text.media * _TOKENS_PER_MEDIUM,
        tasks,
        read.most,
        text.letters if text.alone and not text.media else None,
        read.stream is True,
        _least(read),
        _conversation(read, source, session) if "generate" in tasks else None,
        request=request,
    )


def _conversation(body: _Body, source: str, session: str | None) -> str | None:
    if session is not None:
        return by_session(session, source, body.model)
    return by_words(body.messages, body.prompt, source, body.model)


def _text_of(body: _Body) -> _Text:
    text = _Text()
    for part in (
        body.messages,
        body.system,
        body.instructions,
        body.prompt,
        body.input,
        body.documents,
        body.text_1,
        body.text_2,
    ):
        if part is not None:
            text.add(part)
    if body.query is not None:  # a reranker reads it once more with each document
        query = _Text()
        query.add(body.query)
        text.letters += query.letters * max(1, len(body.documents) if isinstance(body.documents, list) else 1)
    text.letters += len(memoryview(body.tools))
    return text


def _least(body: _Body) -> int:
    """Tokens that the longest of its prompts has at the least; none where vLLM is to cut it to fit."""
    if body.truncate_prompt_tokens is not None or body.truncation not in (None, "disabled"):
        return 0
    batch = _batch(body)
    parts = (body.messages, body.system, body.instructions, body.input, body.prompt)
    prompts = [_certain(part) for part in parts if part is not None]
    return sum(map(_least_of, prompts)) if batch is None else max(map(_least_of, batch), default=0)


def _certain(part: Any) -> object:
    """What any chat template keeps of it: many drop what was thought, or fields and tools that they do not know."""
    if not isinstance(part, list) or not part or not isinstance(part[0], dict):
        return part
    return [m.get("content") for m in part if isinstance(m, dict) and m.get("role") != "assistant"]


def _batch(body: _Body) -> list[Any] | None:
    """Its prompts, where it has several that the engine reads one by one."""
    if isinstance(body.documents, list):
        return body.documents
    for part in (body.input, body.prompt):
        if isinstance(part, list) and part and isinstance(part[0], str | list):
            return part
    return None


def _least_of(prompt: object) -> int:
    text = _Text()
    text.add(prompt)
    return least(text.letters, text.ids)


@dataclass(slots=True)
class _Text:
    """Letters, token ids and media of a request's parts; `alone` where no value is neither."""

    letters: int = 0
    ids: int = 0
    media: int = 0
    alone: bool = True

    def add(self, value: object) -> None:
        if isinstance(value, str):
            self.letters += len(value)
        elif isinstance(value, list):
            for part in value:
                self.add(part)
        elif isinstance(value, dict):
            for key, part in value.items():
                if _is_medium(key, part):
                    self.media += 1
                elif key not in _NOT_TEXT:
                    self.add(part)
        elif value is not None:  # prompts may be token ids
            self.ids += 1
            self.alone = False


def _is_medium(key: str, part: object) -> bool:
    """OpenAI's parts have it under its kind, Anthropic's under `source`."""
    return key in _MEDIA or (key == "source" and isinstance(part, dict))


def error_body(error: LlmdError) -> dict[str, Any]:
    """`{"error": ...}`; its message is all that most people ever see, so it says everything."""
    return {
        "error": {"message": _message(error), "type": error.type, "param": error.param, "code": error.code}
    }


def _message(error: LlmdError) -> str:
    message = error.message
    if error.retry_after is not None and error.retry_after > LONGEST_RETRY:
        message += f" (try again in about {math.ceil(error.retry_after)} s)"
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
    names: dict[str, list[str]] = {}
    for profile in config.profiles.values():
        names.setdefault(profile.model, []).append(profile.name)
        for adapter in profile.lora:
            names.setdefault(adapter, []).append(profile.name)
    for name in config.profiles:
        names[name] = [name]  # where a model is called the same, asking for it gives this profile too
    return {name: _entry(name, [state.get(p, {}) for p in served], created) for name, served in names.items()}


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
