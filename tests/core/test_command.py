"""What an engine is started with: its places, and sleep."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from supervisor.config.models import Task
from supervisor.core import events, orders
from supervisor.core.command import POOLING, argv, environment, names_of
from tests.core.world import World, config, profile


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


def test_an_engine_sees_the_cards_it_was_given_in_the_buss_order_and_no_others() -> None:
    theirs = {"CUDA_DEVICE_ORDER": "FASTEST_FIRST", "CUDA_VISIBLE_DEVICES": "7"}
    for seen in (sees(theirs), sees(env=theirs)):
        assert (seen["CUDA_DEVICE_ORDER"], seen["CUDA_VISIBLE_DEVICES"]) == ("PCI_BUS_ID", "0")


@pytest.mark.parametrize("named", [1, "GPU-1"])
def test_whichever_way_a_card_is_named_the_engine_is_given_its_index(named: int | str) -> None:
    llama = profile("llama_0").model_copy(update={"gpus": (named,)})
    world = World(config(llama))
    world.send(events.StartAsked("t", "llama_0"))
    (spawn,) = [order for order in world.log if isinstance(order, orders.Spawn)]
    assert (spawn.devices, spawn.indices) == (("GPU-1",), (1,))


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
