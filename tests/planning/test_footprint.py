"""Weights, KV cache and working memory of well-known models, against numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from supervisor.config import Profile
from supervisor.core.devices import GIB, MIB, Reading
from supervisor.errors import OperatorError
from supervisor.planning.architecture import read_architecture
from supervisor.planning.checkpoint import Checkpoint, Tensor, weights
from supervisor.planning.footprint import CUDA_SHARE, Logged, footprint, learn, work
from supervisor.planning.kvcache import KvCache, kv_cache

CARD = Reading("gpu:0", 24 * GIB, 0, 24 * GIB, 0.0, index=0)

LLAMA_8B: dict[str, Any] = {
    "model_type": "llama", "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "hidden_size": 4096, "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 131072,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0}, "torch_dtype": "bfloat16",
}  # fmt: skip
QWEN_72B_AWQ: dict[str, Any] = {
    "model_type": "qwen2", "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
    "hidden_size": 8192, "intermediate_size": 29568, "vocab_size": 152064, "max_position_embeddings": 32768,
    "sliding_window": 131072, "use_sliding_window": False, "max_window_layers": 70, "torch_dtype": "float16",
    "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128},
}  # fmt: skip
DEEPSEEK_V2_LITE: dict[str, Any] = {
    "model_type": "deepseek_v2", "num_hidden_layers": 27, "num_attention_heads": 16, "num_key_value_heads": 16,
    "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408, "num_experts_per_tok": 6,
    "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "vocab_size": 102400,
    "rope_scaling": {"type": "yarn", "factor": 40}, "max_position_embeddings": 163840, "torch_dtype": "bfloat16",
}  # fmt: skip
BGE_M3: dict[str, Any] = {
    "model_type": "xlm-roberta", "num_hidden_layers": 24, "num_attention_heads": 16, "hidden_size": 1024,
    "intermediate_size": 4096, "vocab_size": 250002, "max_position_embeddings": 8194, "torch_dtype": "float32",
}  # fmt: skip
GEMMA: dict[str, Any] = {
    "model_type": "gemma3_text", "num_hidden_layers": 12, "num_attention_heads": 8, "num_key_value_heads": 4,
    "head_dim": 256, "hidden_size": 2048, "vocab_size": 262144, "sliding_window": 1024, "torch_dtype": "bfloat16",
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 2, "max_position_embeddings": 131072,
}  # fmt: skip


def profile(*args: str, **fields: object) -> Profile:
    return Profile.model_validate(
        {"name": "a", "model": "m", "weights": "w", "gpus": (0,), "args": args, **fields}
    )


def kv(config: dict[str, Any], *args: str, **fields: object) -> KvCache:
    asked = profile(*args, **fields)
    found = kv_cache(asked, read_architecture(config), asked.max_model_len or 8192, 24 * GIB)
    assert found is not None
    return found


def matrix(name: str, rows: int, columns: int, dtype: str = "BF16") -> Tensor:
    return Tensor(name, dtype, (rows, columns), rows * columns * {"I32": 4, "F32": 4}.get(dtype, 2))


def vector(name: str, length: int, dtype: str = "BF16") -> Tensor:
    return Tensor(name, dtype, (length,), length * {"F32": 4}.get(dtype, 2))


def llama_tensors() -> list[Tensor]:
    found = [matrix("model.embed_tokens.weight", 128256, 4096), matrix("lm_head.weight", 128256, 4096)]
    for layer in range(32):
        own = f"model.layers.{layer}."
        found += [matrix(f"{own}self_attn.{name}_proj.weight", 4096, 4096) for name in "qo"]
        found += [matrix(f"{own}self_attn.{name}_proj.weight", 1024, 4096) for name in "kv"]
        found += [matrix(f"{own}mlp.{name}_proj.weight", 14336, 4096) for name in ("gate", "up", "down")]
        found += [vector(f"{own}{name}_layernorm.weight", 4096) for name in ("input", "post_attention")]
    return [*found, vector("model.norm.weight", 4096)]


def awq_tensors() -> list[Tensor]:
    """Eight 4-bit numbers in an I32, a scale and a zero for each 128 rows."""
    found = [matrix(f"{name}.weight", 152064, 8192, "F16") for name in ("model.embed_tokens", "lm_head")]
    shapes = {"q_proj": (8192, 8192), "k_proj": (8192, 1024), "v_proj": (8192, 1024), "o_proj": (8192, 8192)}
    shapes |= {"gate_proj": (8192, 29568), "up_proj": (8192, 29568), "down_proj": (29568, 8192)}
    for layer in range(80):
        for name, (rows, columns) in shapes.items():
            own = f"model.layers.{layer}.{name}"
            found.append(matrix(f"{own}.qweight", rows, columns // 8, "I32"))
            found.append(matrix(f"{own}.qzeros", rows // 128, columns // 8, "I32"))
            found.append(matrix(f"{own}.scales", rows // 128, columns, "F16"))
    return found


# --- KV cache ---


@pytest.mark.parametrize(
    ("config", "args", "gpus", "expected"),
    [
        (LLAMA_8B, (), 1, 2 * 32 * 8 * 128 * 2),
        (LLAMA_8B, (), 2, 2 * 32 * 4 * 128 * 2),
        (LLAMA_8B, ("--kv-cache-dtype", "fp8"), 1, 2 * 32 * 8 * 128),
        (LLAMA_8B, ("--dtype=float32",), 1, 2 * 32 * 8 * 128 * 4),
        (LLAMA_8B, ("-pp", "2"), 2, 2 * 16 * 8 * 128 * 2),
        (LLAMA_8B, (), 16, 2 * 32 * 1 * 128 * 2),
        (QWEN_72B_AWQ, ("--kv-cache-dtype", "fp8"), 2, 2 * 80 * 4 * 128),
        (DEEPSEEK_V2_LITE, (), 1, 27 * (512 + 64) * 2),
        (DEEPSEEK_V2_LITE, (), 4, 27 * (512 + 64) * 2),
        (GEMMA, (), 1, 2 * 12 * 4 * 256 * 2),
    ],
    ids=["gqa", "tp2", "fp8", "wide", "pp2", "tp16", "qwen", "mla", "mla-tp4", "windowed"],
)
def test_bytes_of_a_token(config: dict[str, Any], args: tuple[str, ...], gpus: int, expected: int) -> None:
    assert kv(config, *args, gpus=tuple(range(gpus))).per_token == expected


def test_an_8_bit_cache_that_the_checkpoint_asks_for() -> None:
    quantization = {"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 8, "type": "float"}}
    asking = {**LLAMA_8B, "quantization_config": quantization}
    assert kv(asking).per_token == 65536
    assert kv(asking, "--kv-cache-dtype", "bfloat16").per_token == 131072


def test_an_encoder_keeps_nothing() -> None:
    assert kv_cache(profile(task="embed"), read_architecture(BGE_M3), 8192, CARD.total) is None


def test_what_fits_into_a_cache() -> None:
    """1 GiB of 128 KiB a token is 512 blocks of 16; 8192 tokens take all of them, but one is never given out."""
    cache = kv(LLAMA_8B)
    assert (cache.block, cache.block_size, cache.pages(8192)) == (16, 2 * MIB, 512)
    assert cache.tokens(GIB, 8192) == 8192
    assert cache.requests(GIB, 4096) == 2.0
    assert cache.holding(8192) == GIB + 2 * MIB
    assert cache.longest(GIB, 131072) == 8192 - 16
    assert cache.longest(GIB, 4096) == 4096
    assert cache.longest(2 * MIB, 131072) == 0


def test_windowed_layers_stop_growing() -> None:
    """2 full and 10 windowed layers make groups of 2: 1 full, 5 windowed. A window keeps 1023 tokens and two
    batches of 2048, 5119 in 320 blocks and one for where it starts."""
    cache = kv(GEMMA, max_model_len=65536)
    assert (cache.full, cache.windowed, cache.in_flight) == (2, 10, 4096)
    assert cache.block_size == 2 * (2 * 4 * 256 * 2) * 16
    assert cache.pages(65536) == 4096 + 5 * (320 + 1)
    assert cache.pages(1000) == 63 + 5 * (63 + 1)


def test_every_layer_windowed() -> None:
    """Mistral of old: one group, whatever the request's length."""
    cache = kv({**LLAMA_8B, "model_type": "mistral", "sliding_window": 4096})
    assert (cache.full, cache.windowed) == (0, 32)
    assert cache.pages(131072) == cache.pages(65536) == (4095 + 4096 + 15) // 16 + 1


