"""What an engine is started with: its places, and sleep."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from supervisor.config.models import Task
from supervisor.core.command import POOLING, argv, environment, names_of
from tests.core.world import config, profile


def words(slots: int | None = None, **fields: Any) -> tuple[str, ...]:
    llama = profile("llama_0", 0, max_concurrent=4, **fields)
    return argv(llama, config(llama), Path("/s"), 0.9, slots)


def sees(inherited: dict[str, str] | None = None, **fields: Any) -> dict[str, str]:
    llama = profile("llama_0", 0, **fields)
    return environment(llama, config(llama), inherited or {}, directory=Path("/d"), key="k", indices=(0,))


def test_places_are_the_orders_and_else_the_profiles() -> None:
    given, told = words(slots=2), words()
    assert given[given.index("--max-num-seqs") + 1] == "2"
    assert told[told.index("--max-num-seqs") + 1] == "4"


def test_only_an_engine_that_may_sleep_has_the_routes_for_it() -> None:
    assert "--enable-sleep-mode" in words(sleep=True)
    assert "--enable-sleep-mode" not in words()
    assert sees(sleep=True)["VLLM_SERVER_DEV_MODE"] == "1"
    assert "VLLM_SERVER_DEV_MODE" not in sees()


def test_adapters_are_given_by_name_and_path() -> None:
    given = words(lora={"french": "/lora/french", "latin": "org/latin"})
    at = given.index("--enable-lora")
    assert given[at : at + 4] == ("--enable-lora", "--lora-modules", "french=/lora/french", "latin=org/latin")
    assert "--enable-lora" not in words()


def test_every_task_has_its_flags() -> None:
    assert set(POOLING) == set(get_args(Task))
    assert "--runner" not in words(task="transcribe")
    assert words(task="classify")[-5:-1] == ("--runner", "pooling", "--convert", "classify")


def test_an_engine_answers_to_its_adapters_too() -> None:
    assert names_of(profile("llama_0", 0, lora={"french": "x"})) == ("llama", "llama_0", "french")
