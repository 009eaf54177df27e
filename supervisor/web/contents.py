"""What a request's JSON asks for and demands, in one reading. Pure.

Strict: what cannot be read is refused, wherever it stands. An engine's JSON knows more than ours, such as numbers too
large for any computer: behind one of them nobody would have looked for what the engine fetches.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Mapping
from typing import Any

import msgspec
from pydantic_core import from_json

from supervisor.core.context import least
from supervisor.core.routing import Ask
from supervisor.errors import BadRequest
from supervisor.web.conversation import by_session, by_words
from supervisor.web.demands import Demands, are_numbers

_LETTERS_PER_TOKEN = 4
_TOKENS_PER_MEDIUM = 1000
"""Of an image, about: models that see make 256 to some thousands of it, whatever its bytes."""

_PROMPTS = ("messages", "system", "instructions", "input", "prompt")
_TEXTS = frozenset({*_PROMPTS, "documents", "text_1", "text_2"})
_OTHERWISE = frozenset({"query", "tools"})
"""Texts that are not counted as they are."""

_SEVERAL = frozenset({"documents", "input", "prompt", "truncate_prompt_tokens", "truncation"})
"""What may hold several prompts, or have them cut: hardly any chat."""

_MEDIA = frozenset({"image_url", "input_audio", "audio_url", "video_url", "file"})
_NOT_TEXT = frozenset({"type", "role"})
_SPECIAL = _MEDIA | _NOT_TEXT | {"source"}

Buffer = bytes | mmap.mmap
Fields = Mapping[str, Any]


class _Named(msgspec.Struct):
    model: str


class _Tools(msgspec.Struct):
    tools: msgspec.Raw


_LONG = 64 << 10
"""Bytes from which a body is more likely a few long texts, such as images, than many short ones."""

_decode = msgspec.json.Decoder().decode
_tools = msgspec.json.Decoder(_Tools)


def read(
    body: Buffer,
    source: str,
    tasks: frozenset[str],
    request: str = "",
    session: str | None = None,
    person: str | None = None,
) -> tuple[Ask, Demands]:
    """The ask's tokens are a guess from the letters. `session`: what its client calls the conversation. Raises
    BadRequest."""
    try:
        fields = _decode(body) if len(body) < _LONG else _decode_long(body)
        if type(fields) is not dict or type(fields.get("model")) is not str:
            msgspec.convert(fields, _Named)  # raises, in words
        text, model = _text_of(fields, body), fields["model"]
        beyond = text.ids + text.media * _TOKENS_PER_MEDIUM
        ask = Ask(
            model,
            source,
            text.letters // _LETTERS_PER_TOKEN + beyond,
            tasks,
            _most(fields),
            None if beyond else text.letters,
            fields.get("stream") is True,
            _least(fields),
            _conversation(fields, source, session) if "generate" in tasks else None,
            request=request,
            person=person or "",
        )
        return ask, Demands.of(fields)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not the JSON expected here: {error}") from None
    except RecursionError:
        raise BadRequest("the body is nested too deeply") from None


def _decode_long(body: Buffer) -> Any:
    """By pydantic's reader: three times as fast over long texts, half as fast where letters are not ASCII's. What it
    does not take is the other's to take or refuse."""
    if type(body) is bytes and body.isascii():
        with contextlib.suppress(ValueError):
            return from_json(body, allow_inf_nan=False, cache_strings="none")
    return _decode(body)


def _most(fields: Fields) -> int | None:
    """The most tokens that it wants written. What is no number is left to the engine to refuse."""
    for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
        value = fields.get(name)
        if type(value) is int and value > 0:
            return value
    return None


def _conversation(fields: Fields, source: str, session: str | None) -> str | None:
    if session is not None:
        return by_session(session, source, fields["model"])
    messages, lead = fields.get("messages"), fields.get("system")
    if messages is None and "input" in fields:
        said, lead = fields["input"], fields.get("instructions")
        messages = [{"role": "user", "content": said}] if type(said) is str else said
    return by_words(messages, fields.get("prompt"), source, fields["model"], lead)


def _text_of(fields: Fields, body: Buffer) -> _Text:
    text = _Text()
    for name, value in fields.items():
        if name in _TEXTS:
            text.add(value)
    if not _OTHERWISE.isdisjoint(fields):
        text.letters += _of_query(fields) + _of_tools(fields, body)
    return text


def _of_query(fields: Fields) -> int:
    """Letters; a reranker reads it once more with each document."""
    query, documents = _Text(), fields.get("documents")
    query.add(fields.get("query"))
    return query.letters * max(1, len(documents) if isinstance(documents, list) else 1)


def _of_tools(fields: Fields, body: Buffer) -> int:
    """Letters as written: templates show them as JSON, keys and all."""
    return len(memoryview(_tools.decode(body).tools)) if "tools" in fields else 0


def _least(fields: Fields) -> int:
    """Tokens that the longest of its prompts has at the least; none where vLLM is to cut it to fit."""
    if not _SEVERAL.isdisjoint(fields):
        if fields.get("truncate_prompt_tokens") is not None:
            return 0
        if fields.get("truncation") not in (None, "disabled"):
            return 0
        if (batch := _batch(fields)) is not None:
            return max(map(_least_of, batch), default=0)
    tokens = 0
    for name in _PROMPTS:
        if name in fields:
            tokens += _certain(fields[name])
    return tokens


def _batch(fields: Fields) -> list[Any] | None:
    """Its prompts, where it has several that the engine reads one by one."""
    documents = fields.get("documents")
    if isinstance(documents, list):
        return documents
    for name in ("input", "prompt"):
        part = fields.get(name)
        if isinstance(part, list) and part and isinstance(part[0], str | list):
            return part
    return None


def _certain(prompt: Any) -> int:
    """Tokens of what any chat template keeps: many drop what was thought, or fields and tools that they do not know."""
    if type(prompt) is not list or not prompt or type(prompt[0]) is not dict:
        return _least_of(prompt)
    text = _Text()
    for message in prompt:
        if type(message) is dict and message.get("role") != "assistant":
            text.add(message.get("content"))
    return least(text.letters, text.ids)


def _least_of(prompt: object) -> int:
    text = _Text()
    text.add(prompt)
    return least(text.letters, text.ids)


class _Text(msgspec.Struct):
    """Letters, token ids and media of a request's parts."""

    letters: int = 0
    ids: int = 0
    media: int = 0

    def add(self, value: object) -> None:
        if type(value) is str:
            self.letters += len(value)
        elif type(value) is list:
            if are_numbers(value):
                self.ids += len(value)
                return
            for part in value:
                self.add(part)
        elif type(value) is dict:
            for key, part in value.items():
                if key not in _SPECIAL:
                    self.add(part)
                elif key not in _NOT_TEXT:
                    self._add_medium(key, part)
        elif value is not None:  # prompts may be token ids
            self.ids += 1

    def _add_medium(self, key: str, part: object) -> None:
        """OpenAI's parts have it under its kind, Anthropic's under `source`."""
        if key in _MEDIA or type(part) is dict:
            self.media += 1
        else:
            self.add(part)
