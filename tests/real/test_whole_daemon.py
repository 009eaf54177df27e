"""The whole daemon on a real CPU vLLM: what stand-ins cannot prove."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from tests.daemon import KEY, QUICK, Llmd, until

pytestmark = pytest.mark.real

VLLM, MODELS = os.environ.get("LLMD_REAL_VLLM"), os.environ.get("LLMD_REAL_MODELS")
ARGS = ["--enforce-eager", "--kv-cache-memory-bytes", "33554432"]


@pytest.fixture(scope="module")
def llmd() -> Iterator[Llmd]:
    if not VLLM or not MODELS:
        pytest.skip("no real vLLM here: LLMD_REAL_VLLM and LLMD_REAL_MODELS name it (make test sets them)")
    chat: dict[str, Any] = {
        "model": "tiny", "weights": str(Path(MODELS) / "tiny-llama"), "device": "cpu", "memory": "1900 MiB",
        "max_model_len": 2048, "args": ARGS,
    }  # fmt: skip
    engine = QUICK["engine"] | {"command": [VLLM, "serve"], "env": {"HF_HUB_OFFLINE": "1"}, "stop_grace": 15}
    made = Llmd({"tiny_0": chat}, restarts=QUICK["restarts"], engine=engine)
    try:
        yield made.start()
    finally:
        made.close()


@pytest.mark.timeout(300)
def test_chat_stream_context_error_adoption_and_crashes(llmd: Llmd) -> None:
    """One history, since a start costs 20 seconds: each step builds on the engine of the one before."""
    messages: Any = [{"role": "user", "content": "Hello, how are you today?"}]
    with openai.OpenAI(base_url=f"{llmd.url}/v1", api_key=KEY, max_retries=0, timeout=120) as api:
        assert api.chat.completions.create(model="tiny", messages=messages, max_tokens=8).usage
        stream = api.chat.completions.create(model="tiny_0", messages=messages, max_tokens=8, stream=True)
        assert any(chunk.choices[0].delta.content for chunk in stream if chunk.choices)
        too_long: Any = [{"role": "user", "content": "word " * 4000}]
        with pytest.raises(openai.BadRequestError):
            api.chat.completions.create(model="tiny", messages=too_long)
        stream = api.chat.completions.create(model="tiny", messages=messages, max_tokens=1500, stream=True)
        next(iter(stream))
        stream.close()
        until(lambda: llmd.engine("tiny_0")["in_flight"] == 0, 2, llmd.text)

    before = llmd.engine("tiny_0")
    llmd.kill()
    llmd.start()
    until(lambda: llmd.engine("tiny_0")["state"] == "ready", 10, llmd.text)
    after = llmd.engine("tiny_0")
    assert (after["pid"], after["starts"]) == (before["pid"], 0)

    tree = psutil.Process(after["pid"]).children(recursive=True)
    os.kill(after["pid"], signal.SIGKILL)
    until(lambda: not any(_runs(process) for process in tree), 2, llmd.text)
    with openai.OpenAI(base_url=f"{llmd.url}/v1", api_key=KEY, max_retries=0, timeout=120) as api:
        assert api.chat.completions.create(model="tiny", messages=messages, max_tokens=4).choices
    assert llmd.engine("tiny_0")["incarnation"] != before["incarnation"]
    assert llmd.stop() == 0
    assert llmd.leftovers() == []


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
