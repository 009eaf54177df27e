"""Failures before the first byte become a fact for the core once they are too many."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from supervisor.config import Config, EngineDefaults, Profile
from supervisor.core import events
from supervisor.host.incarnation import Incarnation


def test_too_many_failures_in_a_row_are_told_once_with_the_last_ones_words() -> None:
    posted: list[Any] = []
    profile = Profile(name="llama_0", model="llama", weights="w", gpus=(0,))
    engine = Incarnation(
        record=cast(Any, SimpleNamespace(incarnation="i1", key="k")),
        profile=profile,
        config=Config(path=Path("llmd.toml"), engine=EngineDefaults(breaker_failures=3)),
        journal=cast(Any, SimpleNamespace(socket=lambda name: Path("/nowhere") / name)),
        post=posted.append,
    )
    for _ in range(2):
        engine.count_failure("no answer")
    engine.breaker.answered()
    for _ in range(3):
        engine.count_failure("no answer")
    assert posted == [events.Unhealthy("i1", "3 requests in a row failed, the last one: no answer")]
