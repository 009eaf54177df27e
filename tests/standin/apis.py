"""The other two APIs for chats as vLLM 0.32.0 speaks them: OpenAI's responses and Anthropic's messages.

Each class is used as `answers.Completion` is: whole, or in chunks, each of them an event with a name.
"""

from __future__ import annotations

import json
import time
from typing import Any

from answers import Fault, fresh_id, token

Json = dict[str, Any]


def missing_response(name: str) -> Fault:
    return Fault(404, f"Response with id '{name}' not found.", "invalid_request_error", "response_id")


def synchronous() -> Fault:
    return Fault(400, "Cannot cancel a synchronous response.", "invalid_request_error", "response_id")


class AnthropicFault(Exception):
    """What vLLM refuses in Anthropic's shape, but with names of its own for the kinds."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(str(fault))
        error = fault.body["error"]
        self.status = fault.status
        self.body = {"type": "error", "error": {"type": error["type"], "message": error["message"]}}


class _Events:
    last = b""

    def encode(self, chunk: Json) -> bytes:
        return f"event: {chunk['type']}\ndata: {json.dumps(chunk)}\n\n".encode()


class Message(_Events):
    """An answer of /v1/messages. Its id is a chat's."""

    def __init__(self, model: str, prompt: int, request_id: str | None) -> None:
        self.prompt, self.made, self.garbage = prompt, 0, False
        self.head: Json = {
            "id": f"chatcmpl-{request_id or fresh_id()}",
            "type": "message",
            "role": "assistant",
            "model": model,
        }

    def whole(self, length: int, finish: str) -> Json:
        text = {"type": "text", "text": "".join(map(token, range(length)))}
        return self.head | {"content": [text], "stop_reason": reason(finish), "usage": self.usage(length)}

    def opening(self) -> list[Json]:
        start = self.head | {
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self.usage(0),
        }
        block = {"type": "text", "text": ""}
        return [
            {"type": "message_start", "message": start},
            {"type": "content_block_start", "content_block": block, "index": 0},
        ]

    def next_token(self, finish: str | None = None) -> Json:
        self.made += 1
        delta = {"type": "text_delta", "text": token(self.made - 1)}
        return {"type": "content_block_delta", "delta": delta, "index": 0}

    def closing(self, finish: str, usage: bool) -> list[Json]:
        delta = {"stop_reason": reason(finish), "stop_sequence": None}
        return [
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": delta, "usage": self.usage(self.made)},
            {"type": "message_stop"},
        ]

    def usage(self, made: int) -> Json:
        return {"input_tokens": self.prompt, "output_tokens": made}


def reason(finish: str) -> str:
    return {"length": "max_tokens"}.get(finish, "end_turn")


class Response(_Events):
    """An answer of /v1/responses. vLLM takes no request's id for its own."""

    def __init__(self, model: str, prompt: int) -> None:
        self.prompt, self.made, self.garbage = prompt, 0, False
        self.name = f"resp_{fresh_id()}"
        self.head: Json = {
            "id": self.name,
            "created_at": int(time.time()),
            "model": model,
            "object": "response",
        }
        self._number = 0

    def whole(self, length: int, finish: str) -> Json:
        text = {"text": "".join(map(token, range(length))), "type": "output_text", "annotations": []}
        item = {
            "id": "msg_1",
            "content": [text],
            "role": "assistant",
            "status": "completed",
            "type": "message",
        }
        status = "incomplete" if finish == "length" else "completed"
        return self.head | {"output": [item], "status": status, "usage": self.usage(length)}

    def queued(self) -> Json:
        return self.head | {"background": True, "output": [], "status": "queued", "usage": None}

    def opening(self) -> list[Json]:
        begun = self.head | {"output": [], "status": "in_progress", "usage": None}
        return [
            self.numbered("created", {"response": begun}),
            self.numbered("in_progress", {"response": begun}),
        ]

    def next_token(self, finish: str | None = None) -> Json:
        self.made += 1
        return self.numbered("output_text.delta", {"delta": token(self.made - 1), "item_id": "msg_1"})

    def closing(self, finish: str, usage: bool) -> list[Json]:
        return [self.numbered("completed", {"response": self.whole(self.made, finish)})]

    def numbered(self, kind: str, rest: Json) -> Json:
        self._number += 1
        return {**rest, "sequence_number": self._number - 1, "type": f"response.{kind}"}

    def usage(self, made: int) -> Json:
        return {"input_tokens": self.prompt, "output_tokens": made, "total_tokens": self.prompt + made}
