"""Profiles that are proposed: where, how long, for how many, with how much memory; what is proposed fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from supervisor.config import Config, Profile
from supervisor.core.devices import GIB, HOST, Reading, Survey
from supervisor.errors import OperatorError
from supervisor.planning.architecture import read_architecture
from supervisor.planning.checkpoint import Checkpoint, Tensor
from supervisor.planning.nature import Model
from supervisor.planning.plan import Known, Verdict, outlook
from supervisor.planning.proposal import Proposal, Wish, finished, propose, public_name, written
from tests.planning.test_footprint import (
    BGE_M3,
    DEEPSEEK_V2_LITE,
    LLAMA_8B,
    QWEN_72B_AWQ,
    awq_tensors,
    llama_tensors,
)

TEMPLATE = {"chat_template": "x"}


def made(name: str, config: dict[str, Any], architecture: str, tensors: list[Tensor], lump: int = 0) -> Model:
    checkpoint = Checkpoint(read_architecture(config), tuple(tensors), lump)
    return Model(name, "here", checkpoint, {**config, "architectures": [architecture]}, tokenizer=TEMPLATE)


LLAMA = made("meta-llama/Llama-3.1-8B-Instruct", LLAMA_8B, "LlamaForCausalLM", llama_tensors())
QWEN = made("Qwen/Qwen2.5-72B-Instruct-AWQ", QWEN_72B_AWQ, "Qwen2ForCausalLM", awq_tensors())
BGE = made("BAAI/bge-m3", BGE_M3, "XLMRobertaModel", [], 2_271_145_830)


def cards(*sizes: float, **fields: Any) -> Survey:
    gpus = (
        Reading(f"GPU-{n}", int(size * GIB), 0, int(size * GIB), 1.0, index=n, **fields)
        for n, size in enumerate(sizes)
    )
    return Survey((*gpus, Reading(HOST, 32 * GIB, 0, 32 * GIB, 1.0, name="host memory")), at=1.0)


def config(**gpus: int) -> Config:
    profiles = {
        name: Profile(name=name, model=name, weights="w", gpus=(index,)) for name, index in gpus.items()
    }
    return Config(path=Path("/llmd.toml"), profiles=profiles)


def proposed(model: Model, survey: Survey, wish: Wish = Wish(), **gpus: int) -> Proposal:  # noqa: B008
    found = propose(model, wish, config(**gpus), survey)
    again = Profile.model_validate({**finished(found, model), "name": found.name})
    assert outlook(again, Known(model.checkpoint), config(), survey).verdict is Verdict.FITS
    return found


@pytest.mark.parametrize(
    ("model", "sizes", "gpus", "window"),
    [
        (LLAMA, (24,), [0], 32768),
        (LLAMA, (24, 24), [0], 32768),
        (LLAMA, (16, 24), [1], 32768),
        (LLAMA, (18,), [0], 4096),
        (LLAMA, (12, 12), [0, 1], 32768),
        (LLAMA, (12, 12, 8), [0, 1], 32768),
        (LLAMA, (8, 8, 8, 8), [0, 1, 2, 3], 32768),
        (QWEN, (24, 24), [0, 1], 8192),
        (QWEN, (80, 24), [0], 32768),
        (BGE, (24,), [0], 8192),
    ],
)  # fmt: skip
def test_where_and_how_long(model: Model, sizes: tuple[float, ...], gpus: list[int], window: int) -> None:
    fields = proposed(model, cards(*sizes)).fields
    assert (fields["gpus"], fields["max_model_len"]) == (gpus, window)


def test_a_card_that_no_profile_has_is_preferred() -> None:
    assert proposed(LLAMA, cards(24, 24), a=0).fields["gpus"] == [1]
    assert proposed(LLAMA, cards(24, 24), a=0, b=1).fields["gpus"] == [0]


def test_a_wish_is_kept_even_where_another_card_is_better() -> None:
    found = proposed(LLAMA, cards(24, 18), Wish(gpus=(1,), name="mine", model="ours", revision="v1"))
    assert found.fields["gpus"] == [1]
    assert (found.name, found.fields["model"], found.fields["revision"]) == ("mine", "ours", "v1")


def test_a_small_model_leaves_a_large_card_to_others() -> None:
    assert proposed(BGE, cards(80)).fields["vram"] == "2 GiB"
    llama = proposed(LLAMA, cards(80)).fields
    assert (llama["vram"], llama["max_concurrent"]) == ("49.5 GiB", 8)


def test_a_large_one_takes_what_vllm_takes() -> None:
    fields = proposed(LLAMA, cards(24)).fields
    assert (fields["gpu_memory_utilization"], fields["max_concurrent"]) == (0.92, 3)


def test_on_the_cpu() -> None:
    found = proposed(BGE, cards(), Wish(cpu=True))
    assert (found.name, found.fields["device"], found.fields["memory"]) == ("bge-m3_cpu", "cpu", "2.5 GiB")


@pytest.mark.parametrize(
    ("sizes", "name"),
    [((24,), "llama-3-1-8b-instruct_0"), ((12, 12), "llama-3-1-8b-instruct_dual"), ((8, 8, 8, 8), "llama-3-1-8b-instruct_x4")],
)  # fmt: skip
def test_names_as_files_have_them(sizes: tuple[float, ...], name: str) -> None:
    assert proposed(LLAMA, cards(*sizes)).name == name


@pytest.mark.parametrize(
    ("survey", "wish", "said"),
    [
        (cards(8), Wish(), "fits nowhere here; GPU 0: weights take"),
        (cards(), Wish(), "fits nowhere here; there is no GPU"),
        (cards(24), Wish(gpus=(7,)), "there is no GPU 7; write some of 0"),
        (cards(24, 24, 24), Wish(gpus=(0, 1, 2)), "its 32 attention heads cannot be divided among 3 GPUs"),
        (cards(24, trouble="GPU is lost"), Wish(), "there is no GPU"),
        (cards(24, trouble="GPU is lost"), Wish(gpus=(0,)), "GPU is lost"),
    ],
)
def test_why_there_is_none(survey: Survey, wish: Wish, said: str) -> None:
    with pytest.raises(OperatorError) as caught:
        propose(LLAMA, wish, config(), survey)
    assert said in caught.value.message


def test_parsers_of_the_family_where_the_context_holds_tools() -> None:
    assert finished(proposed(LLAMA, cards(24)), LLAMA)["tool_parser"] == "llama3_json"
    assert "tool_parser" not in finished(proposed(LLAMA, cards(18)), LLAMA)
    assert "tool_parser" not in finished(proposed(BGE, cards(24)), BGE)


def test_a_model_whose_cache_cannot_be_counted_is_proposed_as_stated() -> None:
    strange = {**LLAMA_8B, "mamba_d_conv": 4}
    model = made("org/strange", strange, "StrangeForCausalLM", llama_tensors())
    found = propose(model, Wish(), config(), cards(24))
    assert found.outlook.verdict is Verdict.STATED
    assert found.fields["gpu_memory_utilization"] == 0.92
    assert any("is not known" in remark for remark in found.remarks)


def test_latent_attention_is_counted_too() -> None:
    model = made("deepseek-ai/DeepSeek-V2-Lite", DEEPSEEK_V2_LITE, "DeepseekV2ForCausalLM", llama_tensors())
    assert proposed(model, cards(24)).fields["max_model_len"] == 32768


@pytest.mark.parametrize(
    ("weights", "name"),
    [("meta-llama/Llama-3.1-8B", "llama-3.1-8b"), ("/srv/My Model/", "my-model"), ("gpt2", "gpt2"), ("/", "model")],
)  # fmt: skip
def test_public_names(weights: str, name: str) -> None:
    assert public_name(weights) == name


def test_sizes_as_people_write_them() -> None:
    assert [written(18 * GIB + GIB // 2), written(192 << 20), written(GIB)] == [
        "18.5 GiB",
        "192 MiB",
        "1 GiB",
    ]
