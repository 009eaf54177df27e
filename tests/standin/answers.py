"""The bodies that vLLM 0.32.0 answers with, as pure functions; the contract test compares them with the real ones."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import struct
import time
from typing import Any

DIMENSIONS = 8
CHARACTERS_A_TOKEN = 10  # at most
NOT_FOUND = {"detail": "Not Found"}
UNAUTHORIZED = {"error": "Unauthorized"}
DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
WORDS = ("words", "that", "mean", "nothing", "and", "never", "tire")

Json = dict[str, Any]
_numbers = itertools.count(1)


class Fault(Exception):
    """A request that vLLM refuses: `status` and `body` are its answer."""

    def __init__(self, status: int, message: str, kind: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": status}}


def dead() -> Fault:
    return Fault(500, DEAD, "InternalServerError")


def unknown_model(name: str, names: list[str], *, pooling: bool) -> Fault:
    aliases = f" Valid aliases: {', '.join(names)}." if len(names) > 1 and not pooling else ""
    message = f"The model `{name}` does not exist.{aliases}"
    return Fault(404, message, "NotFoundError", None if pooling else "model")


def missing(field: str) -> Fault:
    detail = {
        "type": "missing",
        "loc": f"body.{field}",
        "msg": "Field required",
        "input": "<dict of 1 items>",
    }
    return Fault(400, f"1 validation error:\n  {detail}", "Bad Request", f"body.{field}")


def not_json() -> Fault:
    detail = {
        "type": "json_invalid",
        "loc": "body.1",
        "msg": "JSON decode error",
        "input": "<dict of 0 items>",
    }
    return Fault(400, f"1 validation error:\n  {detail}", "Bad Request", "body.1")


def too_long(window: int, characters: int) -> Fault:
    """vLLM counts no tokens in a text that has more characters than its longest tokens could cover."""
    limit = f"This model's maximum context length is {window} tokens. However, your prompt contains "
    cure = "Please reduce the length of the input prompt."
    most = window * CHARACTERS_A_TOKEN
    if characters > most:
        excess = f"{characters} characters (more than {most} characters, which is the upper bound for {window} input tokens). "
        return Fault(
            400,
            f"{limit}{excess}{cure} (parameter=input_text, value={characters})",
            "BadRequestError",
            "input_text",
        )
    excess = f"at least {window + 1} input tokens, which exceeds this limit even without any output tokens. "
    return Fault(
        400,
        f"{limit}{excess}{cure} (parameter=input_tokens, value={window + 1})",
        "BadRequestError",
        "input_tokens",
    )


def prompt_of(body: Json) -> str:
    """All text of a request, whatever its route; a field that must be there and is not is a Fault."""
    for field in ("messages", "prompt", "input", "tokens"):
        if field in body:
            return text_of(body[field])
    if "query" in body or "text_1" in body or "queries" in body:
        pair = [
            body.get(field)
            for field in ("query", "queries", "text_1", "documents", "text_2")
            if field in body
        ]
        if len(pair) < 2:
            raise missing("documents")
        return text_of(pair)
    raise missing("messages")


def text_of(value: object) -> str:
    if isinstance(value, dict):
        return text_of(value.get("content") or value.get("text") or "")
    if isinstance(value, list):
        return " ".join(map(text_of, value))
    return str(value)


def count(text: str) -> int:
    """Tokens of a text: one for each word, and some for the frame around it."""
    return len(text.split()) + 3


def token(number: int) -> str:
    return ("" if number == 0 else " ") + WORDS[number % len(WORDS)]


def usage(prompt: int, completion: int) -> Json:
    return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}


def models(names: list[str], root: str, window: int, adapters: dict[str, str]) -> Json:
    def entry(name: str, root: str, parent: str | None, window: int | None) -> Json:
        stamp = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "vllm"}
        return stamp | {"root": root, "parent": parent, "max_model_len": window, "permission": []}

    own = [entry(name, root, None, window) for name in names]
    return {
        "object": "list",
        "data": own + [entry(name, path, names[0], None) for name, path in adapters.items()],
    }


class Completion:
    """One answer of /v1/chat/completions (`chat`) or /v1/completions, whole or in chunks."""

    last = b"data: [DONE]\n\n"  # after an error too, as in vLLM

    def __init__(self, model: str, prompt: int, *, chat: bool, request_id: str | None) -> None:
        self.chat, self.prompt, self.made = chat, prompt, 0
        self.garbage = False
        prefix = "chatcmpl" if chat else "cmpl"
        self.head: Json = {
            "id": f"{prefix}-{request_id or fresh_id()}",
            "created": int(time.time()),
            "model": model,
        }

    def opening(self) -> list[Json]:
        """What comes before the first token: the role, in a chat."""
        return (
            [self._chunk({"delta": {"role": "assistant", "content": ""}, "finish_reason": None})]
            if self.chat
            else []
        )

    def next_token(self, finish: str | None = None) -> Json:
        """The chunk of the last token tells why the answer ends."""
        text = "!" if self.garbage else token(self.made)
        self.made += 1
        answer: Json = {"delta": {"content": text}} if self.chat else {"text": text}
        return self._chunk(answer | {"finish_reason": finish})

    def encode(self, chunk: Json) -> bytes:
        return event(chunk)

    def closing(self, finish: str, usage: bool) -> list[Json]:
        """What comes after the last token."""
        ended = [] if finish != "abort" else [self.cut()]
        return [*ended, *([self.spent()] if usage else [])]

    def cut(self) -> Json:
        """The last chunk of an answer that SIGTERM ends early."""
        return self._chunk(({"delta": {}} if self.chat else {"text": ""}) | {"finish_reason": "abort"})

    def spent(self) -> Json:
        return self._frame(".chunk") | {"choices": [], "usage": usage(self.prompt, self.made)}

    def whole(self, length: int, finish: str) -> Json:
        self.made = length
        text = "!" * length if self.garbage else "".join(map(token, range(length)))
        answer: Json = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        choice = {"index": 0, **answer, "logprobs": None, "finish_reason": finish, "stop_reason": None}
        return self._frame("") | {"choices": [choice], "usage": usage(self.prompt, length)}

    def _frame(self, suffix: str) -> Json:
        return self.head | {"object": f"chat.completion{suffix}" if self.chat else "text_completion"}

    def _chunk(self, choice: Json) -> Json:
        return self._frame(".chunk") | {"choices": [{"index": 0, "logprobs": None} | choice]}


def event(data: Json) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def fresh_id() -> str:
    return f"{next(_numbers):016x}"


def listed(value: object) -> list[str]:
    return list(map(text_of, value)) if isinstance(value, list) else [text_of(value)]


def inputs(value: object) -> list[str]:
    """A text, texts, token ids or lists of them."""
    if isinstance(value, list) and value and isinstance(value[0], int):
        return [str(value)]
    return (
        [item if isinstance(item, str) else str(item) for item in value]
        if isinstance(value, list)
        else [str(value)]
    )


def embeddings(body: Json, model: str) -> Json:
    def vector(text: str) -> list[float] | str:
        numbers = [byte / 255 for byte in hashlib.sha256(text.encode()).digest()[:DIMENSIONS]]
        if body.get("encoding_format") == "base64":
            return base64.b64encode(struct.pack(f"<{DIMENSIONS}f", *numbers)).decode()
        return numbers

    texts = inputs(body["input"])
    data = [{"index": n, "object": "embedding", "embedding": vector(text)} for n, text in enumerate(texts)]
    head = {"id": f"embd-{fresh_id()}", "object": "list", "created": int(time.time()), "model": model}
    return head | {"data": data, "usage": usage(sum(map(count, texts)), 0)}


def classes(body: Json, model: str) -> Json:
    texts = listed(body["input"])
    data = [
        {"index": n, "label": "LABEL_0", "probs": [alike(t, t)], "num_classes": 1}
        for n, t in enumerate(texts)
    ]
    head = {"id": f"classify-{fresh_id()}", "object": "list", "created": int(time.time()), "model": model}
    return head | {"data": data, "usage": usage(sum(map(count, texts)), 0)}


def pooling(body: Json, model: str) -> Json:
    found = embeddings(body, model)
    data = [{"index": e["index"], "object": "pooling", "data": e["embedding"]} for e in found["data"]]
    return found | {"id": f"pooling-{fresh_id()}", "data": data}


def alike(one: str, other: str) -> float:
    """More words in common, a higher score, within 0 and 1."""
    shared = len(set(one.lower().split()) & set(other.lower().split()))
    return (1 + shared) / (2 + len(one.split()))


def rerank(body: Json, model: str) -> Json:
    query, documents = text_of(body["query"]), listed(body["documents"])
    results = [
        {"index": n, "document": {"text": text, "multi_modal": None}, "relevance_score": alike(query, text)}
        for n, text in enumerate(documents)
    ]
    results.sort(key=lambda result: -result["relevance_score"])
    prompt = sum(count(query + " " + text) for text in documents)
    spent = {"prompt_tokens": prompt, "total_tokens": prompt}
    return {
        "id": f"score-{fresh_id()}",
        "model": model,
        "usage": spent,
        "results": results[: body.get("top_n") or None],
    }


def score(body: Json, model: str) -> Json:
    one = listed(body.get("text_1") or body.get("queries"))
    other = listed(body.get("text_2") or body.get("documents"))
    pairs = list(zip(itertools.cycle(one), other, strict=False))
    data = [{"index": n, "object": "score", "score": alike(*pair)} for n, pair in enumerate(pairs)]
    head = {"id": f"score-{fresh_id()}", "object": "list", "created": int(time.time()), "model": model}
    return head | {"data": data, "usage": usage(sum(count(" ".join(pair)) for pair in pairs), 0)}


def metrics(model: str, running: int, waiting: int, prompt: int, generated: int) -> str:
    label = f'{{engine="0",model_name="{model}"}}'
    values = {
        "num_requests_running": running,
        "num_requests_waiting": waiting,
        "kv_cache_usage_perc": running / 256,
        "prompt_tokens_total": prompt,
        "generation_tokens_total": generated,
        "prefix_cache_hits_total": 0,
        "num_preemptions_total": 0,
    }
    lines = []
    for name, value in values.items():
        kind = "counter" if name.endswith("_total") else "gauge"
        lines += [f"# HELP vllm:{name} As vLLM has it.", f"# TYPE vllm:{name} {kind}"]
        lines.append(f"vllm:{name}{label} {float(value)}")
    return "\n".join(lines) + "\n"
