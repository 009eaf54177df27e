"""What a model's config.json says of its shape, as far as memory depends on it. Pure.

The names are Hugging Face's, read as vLLM reads them (transformers_utils/model_arch_config_convertor.py): the text
part of a multimodal model counts, and absent keys have vLLM's defaults. What keeps something other than keys and
values of past tokens (state-space layers, sparse indexers) is named in `unknown` instead of guessed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from supervisor.errors import OperatorError

ENCODERS = frozenset(
    [
        "bert",
        "camembert",
        "distilbert",
        "electra",
        "gte",
        "modernbert",
        "mpnet",
        "new",
        "nomic_bert",
        "roberta",
        "xlm-roberta",
    ]
)
"""model_type of what reads its input once, in both directions, and so keeps no KV cache."""

LATENT = frozenset(
    [
        "deepseek_v2",
        "deepseek_v3",
        "deepseek_mtp",
        "glm4_moe_lite",
        "kimi_k2",
        "longcat_flash",
        "pangu_ultra_moe",
    ]
)
"""model_type of what vLLM serves with multi-head latent attention (`is_deepseek_mla`)."""

PATTERNS = {"gemma2": 2, "gpt_oss": 2, "cohere2": 4, "gemma3_text": 6}
"""model_type -> every how manieth layer attends to everything, where older config.json files leave it out."""

OTHER_MEMORY = [
    "attn_layer_period",
    "block_configs",
    "compress_ratios",
    "hybrid_override_pattern",
    "index_topk",
    "layers_block_type",
    "linear_num_value_heads",
    "mamba_d_conv",
    "ssm_cfg",
    "state_size",
]
"""Keys of models whose layers keep something other than keys and values."""

_KV_HEADS = ("n_head_kv", "num_kv_heads", "num_key_value_heads", "multi_query_group_num")


@dataclass(frozen=True, slots=True)
class Architecture:
    model_type: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int
    """Width of the feed-forward part; of all experts that one token goes through."""
    vocab: int
    dtype: str
    """What the weights were written for, such as "bfloat16"."""
    positions: int | None
    """Tokens that the model was made for; None where config.json does not say, or stretches them."""
    latent: int = 0
    """Elements that latent attention keeps of a token in a layer; 0 where it keeps keys and values."""
    window: int = 0
    """Tokens that a windowed layer looks back; 0 where there is none."""
    windowed: int = 0
    """How many of the layers are windowed."""
    encoder: bool = False
    quantized: bool = False
    kv_dtype: str = "auto"
    """What the checkpoint asks its KV cache to be kept in."""
    unknown: str | None = None
    """Why the KV cache cannot be told."""


def read_architecture(config: Mapping[str, Any]) -> Architecture:
    """Raises OperatorError where config.json is not that of a language model."""
    text = {**config, **_table(config, "text_config")}
    heads = _number(text, "num_attention_heads", "n_head")
    hidden = _number(text, "hidden_size", "n_embd", "d_model")
    window, windowed, unknown = _windows(text)
    return Architecture(
        model_type=str(text.get("model_type", "?")),
        layers=_number(text, "num_hidden_layers", "n_layer"),
        heads=heads,
        kv_heads=_number(text, *_KV_HEADS, default=heads),
        head_dim=_number(text, "head_dim", default=hidden // heads),
        hidden=hidden,
        intermediate=_intermediate(text, hidden),
        vocab=_number(text, "vocab_size"),
        dtype=str(text.get("dtype") or text.get("torch_dtype") or "float32"),
        positions=None if _stretched(text) else _number(text, "max_position_embeddings", default=0) or None,
        latent=_latent(text),
        window=window,
        windowed=windowed,
        encoder=text.get("model_type") in ENCODERS,
        quantized=bool(_quantization(config)),
        kv_dtype=_kv_dtype(_quantization(config)),
        unknown=unknown or _other_memory(text),
    )


def _windows(text: Mapping[str, Any]) -> tuple[int, int, str | None]:
    """The window, how many layers have it, and what is unknown about the others."""
    layers = _number(text, "num_hidden_layers", "n_layer")
    window = text.get("sliding_window")
    if not isinstance(window, int) or window <= 0 or text.get("use_sliding_window") is False:
        window = 0
    kinds = text.get("layer_types")
    if isinstance(kinds, list) and kinds:
        counts = Counter(map(str, kinds))
        windowed = counts.pop("sliding_attention", 0) if window else 0
        counts.pop("full_attention", None)
        strange = next((kind for kind in counts if kind != "sliding_attention"), None)
        return window, windowed, strange and f"what layers of kind {strange} keep is not known"
    return window, _windowed(text, layers) if window else 0, None


def _windowed(text: Mapping[str, Any], layers: int) -> int:
    """Layers with a window where config.json does not list them (transformers fills the list in so)."""
    pattern = text.get("sliding_window_pattern") or PATTERNS.get(str(text.get("model_type")))
    if isinstance(pattern, int) and pattern > 0:
        return layers - layers // pattern
    if text.get("use_sliding_window") is True:
        return max(0, layers - _number(text, "max_window_layers", default=0))
    return layers


def _latent(text: Mapping[str, Any]) -> int:
    if text.get("model_type") not in LATENT or not text.get("kv_lora_rank"):
        return 0
    return _number(text, "kv_lora_rank") + _number(text, "qk_rope_head_dim")


def _other_memory(text: Mapping[str, Any]) -> str | None:
    if text.get("kv_lora_rank") and not _latent(text):
        return f"how vLLM keeps the latents of {text.get('model_type')} is not known"
    if text.get("is_encoder_decoder"):
        return "what an encoder leaves for its decoder is not known"
    strange = next((key for key in OTHER_MEMORY if text.get(key)), None)
    return strange and f"what a model with {strange} keeps is not known"


def _intermediate(text: Mapping[str, Any], hidden: int) -> int:
    dense = _number(text, "intermediate_size", "n_inner", "ffn_dim", default=4 * hidden)
    expert = _number(text, "moe_intermediate_size", default=0)
    return max(dense, expert * _number(text, "num_experts_per_tok", default=0))


def _stretched(text: Mapping[str, Any]) -> bool:
    """Rotary embeddings scaled beyond max_position_embeddings; llama3's are counted in it already."""
    rope = _table(text, "rope_scaling") or _table(text, "rope_parameters")
    kind = rope.get("rope_type") or rope.get("type") or "default"
    return kind not in {"default", "llama3", "mrope"}


def _quantization(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return (
        _table(config, "quantization_config")
        or _table(config, "compression_config")
        or _table(_table(config, "text_config"), "quantization_config")
    )


def _kv_dtype(quantization: Mapping[str, Any]) -> str:
    """vLLM honours an 8-bit scheme in the checkpoint unless --kv-cache-dtype says otherwise
    (`resolve_kv_cache_dtype_string`, and `kv_cache_scheme` in attention.py)."""
    scheme = quantization.get("kv_cache_scheme") or quantization.get("kv_cache_quant_algo")
    if isinstance(scheme, dict):
        return "fp8" if scheme.get("num_bits") == 8 else "unknown"
    return str(scheme).lower() if scheme else "auto"


def _table(table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = table.get(key)
    return value if isinstance(value, dict) else {}


def _number(table: Mapping[str, Any], *keys: str, default: int | None = None) -> int:
    """The first of `keys` that holds a number. Without `default` it must be there, and be positive."""
    for key in keys:
        value = table.get(key)
        if type(value) is int and (value > 0 or default is not None):
            return value
    if default is None:
        raise OperatorError(f"config.json has no {keys[0]}")
    return default
