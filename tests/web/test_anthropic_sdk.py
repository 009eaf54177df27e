"""Anthropic's own client on a held stream: it skips what keeps it alive, and hears of a failure."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest
from cold import World, cold_world

from supervisor.errors import NotAvailable

STREAM: dict[str, Any] = {
    "model": "llama",
    "max_tokens": 8,
    "messages": [{"role": "user", "content": "hi"}],
    "stream": True,
}
STOP = b'event: message_stop\ndata: {"type": "message_stop"}\n\n'


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with cold_world() as world:
        yield world


def client(world: World, key: str) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=world.url, api_key=key, max_retries=0, timeout=20)


@pytest.mark.parametrize("key", ["commenting", "emptying", "reasoning"])
async def test_signs_of_life_are_not_taken_for_an_answer(world: World, key: str) -> None:
    world.body = STOP
    async with client(world, key) as api:
        stream = await api.messages.create(**STREAM)
        world.driver.loaded.set()
        kinds = [event.type async for event in stream]
    assert set(kinds) - {"ping"} == {"message_stop"}
    assert world.sent["messages"] == STREAM["messages"]


@pytest.mark.parametrize("key", ["commenting", "emptying"])
async def test_a_failure_after_the_head_raises(world: World, key: str) -> None:
    async with client(world, key) as api:
        stream = await api.messages.create(**STREAM)
        world.fail(NotAvailable("llama_0 failed to start: CUDA out of memory", retry_after=30))
        with pytest.raises(anthropic.APIStatusError, match="CUDA out of memory"):
            await anext(aiter(event async for event in stream if event.type != "ping"))
