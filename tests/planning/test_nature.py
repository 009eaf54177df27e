"""What models are for, and which of vLLM's parsers they get, by the names that well-known ones have."""

from __future__ import annotations

from typing import Any

import pytest

from supervisor.config.parsers import REASONING_PARSERS, TOOL_PARSERS
from supervisor.errors import OperatorError
from supervisor.planning import nature
from supervisor.planning.architecture import read_architecture
from supervisor.planning.checkpoint import Checkpoint, Tensor
from supervisor.planning.nature import FAMILIES, Model
from tests.planning.test_footprint import LLAMA_8B

TEMPLATE = {"chat_template": "{{ messages }}"}


def model(
    name: str = "org/name",
    *files: str,
    tokenizer: dict[str, Any] | None = None,
    tensors: tuple[Tensor, ...] = (Tensor("w", "F16", (1,), 2),),
    **config: Any,
) -> Model:
    checkpoint = Checkpoint(read_architecture(LLAMA_8B), tensors)
    return Model(
        name,
        "here",
        checkpoint,
        {"architectures": ["LlamaForCausalLM"], **config},
        frozenset(files),
        tokenizer,
    )


@pytest.mark.parametrize(
    ("architecture", "files", "config", "task"),
    [
        ("LlamaForCausalLM", (), {}, "generate"),
        ("Qwen2_5_VLForConditionalGeneration", (), {}, "generate"),
        ("Qwen3ForCausalLM", ("modules.json", "1_Pooling/config.json"), {}, "embed"),
        ("XLMRobertaModel", (), {}, "embed"),
        ("BertForMaskedLM", (), {}, "embed"),
        ("XLMRobertaForSequenceClassification", (), {"id2label": {"0": "LABEL_0"}}, "rerank"),
        ("BertForSequenceClassification", (), {"num_labels": 1}, "rerank"),
        ("BertForSequenceClassification", (), {"id2label": {"0": "bad", "1": "good"}}, "classify"),
        ("BertForSequenceClassification", (), {}, "classify"),
        ("Qwen2ForRewardModel", (), {}, "pool"),
        ("WhisperForConditionalGeneration", (), {}, "transcribe"),
    ],
)
def test_tasks(architecture: str, files: tuple[str, ...], config: dict[str, Any], task: str) -> None:
    assert nature.task(model("org/name", *files, architectures=[architecture], **config)) == task


@pytest.mark.parametrize("architectures", [None, [], "LlamaForCausalLM"])
def test_a_model_without_an_architecture(architectures: object) -> None:
    with pytest.raises(OperatorError, match="names no architecture"):
        nature.task(model(architectures=architectures))


@pytest.mark.parametrize(
    ("kind", "name", "tool", "reasoning"),
    [
        ("llama", "meta-llama/Llama-3.1-8B-Instruct", "llama3_json", None),
        ("llama", "meta-llama/Llama-3.3-70B-Instruct", "llama3_json", None),
        ("llama", "meta-llama/Llama-2-7b-chat-hf", None, None),
        ("llama", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B", None, "deepseek_r1"),
        ("qwen2", "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", None, "deepseek_r1"),
        ("qwen2", "Qwen/Qwen2.5-72B-Instruct-AWQ", "hermes", None),
        ("qwen2", "Qwen/QwQ-32B", "hermes", "deepseek_r1"),
        ("qwen3", "Qwen/Qwen3-8B", "hermes", "qwen3"),
        ("qwen3_moe", "Qwen/Qwen3-30B-A3B-Instruct-2507", "hermes", None),
        ("qwen3_moe", "Qwen/Qwen3-Coder-30B-A3B-Instruct", "qwen3_coder", None),
        ("mistral", "mistralai/Mistral-7B-Instruct-v0.3", "mistral", None),
        ("mistral", "NousResearch/Hermes-2-Pro-Mistral-7B", "hermes", None),
        ("deepseek_v3", "deepseek-ai/DeepSeek-R1-0528", "deepseek_v3", "deepseek_r1"),
        ("gpt_oss", "openai/gpt-oss-20b", "openai", "openai_gptoss"),
        ("glm4_moe", "zai-org/GLM-4.5-Air", "glm45", "glm45"),
        ("gemma2", "google/gemma-2-9b-it", None, None),
    ],
)
def test_parsers(kind: str, name: str, tool: str | None, reasoning: str | None) -> None:
    assert nature.parsers(model(name, tokenizer=TEMPLATE, model_type=kind)) == (tool, reasoning)


def test_every_parser_of_the_table_is_one_of_vllms() -> None:
    assert {family.tool for family in FAMILIES} - {None} <= TOOL_PARSERS
    assert {family.reasoning for family in FAMILIES} - {None} <= REASONING_PARSERS


def test_a_model_that_does_not_chat_gets_no_parser() -> None:
    base = {"model_type": "qwen2"}
    assert nature.parsers(model("Qwen/Qwen2.5-7B", **base)) == (None, None)
    assert nature.parsers(model("Qwen/Qwen2.5-7B", "chat_template.jinja", **base)) == ("hermes", None)


def test_the_length_that_nobody_has_to_stretch() -> None:
    assert nature.length(model(max_position_embeddings=4096)) == 4096
    assert nature.length(model(text_config={"max_position_embeddings": 8192})) == 8192
    assert nature.length(model()) == LLAMA_8B["max_position_embeddings"]


def test_what_a_person_should_know() -> None:
    def told(found: Model) -> str:
        return " ".join(nature.remarks(found, "generate"))

    assert told(model(tokenizer=TEMPLATE)) == ""
    assert "no chat template" in told(model())
    assert "quantised (awq)" in told(model(quantization_config={"quant_method": "awq"}))
    assert "code of its own" in told(model(auto_map={"AutoModel": "x.Y"}))
    assert "pickled" in told(model(tensors=()))
    assert [*nature.remarks(model(), "embed")] == []
