"""The layout of the KV cache, against what a real vLLM logs for the same config.json: to the token."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from supervisor.config import Profile
from supervisor.core.devices import GIB
from supervisor.host.weights import read_checkpoint
from supervisor.planning.architecture import read_architecture
from supervisor.planning.kvcache import kv_cache
from tests.real.conftest import real_vllm
from tests.standin.launch import Engine

pytestmark = pytest.mark.real

ROOM = 32 << 20
GEMMA_ROPE = {
    kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("full_attention", "sliding_attention")
}
CASES: dict[str, tuple[dict[str, Any], int, tuple[str, ...]]] = {
    "as-it-is": ({}, 500, ("--block-size", "64")),
    "windowed-8-bit": (
        {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 256, "head_dim": 64},
        4000,
        ("--kv-cache-dtype", "fp8"),
    ),
    "some-windowed": (
        {
            "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "sliding_window": 256,
            "num_hidden_layers": 8, "query_pre_attn_scalar": 64, "hidden_activation": "gelu_pytorch_tanh",
            "layer_types": ["sliding_attention"] * 5 + ["full_attention"] + ["sliding_attention"] * 2,
            "rope_parameters": GEMMA_ROPE,
        },
        9000,
        ("--max-num-batched-tokens", "512"),
    ),
    "latent": (
        {
            "model_type": "deepseek_v2", "architectures": ["DeepseekV2ForCausalLM"], "num_key_value_heads": 2,
            "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128,
            "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "n_shared_experts": 1,
            "first_k_dense_replace": 1, "moe_layer_freq": 1, "topk_method": "greedy", "n_group": 1,
            "topk_group": 1, "norm_topk_prob": False, "routed_scaling_factor": 1.0, "scoring_func": "softmax",
        },
        1000,
        (),
    ),
}  # fmt: skip
"""Changes to the tiny model's config.json, max_model_len, and flags."""


@pytest.fixture
def model(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The tiny model with another shape; vLLM makes up weights for it."""
    _, models = real_vllm()
    for file in (Path(models) / "tiny-llama").iterdir():
        shutil.copy(file, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | CASES[request.param][0]))
    return tmp_path


def cpu_features() -> list[str]:
    """Without AMX vLLM's latent attention on a CPU has blocks of 16 instead of 128, whatever one asks for."""
    return Path("/proc/cpuinfo").read_text().split()


@pytest.mark.parametrize(("model", "case"), [(name, name) for name in CASES], indirect=["model"], ids=CASES)
async def test_the_cache_holds_as_many_tokens_as_vllm_logs(model: Path, case: str) -> None:
    _, window, flags = CASES[case]
    command, _ = real_vllm()
    blocks = ("--block-size", "16") if case == "latent" and "amx_tile" not in cpu_features() else ()
    profile = Profile.model_validate(
        {
            "name": "a",
            "model": "m",
            "weights": str(model),
            "device": "cpu",
            "memory": GIB,
            "args": flags + blocks,
        }
    )
    cache = kv_cache(
        profile, read_architecture(json.loads((model / "config.json").read_text())), window, 1 << 34
    )
    assert cache is not None
    given = ("--max-model-len", str(window), "--kv-cache-memory-bytes", str(ROOM), "--max-num-seqs", "4")
    common = ("--load-format", "dummy", "--enforce-eager", "--gpu-memory-utilization", "0.05")
    with Engine(command, str(model), *common, *given, *flags) as engine:
        await engine.ready(240)
        logged = re.search(r"KV cache size: ([\d,]+) tokens.*?([\d.]+)x", engine.text())
    assert logged is not None
    assert int(logged[1].replace(",", "")) == cache.tokens(ROOM, window)
    assert float(logged[2]) == pytest.approx(cache.requests(ROOM, window), abs=0.006)


def test_headers_of_the_tiny_models() -> None:
    """What safetensors itself would read: every tensor, to the last byte of the file."""
    _, models = real_vllm()
    for directory in sorted(Path(models).iterdir()):
        file = directory / "model.safetensors"
        found = read_checkpoint(directory)
        length = int.from_bytes(file.read_bytes()[:8], "little")
        assert sum(tensor.size for tensor in found.tensors) == file.stat().st_size - 8 - length
