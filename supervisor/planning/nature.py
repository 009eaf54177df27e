"""What a model is for, and how it calls tools and marks its thoughts: from config.json, file names and its name. Pure.

Parsers are vLLM's, by the families that its pages "Tool Calling" and "Reasoning Outputs" list for them. A model
that is in no row gets none: a wrong parser eats what the model writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from supervisor.config import Task
from supervisor.errors import OperatorError
from supervisor.planning.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class Model:
    """A model as its files tell of it, wherever they are. `weights` is how a profile names it."""

    weights: str
    where: str
    checkpoint: Checkpoint
    config: Mapping[str, Any]
    """config.json."""
    files: frozenset[str] = frozenset()
    tokenizer: Mapping[str, Any] | None = None
    """tokenizer_config.json."""


@dataclass(frozen=True, slots=True)
class Family:
    """Models of a `kind` (a pattern for config.json's model_type) whose name has `named`."""

    kind: str
    named: str
    tool: str | None
    reasoning: str | None = None


FAMILIES = (
    Family("llama|qwen2", r"r1-distill", None, "deepseek_r1"),
    Family("llama", r"llama-?3", "llama3_json"),
    Family("llama4.*", "", "llama4_pythonic"),
    Family("qwen2", r"qwq", "hermes", "deepseek_r1"),
    Family("llama|mistral", r"hermes", "hermes"),
    Family("qwen2(_moe)?", r"qwen", "hermes"),
    Family("qwen3.*", r"coder", "qwen3_coder"),
    Family("qwen3(_moe|_next)?", r"instruct", "hermes"),
    Family("qwen3(_moe|_next)?", r"qwen", "hermes", "qwen3"),
    Family("mistral.*|mixtral", r"magistral", "mistral", "mistral"),
    Family("mistral.*|mixtral", r"mi[sx]tral|ministral|devstral", "mistral"),
    Family("deepseek_v3", r"r1", "deepseek_v3", "deepseek_r1"),
    Family("deepseek_v3", r"v3\.1", "deepseek_v31", "deepseek_v3"),
    Family("deepseek_v3", r"v3", "deepseek_v3"),
    Family("deepseek_v32", r"v3\.2", "deepseek_v32", "deepseek_v3"),
    Family("gpt_oss", "", "openai", "openai_gptoss"),
    Family("glm4_moe.*", r"4\.[56]", "glm45", "glm45"),
    Family("glm4_moe.*", r"4\.7", "glm47", "glm45"),
    Family("granite", r"granite-3", "granite", "granite"),
    Family("granite.*", r"granite-4", "granite4"),
    Family("kimi_k2", r"k2", "kimi_k2"),
    Family("minimax_m2", "", "minimax_m2", "minimax_m2"),
    Family("phi3", r"phi-4-mini", "phi4_mini_json"),
    Family("seed_oss", "", "seed_oss", "seed_oss"),
    Family("hunyuan_v1_moe", r"a13b", "hunyuan_a13b", "hunyuan_a13b"),
    Family("ernie4_5.*", r"thinking", "ernie45", "ernie45"),
    Family("olmo3", r"think", "olmo3", "olmo3"),
    Family("olmo3", "", "olmo3"),
    Family("internlm2", r"internlm2", "internlm"),
)
"""The first that matches counts."""

_GUESSED_LENGTH = 32768


def task(model: Model) -> Task:
    """From the architecture's name, as vLLM's registry sorts them. Raises OperatorError where there is none."""
    named = model.config.get("architectures")
    if not isinstance(named, list) or not named:
        raise OperatorError(f"{model.where}: config.json names no architecture, so vLLM cannot serve it")
    name = str(named[0])
    if name.endswith("ForSequenceClassification"):
        return "rerank" if _labels(model.config) == 1 else "classify"
    if name.endswith(("ForTokenClassification", "RewardModel")):
        return "pool"
    if name.startswith("Whisper"):
        return "transcribe"
    if "modules.json" in model.files or name.endswith(("Model", "ForMaskedLM")):
        return "embed"
    return "generate"


def parsers(model: Model) -> tuple[str | None, str | None]:
    """(tool parser, reasoning parser) of the model's family, or None. A model without a chat template has neither."""
    kind, name = str(model.config.get("model_type")), model.weights.rpartition("/")[2].lower()
    if not chats(model):
        return None, None
    for family in FAMILIES:
        if re.fullmatch(family.kind, kind) and re.search(family.named, name):
            return family.tool, family.reasoning
    return None, None


def chats(model: Model) -> bool:
    """Whether it brings a template for chats; Mistral's tokenizer has its own."""
    brought = {"chat_template.jinja", "chat_template.json", "tekken.json"} & model.files
    return bool(brought or (model.tokenizer or {}).get("chat_template"))


def length(model: Model) -> int:
    """Tokens that it was made for, before its positions are stretched: all that vLLM takes without being told more."""
    text = model.config.get("text_config")
    merged = {**model.config, **(text if isinstance(text, dict) else {})}
    found = merged.get("max_position_embeddings")
    return (
        found
        if type(found) is int and found > 0
        else model.checkpoint.architecture.positions or _GUESSED_LENGTH
    )


def quantization(model: Model) -> str | None:
    """Its method, which vLLM finds by itself: "awq", "fp8", ..."""
    found = model.config.get("quantization_config") or model.config.get("compression_config")
    return str(found.get("quant_method", "of an unnamed kind")) if isinstance(found, dict) else None


def remarks(model: Model, purpose: Task) -> Iterator[str]:
    """What a person should know before it runs."""
    if method := quantization(model):
        yield f"its weights are quantised ({method})"
    if purpose == "generate" and not chats(model):
        yield "it has no chat template: it completes texts, and chats only with chat_template = ... in the profile"
    if "auto_map" in model.config:
        yield (
            "it brings code of its own; should vLLM refuse it without, read that code, pin revision = ..., "
            'and write args = ["--trust-remote-code"]'
        )
    if not model.checkpoint.tensors:
        yield "its weights are pickled (.bin): loading them runs what is in them; prefer safetensors"


def _labels(config: Mapping[str, Any]) -> int:
    """Hugging Face's default is two."""
    labels = config.get("id2label")
    return len(labels) if isinstance(labels, dict) and labels else int(config.get("num_labels") or 2)
