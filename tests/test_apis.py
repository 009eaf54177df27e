"""The newer APIs and a burst through the whole daemon, by the SDK that people use, on stand-in engines."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from tests.daemon import KEY, QUICK, Llmd, profile


@pytest.fixture(scope="module")
def llmd() -> Iterator[Llmd]:
    profiles = {
        "tiny_0": profile("tiny", lora={"french": "/nowhere/french"}),
        "emb": profile("emb", task="embed", max_concurrent=2, max_queue=8),
        "late": profile(
            "late", task="embed", max_concurrent=2, max_queue=8, env={"STANDIN_LOAD_SECONDS": "2"}
        ),
    }
    made = Llmd(profiles, **QUICK)
    try:
        yield made.start()
    finally:
        made.close()


@pytest.fixture
def api(llmd: Llmd) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{llmd.url}/v1", api_key=KEY, max_retries=0, timeout=60) as made:
        yield made


def test_a_response_is_made_found_again_and_gone_with_its_engine(llmd: Llmd, api: openai.OpenAI) -> None:
    made = api.responses.create(model="tiny", input="Hello", max_output_tokens=3)
    assert made.output_text
    assert api.responses.retrieve(made.id).id == made.id
    assert llmd.run("stop", "tiny_0").returncode == 0
    with pytest.raises(openai.NotFoundError):
        api.responses.retrieve(made.id)
    assert llmd.engine("tiny_0")["state"] == "cold"  # nobody started it to look


def test_an_adapter_is_asked_for_by_its_name(api: openai.OpenAI) -> None:
    assert "french" in {model.id for model in api.models.list()}
    assert api.chat.completions.create(model="french", messages=[], max_tokens=1).model == "french"


def test_a_burst_larger_than_the_queue_is_served(api: openai.OpenAI) -> None:
    """60 at once, where two run and eight wait: each is served, for they go together."""
    api.embeddings.create(model="emb", input="warm")
    with ThreadPoolExecutor(60) as pool:
        found = list(pool.map(lambda n: api.embeddings.create(model="emb", input=f"chunk {n}"), range(60)))
    assert len({tuple(answer.data[0].embedding) for answer in found}) == 60


def test_a_burst_for_a_cold_model_is_served(api: openai.OpenAI) -> None:
    """A document that is indexed while its model loads: a request a chunk, all at once, and none comes again."""
    with ThreadPoolExecutor(200) as pool:
        found = list(pool.map(lambda n: api.embeddings.create(model="late", input=f"chunk {n}"), range(200)))
    assert len({tuple(answer.data[0].embedding) for answer in found}) == 200


def test_a_burst_of_whole_batches_is_served_too(api: openai.OpenAI) -> None:
    """As many inputs each as a call may have: none is merged, and there are more than may wait for a place."""
    texts = [[f"chunk {n} {part}" for part in range(32)] for n in range(40)]
    with ThreadPoolExecutor(40) as pool:
        found = list(pool.map(lambda batch: api.embeddings.create(model="late", input=batch), texts))
    assert [len(answer.data) for answer in found] == [32] * 40
