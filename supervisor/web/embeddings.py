"""Bodies of /v1/embeddings: several requests as one, and its answer as an answer to each. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

EMBEDDINGS = "/v1/embeddings"
_CODINGS = (None, b'"float"', b'"base64"')


@dataclass(frozen=True, slots=True)
class Wish:
    """Inputs as they were written, what they are, and all else that was asked, in one order."""

    inputs: tuple[bytes, ...]
    kind: str
    rest: bytes

    @property
    def weight(self) -> int:
        """Its share of the tokens, roughly: letters, or token ids with their commas."""
        return sum(map(len, self.inputs))


class _Embedding(msgspec.Struct):
    embedding: msgspec.Raw
    index: int
    object: str = "embedding"


class _Usage(msgspec.Struct):
    prompt_tokens: int


class _Answer(msgspec.Struct):
    data: list[_Embedding]
    usage: _Usage
    model: str
    created: int = 0


class NoAnswer(Exception):
    """An engine's answer that cannot be shared out."""


_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_list = msgspec.json.Decoder(list[msgspec.Raw])
_answer = msgspec.json.Decoder(_Answer)


def read_wish(data: bytes) -> Wish | None:
    """None for what cannot be merged with others; whether it is right at all is the engine's to say."""
    try:
        fields = {name: bytes(raw) for name, raw in _fields.decode(data).items()}
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    found = _inputs(fields.pop("input", b""))
    if found is None or "messages" in fields or fields.get("encoding_format") not in _CODINGS:
        return None
    return Wish(*found, msgspec.json.encode({name: msgspec.Raw(fields[name]) for name in sorted(fields)}))


def _inputs(raw: bytes) -> tuple[tuple[bytes, ...], str] | None:
    """A text, texts, the token ids of one text, or those of several."""
    if raw[:1] == b'"':
        return (raw,), "text"
    if raw[:1] != b"[":
        return None
    inside = tuple(bytes(item) for item in _list.decode(raw))
    if inside and all(item.isdigit() for item in inside):
        return (raw,), "ids"
    for kind, opening in (("text", b'"'), ("ids", b"[")):
        if inside and all(item[:1] == opening for item in inside):
            return inside, kind
    return None


def merged(wishes: Sequence[Wish]) -> bytes:
    """One body for all. They differ in their inputs alone."""
    inputs = b",".join(item for wish in wishes for item in wish.inputs)
    rest = wishes[0].rest[1:-1]
    return b'{"input":[' + inputs + b"]" + (b"," + rest if rest else b"") + b"}"


def split(body: bytes, wishes: Sequence[Wish], ids: Sequence[str]) -> list[tuple[bytes, int]]:
    """To each wish its own answer and its prompt tokens, in order. Raises NoAnswer.

    vLLM counts the tokens of a call, not of a text: they are shared out by length, and add up.
    """
    try:
        answer = _answer.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise NoAnswer(str(error)) from None
    found = sorted(answer.data, key=lambda entry: entry.index)
    if [entry.index for entry in found] != list(range(sum(len(wish.inputs) for wish in wishes))):
        raise NoAnswer("not one embedding for each input")
    counts, parts, at = shares(answer.usage.prompt_tokens, [wish.weight for wish in wishes]), [], 0
    for wish, name, count in zip(wishes, ids, counts, strict=True):
        own = found[at : at + len(wish.inputs)]
        at += len(wish.inputs)
        parts.append((_part(own, answer, name, count), count))
    return parts


def _part(own: Sequence[_Embedding], answer: _Answer, name: str, count: int) -> bytes:
    data = [_Embedding(entry.embedding, index, entry.object) for index, entry in enumerate(own)]
    usage = {"prompt_tokens": count, "total_tokens": count, "completion_tokens": 0}
    head: dict[str, Any] = {"id": f"embd-{name}", "object": "list", "created": answer.created}
    return msgspec.json.encode({**head, "model": answer.model, "data": data, "usage": usage})


def shares(total: int, weights: Sequence[int]) -> list[int]:
    """Whole numbers in proportion to `weights` that add up to `total`."""
    whole, given, passed = sum(weights) or 1, 0, 0
    parts = []
    for weight in weights[:-1]:
        passed += weight
        parts.append(total * passed // whole - given)
        given += parts[-1]
    return [*parts, total - given]
