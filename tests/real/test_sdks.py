"""The basics of each client library, unmodified, on a whole daemon: with stand-ins and with a real vLLM."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import SecretStr

from tests.daemon import KEY, QUICK, Llmd
from tests.real.conftest import MODELS, SMALL, real_vllm
from tests.standin.launch import STANDIN
from tests.test_openai_node import ask, script

__all__ = ["script"]

HELLO: Any = [{"role": "user", "content": "Hello, how are you today?"}]
ASKED: dict[str, Any] = {"model": "llama", "messages": HELLO, "max_tokens": 6}


@pytest.fixture(scope="module", params=["standin", pytest.param("real", marks=pytest.mark.real)])
def llmd(request: pytest.FixtureRequest) -> Iterator[Llmd]:
    command, models = real_vllm() if request.param == "real" else (STANDIN, "models")
    engine = QUICK["engine"] | {
        "command": [*command, "serve"],
        "env": {"HF_HUB_OFFLINE": "1"},
        "stop_grace": 15,
    }
    common = {"device": "cpu", "memory": "1900 MiB", "args": SMALL[:1] + SMALL[-2:]}
    profiles = {
        "llama_0": common
        | {"model": "llama", "weights": f"{models}/{MODELS['chat']}", "max_model_len": 2048},
        "bge_0": common
        | {"model": "bge", "weights": f"{models}/{MODELS['embed']}", "max_model_len": 512, "task": "embed"},
    }
    made = Llmd(profiles, restarts=QUICK["restarts"], engine=engine)
    try:
        yield made.start()
    finally:
        made.close()


def test_openai(llmd: Llmd) -> None:
    with openai.OpenAI(base_url=f"{llmd.url}/v1", api_key=KEY, max_retries=0, timeout=240) as api:
        assert {"llama", "bge"} <= {model.id for model in api.models.list()}
        assert api.chat.completions.create(**ASKED).choices[0].message.content
        chunks: list[Any] = list(api.chat.completions.create(**ASKED, stream=True))
        assert any(chunk.choices[0].delta.content for chunk in chunks if chunk.choices)
        assert api.completions.create(model="llama", prompt="Hello", max_tokens=4).choices[0].text
        assert api.responses.create(model="llama", input="Hello", max_output_tokens=4).output
        floats, base64 = (
            api.embeddings.create(model="bge", input=["one", "two"], encoding_format=kind)  # type: ignore[arg-type]
            for kind in ("float", "base64")
        )
        assert [len(found.data) for found in (floats, base64)] == [2, 2]
        with pytest.raises(openai.BadRequestError, match="does not serve this route"):
            api.embeddings.create(model="llama", input="one")
        with pytest.raises(openai.NotFoundError, match="not configured"):
            api.chat.completions.create(**ASKED | {"model": "nobody"})


def test_anthropic(llmd: Llmd) -> None:
    with anthropic.Anthropic(base_url=llmd.url, api_key=KEY, max_retries=0, timeout=240) as api:
        assert api.messages.create(**ASKED).usage.output_tokens == 6
        with api.messages.stream(**ASKED) as stream:
            assert "".join(stream.text_stream)
            assert stream.get_final_message().stop_reason == "max_tokens"
        assert api.messages.count_tokens(model="llama", messages=HELLO).input_tokens > 3
        with pytest.raises(anthropic.NotFoundError, match="not configured"):
            api.messages.create(**ASKED | {"model": "nobody"})


def test_langchain(llmd: Llmd) -> None:
    given: dict[str, Any] = {"base_url": f"{llmd.url}/v1", "api_key": SecretStr(KEY), "max_retries": 0}
    chat = ChatOpenAI(model="llama", max_completion_tokens=6, **given)
    assert chat.invoke("Hello").content
    assert any(piece.content for piece in chat.stream("Hello"))
    vectors = OpenAIEmbeddings(model="bge", check_embedding_ctx_length=False, **given).embed_documents(
        ["a", "b"]
    )
    assert len(vectors) == 2


@pytest.mark.parametrize("stream", [True, False])
def test_openai_for_node(script: Path, llmd: Llmd, stream: bool) -> None:
    told = ask(script, llmd, model="llama", stream=stream)
    assert (told["error"], bool(told["text"])) == (None, True)
