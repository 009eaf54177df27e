"""langchain's own clients, as n8n and scripts use them, on a whole daemon with stand-in engines."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import SecretStr

from tests.daemon import KEY, QUICK, Llmd, profile

LOADS = {"STANDIN_LOAD_SECONDS": "1"}


@pytest.fixture(scope="module")
def llmd() -> Iterator[Llmd]:
    profiles = {
        "tiny_0": profile("tiny", env=LOADS),
        "embed_0": profile("embed", task="embed"),
        "broken_0": profile("broken", env={**LOADS, "STANDIN_OOM": "1"}),
    }
    llmd = Llmd(profiles, server={"hold_after": 0.2, "keepalive": 0.3}, **QUICK)
    try:
        yield llmd.start()
    finally:
        llmd.close()


def chat(llmd: Llmd, model: str = "tiny") -> ChatOpenAI:
    return ChatOpenAI(model=model, base_url=f"{llmd.url}/v1", api_key=SecretStr(KEY), max_retries=0)


def test_a_cold_model_streams_and_then_answers(llmd: Llmd) -> None:
    pieces = list(chat(llmd).stream("Hello"))
    assert "".join(str(piece.content) for piece in pieces)
    answer = chat(llmd).invoke("Hello")
    assert answer.content
    assert answer.response_metadata["token_usage"]["prompt_tokens"] > 0


def test_a_load_that_fails_while_held_raises(llmd: Llmd) -> None:
    with pytest.raises(openai.APIError, match="out of memory"):
        list(chat(llmd, "broken").stream("Hello"))


def test_embeddings_need_one_setting(llmd: Llmd) -> None:
    """Else it sends token numbers of a tokenizer that is not the model's."""
    embeddings = OpenAIEmbeddings(
        model="embed", base_url=f"{llmd.url}/v1", api_key=SecretStr(KEY), check_embedding_ctx_length=False
    )
    found = embeddings.embed_documents(["one", "two", "three"])
    assert len(found) == 3
    assert len({len(vector) for vector in found}) == 1
