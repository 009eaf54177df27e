"""The routes of an engine that clients may reach, each with the tasks that can answer it. All others are closed.

vLLM has more, some of which change the engine for everyone (/sleep, /load_lora_adapter, /collective_rpc).
"""

from __future__ import annotations

GENERATE = frozenset({"generate"})
EMBED = frozenset({"embed"})
RANK = frozenset({"rerank", "embed"})

ROUTES: dict[str, frozenset[str]] = {
    "/v1/chat/completions": GENERATE,
    "/v1/completions": GENERATE,
    "/v1/embeddings": EMBED,
    "/v1/rerank": RANK,
    "/rerank": RANK,
    "/v1/score": RANK,
    "/score": RANK,
}
