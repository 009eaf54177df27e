"""Needs of profiles, fractions for vLLM, and what a host can never serve."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.config import Config, Profile, load
from supervisor.core.devices import GIB, HOST, MIB, Reading, Survey
from supervisor.core.fit import check_devices, gpu_reading, need, utilization

CARD = 24576 * MIB
"""A 24 GB card as NVML sees it."""

CONFIG = load(Path(__file__).parents[2] / "llmd.toml")
EIGHT_B = [name for name in CONFIG.profiles if name.startswith(("llama", "qwen_coder", "deepseek"))]


def card(index: int, total: int = CARD, **more: object) -> Reading:
    return Reading(
        device=f"GPU-{index}aaa", total=total, used=0, free=total, at=0.0, name="RTX 3090", index=index,
        pci=f"00000000:0{index + 1}:00.0", **more,  # type: ignore[arg-type]
    )  # fmt: skip


def host(total: int = 64 * GIB) -> Reading:
    return Reading(device=HOST, total=total, used=0, free=total, at=0.0)


def profile(**fields: object) -> Profile:
    return Profile.model_validate({"name": "a", "model": "m", "weights": "w", "gpus": (0,), **fields})


def config(*profiles: Profile) -> Config:
    named = {each.name: each for each in profiles}
    return Config(
        path=Path("llmd.toml"), profiles=named, files={name: Path(f"{name}.toml") for name in named}
    )


def told(profile: Profile, *readings: Reading) -> list[str]:
    return [problem.what for problem in check_devices(config(profile), Survey(readings))]


def test_a_share_is_vllms_own_rule() -> None:
    assert need(profile(), card(0, 1001)) == math.ceil(1001 * 0.92)
    assert utilization(profile(gpu_memory_utilization=0.5), card(0)) == 0.5


def test_a_kv_cache_of_a_given_size_changes_nothing_about_what_must_be_free() -> None:
    """vLLM looks for its whole share first (`request_memory`)."""
    assert need(profile(args=("--kv-cache-memory-bytes", "1073741824")), card(0)) == need(profile(), card(0))


def test_a_size_becomes_a_share_that_takes_no_more() -> None:
    asked = profile(vram=18 * GIB + 512 * MIB)
    assert need(asked, card(0)) == 18 * GIB + 512 * MIB
    assert utilization(asked, card(0)) == 0.7708


def test_a_cpu_profile_is_its_size_of_host_memory() -> None:
    asked = profile(device="cpu", gpus=(), memory=4 * GIB)
    assert need(asked, host()) == 4 * GIB
    assert utilization(asked, host()) == 0.0625


@given(asked=st.integers(CARD // 10_000 + 1, CARD), total=st.integers(CARD, 8 * CARD))
def test_vllm_never_takes_more_than_the_size(asked: int, total: int) -> None:
    share = utilization(profile(vram=asked), card(0, total))
    assert 0 <= share <= 1
    assert math.ceil(total * share) <= asked or share == 0.0001


@pytest.mark.parametrize("name", [0, "GPU-0aaa", "GPU-0AAA", "01:00.0", "0000:01:00.0"])
def test_names_of_a_gpu(name: int | str) -> None:
    found = gpu_reading(name, Survey((host(), card(1), card(0))))
    assert found is not None
    assert found.index == 0


def test_names_of_no_gpu() -> None:
    survey = Survey((host(), card(0)))
    assert [gpu_reading(name, survey) for name in (1, "GPU-1aaa", "02:00.0", "0001:01:00.0")] == [None] * 4


def test_the_repository_fits_two_24_gb_cards() -> None:
    assert check_devices(CONFIG, Survey((host(), card(0), card(1)))) == []


def together(*names: str, index: int = 1) -> int:
    return sum(need(CONFIG.profiles[name], card(index)) for name in names)


@pytest.mark.parametrize("name", ["llama_1", "qwen_coder_1", "deepseek_r1_1"])
def test_an_8b_model_leaves_room_for_embeddings_and_reranker(name: str) -> None:
    assert together(name, "bge_m3_1", "bge_reranker_1") + CONFIG.memory.margin <= CARD


def test_two_8b_models_never_share_a_card() -> None:
    for pair in itertools.combinations(EIGHT_B, 2):
        assert together(*pair) > CARD


def test_the_large_model_takes_both_cards_alone() -> None:
    large = CONFIG.profiles["qwen_72b_dual"]
    assert large.gpus == (0, 1)
    assert together("qwen_72b_dual") + CONFIG.memory.margin <= CARD
    assert together("qwen_72b_dual", "bge_m3_1") + CONFIG.memory.margin > CARD


def test_a_gpu_the_host_lacks() -> None:
    [problem] = check_devices(config(profile(gpus=(0, 3))), Survey((host(), card(0), card(1))))
    assert str(problem) == "a.toml: there is no GPU 3; write some of 0, 1"
    assert problem.key == ("gpus",)


def test_a_size_on_cards_of_several_sizes_is_no_size():
    cards = Survey((host(), card(0), card(1, 2 * CARD)))
    [problem] = check_devices(config(profile(gpus=(0, 1), vram=12 * GIB)), cards)
    assert (
        problem.what
        == "vLLM takes the same fraction of every GPU, and GPU 0 has 24.00 GiB, GPU 1 has 48.00 GiB"
    )
    assert problem.instead == "write gpu_memory_utilization = 0.50 instead, which takes 12.00 GiB, 24.00 GiB"
    fraction = profile(gpus=(0, 1), gpu_memory_utilization=0.5)
    assert check_devices(config(fraction), cards) == []
    nearly = Survey((host(), card(0), card(1, CARD - 12 * MIB)))
    assert check_devices(config(profile(gpus=(0, 1), vram=12 * GIB)), nearly) == []


def test_a_host_without_gpus() -> None:
    [problem] = check_devices(config(profile()), Survey((host(),)))
    assert problem.instead == 'write device = "cpu"'


def test_one_gpu_by_two_names() -> None:
    assert told(profile(gpus=(0, "01:00.0")), card(0)) == ["GPU GPU-0aaa is named twice"]


def test_a_profile_larger_than_its_card() -> None:
    [problem] = check_devices(config(profile(vram=24 * GIB)), Survey((card(0),)))
    assert problem.what == "a needs 24.00 GiB, GPU 0 (RTX 3090) has 24.00 GiB of which 0.25 GiB stay free"
    assert problem.instead == 'write vram = "24320 MiB" or less, or gpu_memory_utilization = 0.98 or less'
    assert problem.key == ("vram",)


def test_the_largest_profile_that_fits() -> None:
    assert told(profile(vram=CARD - 256 * MIB), card(0)) == []
    assert len(told(profile(vram=CARD - 256 * MIB + 1), card(0))) == 1


def test_a_cpu_profile_larger_than_the_host() -> None:
    asked = profile(device="cpu", gpus=(), memory=7 * GIB)
    assert told(asked, host(9 * GIB)) == []
    assert told(asked, host(8 * GIB)) == [
        "a needs 7.00 GiB, this host has 8.00 GiB of which 2.00 GiB stay free"
    ]


def test_a_gpu_in_the_hosts_memory_counts_against_the_host() -> None:
    unified = card(0, 0, unified=True)
    assert told(profile(gpu_memory_utilization=0.5), unified, host()) == []
    assert told(profile(gpu_memory_utilization=0.99), unified, host()) == [
        "a needs 63.36 GiB, GPU 0 (RTX 3090) has 64.00 GiB of which 2.00 GiB stay free"
    ]


def test_trouble_says_nothing_against_a_profile() -> None:
    assert told(profile(vram=99 * GIB), card(0, 0, trouble="GPU is lost")) == []
    assert check_devices(config(profile()), Survey((host(),), trouble="no driver")) == []
