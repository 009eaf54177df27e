"""The routes of an engine that clients may reach, each with the tasks that can answer it. All others are closed.

vLLM has more, some of which change the engine for everyone (/sleep, /v1/load_lora_adapter, /collective_rpc).
The router serves this list and nothing else, and /openapi.json is written from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Body = Literal["json", "form", "none", "socket"]
Dialect = Literal["openai", "anthropic", "responses"]

GENERATE = frozenset({"generate"})
EMBED = frozenset({"embed"})
RANK = frozenset({"rerank", "embed"})
CLASSIFY = frozenset({"classify", "rerank"})
POOL = frozenset({"embed", "rerank", "classify", "pool"})
HEAR = frozenset({"transcribe"})
ANY = GENERATE | POOL | HEAR


@dataclass(frozen=True, slots=True)
class Route:
    """`body` says where the model's name is: in JSON, in a form, in the query of a websocket; a route without a
    body is about an answer that an engine keeps. `dialect`: whose errors and whose stream of events. `computes`: the
    model reads the prompt, which has to fit its context."""

    method: Literal["GET", "POST"]
    path: str
    tasks: frozenset[str]
    summary: str
    body: Body = "json"
    dialect: Dialect = "openai"
    computes: bool = True


ROUTES = (
    Route("POST", "/v1/chat/completions", GENERATE, "The next message of a chat"),
    Route("POST", "/v1/completions", GENERATE, "What follows a text"),
    Route("POST", "/v1/responses", GENERATE, "An answer by OpenAI's newer API", dialect="responses"),
    Route("GET", "/v1/responses/{id}", GENERATE, "An answer that the engine keeps", "none", "responses"),
    Route("POST", "/v1/responses/{id}/cancel", GENERATE, "End an answer in the background", "none"),
    Route("POST", "/v1/messages", GENERATE, "The next message, by Anthropic's API", dialect="anthropic"),
    Route("POST", "/v1/messages/count_tokens", GENERATE, "What a chat would cost", dialect="anthropic"),
    Route("POST", "/v1/embeddings", EMBED, "Vectors of texts"),
    Route("POST", "/v1/rerank", RANK, "Documents by their relevance to a query"),
    Route("POST", "/rerank", RANK, "The same as /v1/rerank"),
    Route("POST", "/v1/score", RANK, "How near texts are to each other"),
    Route("POST", "/score", RANK, "The same as /v1/score"),
    Route("POST", "/classify", CLASSIFY, "The class of each text"),
    Route("POST", "/pooling", POOL, "What a pooling model makes of each text"),
    Route("POST", "/tokenize", ANY, "The tokens of a text or a chat", computes=False),
    Route("POST", "/detokenize", ANY, "The text of tokens", computes=False),
    Route("POST", "/v1/audio/transcriptions", HEAR, "Speech as text", "form"),
    Route("POST", "/v1/audio/translations", HEAR, "Speech as English text", "form"),
    Route("GET", "/v1/realtime", HEAR, "Speech as text while it is spoken, over a websocket", "socket"),
)

_DIALECTS = {route.path: route.dialect for route in ROUTES}


def dialect_of(path: str) -> Dialect:
    """Of a path that may be none of ours. Answers that are kept have a path each, and are OpenAI's."""
    return _DIALECTS.get(path, "responses" if path.startswith("/v1/responses/") else "openai")