@pytest.mark.parametrize(
    ("change", "full", "windowed"),
    [
        ({"layer_types": None, "sliding_window_pattern": 6}, 2, 10),
        ({"layer_types": None}, 2, 10),
        ({"layer_types": None, "model_type": "gemma2"}, 6, 6),
        (
            {"layer_types": None, "model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 9},
            9,
            3,
        ),
        ({"layer_types": None, "model_type": "qwen2", "use_sliding_window": False}, 12, 0),
        ({"sliding_window": None}, 12, 0),
    ],
)
def test_which_layers_are_windowed(change: dict[str, Any], full: int, windowed: int) -> None:
    cache = kv({**GEMMA, **change})
    assert (cache.full, cache.windowed) == (full, windowed)


@pytest.mark.parametrize(
    ("change", "args", "reason"),
    [
        ({"layer_types": ["linear_attention", "full_attention"] * 16}, (), "layers of kind linear_attention"),
        ({"kv_lora_rank": 256, "qk_rope_head_dim": 32}, (), "latents of llama"),
        ({"is_encoder_decoder": True}, (), "an encoder leaves"),
        ({"mamba_d_conv": 4}, (), "a model with mamba_d_conv"),
        ({}, ("--kv-cache-dtype", "nvfp4"), "a KV cache of nvfp4"),
    ],
)
def test_what_is_not_known_is_said(change: dict[str, Any], args: tuple[str, ...], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        kv({**LLAMA_8B, **change}, *args)


def test_the_text_part_of_a_multimodal_model() -> None:
    assert read_architecture({"model_type": "x", "text_config": LLAMA_8B}) == read_architecture(LLAMA_8B)


@pytest.mark.parametrize("missing", ["num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size"])
def test_a_config_of_something_else(missing: str) -> None:
    with pytest.raises(OperatorError, match=f"config.json has no {missing}"):
        read_architecture({key: value for key, value in LLAMA_8B.items() if key != missing})


# --- Weights ---

LLAMA_NORMS = (2 * 32 + 1) * 4096 * 2
LLAMA_BYTES = 8_030_261_248 * 2
"""Llama 3.1 8B has 8,030,261,248 parameters."""


@pytest.mark.parametrize(
    ("args", "gpus", "expected"),
    [
        ((), 1, LLAMA_BYTES),
        ((), 2, (LLAMA_BYTES - LLAMA_NORMS) // 2 + LLAMA_NORMS),
        (("--dtype", "float32"), 1, 2 * LLAMA_BYTES),
        # Half the layers, and both embeddings and head at most.
        (("-pp", "2"), 2, (LLAMA_BYTES - 2 * 128256 * 4096 * 2 - 8192) // 2 + 2 * 128256 * 4096 * 2 + 8192),
        # Loaded in 8 bits, but for embeddings, head and norms.
        (("--quantization", "fp8"), 1, (LLAMA_BYTES - 2 * 128256 * 4096 * 2 - LLAMA_NORMS) // 2
         + 2 * 128256 * 4096 * 2 + LLAMA_NORMS),
    ],
    ids=["whole", "tp2", "float32", "pp2", "fp8"],
)  # fmt: skip
def test_weights_of_a_rank(args: tuple[str, ...], gpus: int, expected: int) -> None:
    checkpoint = Checkpoint(read_architecture(LLAMA_8B), tuple(llama_tensors()))
    assert weights(profile(*args, gpus=tuple(range(gpus))), checkpoint) == expected


def test_weights_quantised_to_four_bits_stay_as_stored() -> None:
    """877,658,112 numbers a layer: half a byte each, and for 128 of them a scale of 2 bytes and half a byte."""
    layer = 877_658_112 * (0.5 + 2.5 / 128)
    ends = 2 * 152064 * 8192 * 2
    checkpoint = Checkpoint(read_architecture(QWEN_72B_AWQ), tuple(awq_tensors()))
    assert weights(profile(gpus=(0, 1)), checkpoint) == (80 * layer + ends) / 2
    assert weights(profile(gpus=(0, 1)), checkpoint) / GIB == pytest.approx(19.3, abs=0.05)


def test_32_bit_models_run_in_16() -> None:
    """Tensors, and a .bin whose size alone is known."""
    model = read_architecture(BGE_M3)
    assert weights(profile(), Checkpoint(model, (matrix("embeddings.weight", 250002, 1024, "F32"),))) == (
        250002 * 1024 * 2
    )
    assert weights(profile(), Checkpoint(model, lump=2_271_145_830)) == 1_135_572_915


def test_what_every_rank_keeps_whole() -> None:
    """Down-projections of latent attention, and KV heads beyond their number."""
    latent = Checkpoint(
        read_architecture(DEEPSEEK_V2_LITE),
        (
            matrix("model.layers.0.self_attn.kv_a_proj_with_mqa.weight", 576, 2048),
            matrix("model.layers.0.mlp.gate.weight", 64, 2048),
            matrix("model.layers.0.mlp.gate_proj.weight", 64, 2048),
        ),
    )
    assert weights(profile(gpus=(0, 1, 2, 3)), latent) == (576 + 64 + 64 // 4) * 2048 * 2
    shared = Checkpoint(read_architecture(LLAMA_8B), (matrix("model.layers.0.k_proj.weight", 1024, 4096),))
    assert weights(profile(gpus=tuple(range(16))), shared) == 1024 * 4096 * 2 // 8


# --- Together ---


def test_the_estimate_of_working_memory() -> None:
    """A batch of 2048 tokens through 4 x 4096 + 3 x 14336 in 16 bits, 6 sequences of logits at 10 bytes, graphs
    for batches of 1, 2, 4 and 8 at 24 MiB, 0.3 GiB beside."""
    found = work(profile(max_concurrent=6), read_architecture(LLAMA_8B), 8192, CARD.total)
    assert found.activations == 2048 * 59392 * 2 + 6 * 128256 * 10
    assert (found.graphs, found.workspace) == (96 * MIB, int(0.3 * GIB))
    assert work(profile("--enforce-eager"), read_architecture(LLAMA_8B), 8192, CARD.total).graphs == 0
    flashinfer = profile("--attention-backend", "FLASHINFER")
    assert (
        work(flashinfer, read_architecture(LLAMA_8B), 8192, CARD.total).workspace
        == int(0.3 * GIB) + 394 * MIB
    )
    large = work(profile(max_concurrent=6), read_architecture(LLAMA_8B), 8192, 80 * GIB)
    assert large.activations - found.activations == 3 * 2048 * 59392 * 2


def test_the_estimate_beside_what_was_logged() -> None:
    qwen_7b = {**LLAMA_8B, "hidden_size": 3584, "intermediate_size": 18944, "vocab_size": 152064}
    many = ("--max-num-seqs", "256")
    seven = work(profile(*many), read_architecture(qwen_7b), 8192, CARD.total)
    assert seven.activations / GIB == pytest.approx(0.7, rel=0.15)
    eight = work(
        profile(*many, "--max-num-batched-tokens", "8k"), read_architecture(LLAMA_8B), 8192, CARD.total
    )
    assert eight.activations / GIB == pytest.approx(1.26, rel=0.15)


def test_the_shipped_throughput_profile() -> None:
    """llama_1: 18.5 of 24 GiB is a fraction of 0.7708, of what CUDA sees 18.13 GiB."""
    checkpoint = Checkpoint(read_architecture(LLAMA_8B), tuple(llama_tensors()))
    asked = profile(vram=int(18.5 * GIB), max_model_len=8192, max_concurrent=6)
    found = footprint(asked, checkpoint, [CARD])
    assert found.budget == math.floor(0.7708 * 24 * GIB * CUDA_SHARE)
    assert found.room == found.budget - LLAMA_BYTES - found.work
    blocks = found.room // (2 * MIB)
    assert found.tokens == blocks * 16
    assert found.requests == blocks / 512
    assert found.longest == (blocks - 1) * 16
    assert found.least == LLAMA_BYTES + found.work + 513 * 2 * MIB
    assert found.fits
    assert not found.learned


def test_the_smallest_card_decides() -> None:
    large = Reading("gpu:1", 48 * GIB, 0, 48 * GIB, 0.0, index=1)
    checkpoint = Checkpoint(read_architecture(LLAMA_8B), tuple(llama_tensors()))
    asked = profile(gpus=(0, 1), max_model_len=8192)
    assert footprint(asked, checkpoint, [large, CARD]) == footprint(asked, checkpoint, [CARD, CARD])


def test_a_cache_of_a_given_size() -> None:
    checkpoint = Checkpoint(read_architecture(LLAMA_8B), tuple(llama_tensors()))
    given = profile("--kv-cache-memory-bytes", "2G", max_model_len=8192)
    assert footprint(given, checkpoint, [CARD]).room == 2 * GIB
    assert footprint(given, checkpoint, [CARD]).fits
    small = footprint(profile("--kv-cache-memory-bytes=1G", max_model_len=8192), checkpoint, [CARD])
    assert (small.fits, small.longest) == (False, 8176)
    assert not footprint(profile("--kv-cache-memory-bytes=9G", max_model_len=8192), checkpoint, [CARD]).fits


LOG = """\
(EngineCore pid=9) INFO 11-23 13:20:09 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: ...
(Worker_TP0 pid=8) INFO 11-23 13:20:10 [gpu_model_runner.py:5150] Model loading took 14.99 GiB memory and 9.1 seconds
(Worker_TP0 pid=8) INFO 11-23 13:20:19 [gpu_worker.py:1030] Free memory on device (23.3/23.58 GiB) on startup. \
Desired GPU memory utilization is (0.92, 21.69 GiB). Actual usage is 15.29 GiB for consumed memory (weights + \
non-torch), 0.75 GiB for peak activation, and 0.09 GiB for CUDAGraph memory. Replace gpu_memory_utilization ...
"""


def test_what_a_start_has_logged() -> None:
    learned = learn(LOG.splitlines())
    assert learned is not None
    assert learned.weights / GIB == pytest.approx(14.99)
    assert learned.work / GIB == pytest.approx(15.29 + 0.75 - 14.99)
    assert learn([*LOG.splitlines(), LOG.splitlines()[0]]) is None, (
        "a start under way has measured nothing yet"
    )
    assert learn([]) is None


def test_what_was_logged_counts_unless_the_profile_has_changed() -> None:
    checkpoint = Checkpoint(read_architecture(LLAMA_8B), tuple(llama_tensors()))
    logged = Logged(15 * GIB, GIB)
    alone = footprint(profile(max_model_len=8192), checkpoint, [CARD], logged)
    assert (alone.learned, alone.weights, alone.work) == (True, 15 * GIB, GIB)
    assert not footprint(profile(max_model_len=8192, gpus=(0, 1)), checkpoint, [CARD, CARD], logged).learned
