"""OpenAI's own client on a held stream, by each of its APIs: it skips what keeps it alive, and hears of a failure."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from cold import World, cold_world

from supervisor.errors import NotAvailable

COMPLETED = (
    b'event: response.completed\ndata: {"type": "response.completed", "response": {"id": "resp_1"}}\n\n'
)
DEAD = NotAvailable("llama_0 failed to start: CUDA out of memory", retry_after=30)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with cold_world() as world:
        yield world


def client(world: World, key: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{world.url}/v1", api_key=key, max_retries=0, timeout=20)


async def ask(api: openai.AsyncOpenAI, kind: str) -> Any:
    if kind == "responses":
        return await api.responses.create(model="llama", input="hi", stream=True)
    if kind == "completions":
        return await api.completions.create(model="llama", prompt="hi", stream=True)
    return await api.chat.completions.create(
        model="llama", messages=[{"role": "user", "content": "hi"}], stream=True
    )


@pytest.mark.parametrize("key", ["commenting", "emptying", "reasoning"])
async def test_signs_of_life_are_not_taken_for_an_answer(world: World, key: str) -> None:
    world.body = COMPLETED
    async with client(world, key) as api:
        stream = await ask(api, "responses")
        world.driver.loaded.set()
        assert [event.type async for event in stream] == ["response.completed"]


@pytest.mark.parametrize("key", ["commenting", "emptying"])
@pytest.mark.parametrize("kind", ["chat", "completions", "responses"])
async def test_a_failure_after_the_head_raises_with_its_words(world: World, kind: str, key: str) -> None:
    async with client(world, key) as api:
        stream = await ask(api, kind)
        world.fail(DEAD)
        with pytest.raises(openai.APIError, match="CUDA out of memory"):
            async for _ in stream:
                pass
