"""A cold model on a whole daemon, with stand-ins and with a real vLLM: the wait, and tools with and without a parser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.daemon import KEY, QUICK, Llmd
from tests.real.conftest import MODELS, SMALL, real_vllm
from tests.standin.launch import STANDIN

HELLO: Any = [{"role": "user", "content": "Hello, how are you today?"}]
TOOLS: Any = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]


@pytest.fixture(scope="module", params=["standin", pytest.param("real", marks=pytest.mark.real)])
def llmd(request: pytest.FixtureRequest) -> Iterator[Llmd]:
    command, models = real_vllm() if request.param == "real" else (STANDIN, "models")
    env = {"HF_HUB_OFFLINE": "1", "STANDIN_LOAD_SECONDS": "2"}
    engine = QUICK["engine"] | {"command": [*command, "serve"], "env": env, "stop_grace": 15}
    common = {"device": "cpu", "memory": "1900 MiB", "args": SMALL[:1] + SMALL[-2:], "max_model_len": 2048}
    common["weights"] = f"{models}/{MODELS['chat']}"
    profiles = {
        "plain_0": common | {"model": "plain"},
        "parsing_0": common | {"model": "parsing", "tool_parser": "hermes"},
    }
    server = {"hold": "reasoning", "hold_after": 0.3, "keepalive": 1}
    made = Llmd(profiles, server=server, restarts=QUICK["restarts"], engine=engine)
    try:
        yield made.start()
    finally:
        made.close()


@pytest.mark.parametrize("model", ["plain", "parsing"])
def test_a_chat_with_tools_wakes_its_model_and_is_answered(llmd: Llmd, model: str) -> None:
    """vLLM itself refuses tools where it has no parser: they do not get there."""
    with openai.OpenAI(base_url=f"{llmd.url}/v1", api_key=KEY, max_retries=0, timeout=240) as api:
        asked: Any = {"model": model, "messages": HELLO, "tools": TOOLS, "max_tokens": 4}
        chunks: list[Any] = list(api.chat.completions.create(**asked, stream=True))
        deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
        assert any("Loading" in (getattr(delta, "reasoning_content", None) or "") for delta in deltas)
        assert any(delta.content or delta.tool_calls for delta in deltas)
        again = api.chat.completions.with_raw_response.create(**asked)
    assert again.headers.get("x-llmd-dropped") == ("tools" if model == "plain" else None)
