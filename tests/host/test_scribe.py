"""The thread that writes: in order, behind the loop's back, and never without end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from supervisor.host import scribe
from supervisor.host.scribe import Scribe


@pytest.fixture
async def writer() -> AsyncIterator[Scribe]:
    made = Scribe()
    yield made
    await made.close()


async def test_what_is_written_is_written_in_order_and_before_what_is_asked(writer: Scribe) -> None:
    done: list[int] = []
    for number in range(100):
        writer.write(lambda number=number: done.append(number))
    assert await writer.ask(lambda: list(done)) == list(range(100))


async def test_a_disk_that_hangs_holds_up_nobody_and_costs_the_newest(
    writer: Scribe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scribe, "BACKLOG", 3)
    go, done = threading.Event(), list[int]()
    writer.write(lambda: go.wait(10) and None)
    for number in range(5):
        writer.write(lambda number=number: done.append(number))
    assert writer.dropped == 3
    go.set()
    assert await writer.ask(lambda: list(done)) == [0, 1]
    writer.write(lambda: done.append(9))
    assert await writer.ask(lambda: list(done)) == [0, 1, 9]


async def test_close_waits_until_all_is_written() -> None:
    writer, go, done = Scribe(), threading.Event(), list[int]()
    writer.write(lambda: go.wait(10) and None)
    writer.write(lambda: done.append(1))
    closing = asyncio.create_task(writer.close())
    go.set()
    await closing
    assert done == [1]
