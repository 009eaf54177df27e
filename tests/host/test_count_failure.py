"""Failures before the first byte become a fact for the core once they are too many."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from supervisor.config import Config, EngineDefaults, Profile
from supervisor.core import events
from supervisor.host.incarnation import Incarnation
from supervisor.host.upstream import Connection, Gone, Pool


def engine_with(posted: list[Any], **limits: Any) -> Incarnation:
    return Incarnation(
        record=cast(Any, SimpleNamespace(incarnation="i1", key="k")),
        profile=Profile(name="llama_0", model="llama", weights="w", gpus=(0,)),
        config=Config(path=Path("llmd.toml"), engine=EngineDefaults(**limits)),
        journal=cast(Any, SimpleNamespace(socket=lambda name: Path("/nowhere") / name)),
        post=posted.append,
    )


def test_too_many_failures_in_a_row_are_told_once_with_the_last_ones_words() -> None:
    posted: list[Any] = []
    engine = engine_with(posted, breaker_failures=3)
    for _ in range(2):
        engine.count_failure("no answer")
    engine.breaker.answered()
    for _ in range(3):
        engine.count_failure("no answer")
    assert posted == [events.Unhealthy("i1", "3 requests in a row failed, the last one: no answer")]


def test_failures_too_far_apart_are_none_in_a_row() -> None:
    posted: list[Any] = []
    engine = engine_with(posted, breaker_failures=2, breaker_window=1e-9)
    for _ in range(5):
        engine.count_failure("no answer")
    assert posted == []


async def test_a_connection_has_as_long_as_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(pool: Pool) -> Connection:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(Pool, "_connect", never)
    async with asyncio.timeout(5):
        with pytest.raises(Gone, match=r"within 0\.05 s"):
            await engine_with([], connect_timeout=0.05).pool.open()
