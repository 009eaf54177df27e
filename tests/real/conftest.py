"""The engines of the contract: three stand-ins, or three real ones on the CPU (or whatever the real vLLM finds).

LLMD_REAL_VLLM is the path of the `vllm` program, LLMD_REAL_MODELS the directory of the tiny models; what
packaging/engine_env.sh and packaging/tiny_models.py make.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
import pytest_asyncio

from tests.standin.launch import STANDIN, Engine

WINDOW = 512
CHAT_WINDOW = 2048
"""Some twenty seconds of tokens: an answer that fills it does not end by itself while a test looks at it."""

FLAGS = {
    "chat": ["--served-model-name", "llama", "llama_0", "--max-model-len", str(CHAT_WINDOW)],
    "embed": ["--served-model-name", "bge", "--runner", "pooling", "--convert", "embed"],
    "rerank": ["--served-model-name", "reranker", "--runner", "pooling"],
}
# Not tiny-llama: where processors are scarce, its API server has no time for anybody while it makes tokens.
MODELS = {"chat": "deep-llama", "embed": "tiny-embed", "rerank": "tiny-rerank"}
# On the CPU, giving the bytes of the KV cache makes vLLM skip its look at the free memory.
SMALL = ["--enforce-eager", "--max-num-seqs", "4", "--gpu-memory-utilization", "0.05"]
SMALL += ["--kv-cache-memory-bytes", str(32 << 20)]


@dataclass(frozen=True)
class Engines:
    """One of each task, ready."""

    chat: Engine
    embed: Engine
    rerank: Engine
    real: bool


@pytest_asyncio.fixture(
    scope="module", params=["standin", pytest.param("real", marks=pytest.mark.real)], loop_scope="module"
)
async def engines(request: pytest.FixtureRequest) -> AsyncIterator[Engines]:
    """All three start at once: about 45 s for real ones on two cores, 20 s each alone."""
    real = request.param == "real"
    command, models = real_vllm() if real else (STANDIN, "models")
    slow = {"STANDIN_TOKENS_PER_SECOND": "100"}
    with ExitStack() as stack:
        started = {
            task: stack.enter_context(Engine(command, f"{models}/{MODELS[task]}", *flags, *SMALL, env=slow))
            for task, flags in FLAGS.items()
        }
        for engine in started.values():
            await engine.ready(240)
        yield Engines(**started, real=real)


def real_vllm() -> tuple[list[str], str]:
    program, models = os.environ.get("LLMD_REAL_VLLM"), os.environ.get("LLMD_REAL_MODELS")
    if not program or not models:
        pytest.skip(
            "LLMD_REAL_VLLM and LLMD_REAL_MODELS name no real vLLM and its models (`make test` sets both)"
        )
    return [program], models
