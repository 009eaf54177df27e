"""How vLLM lays out the KV cache of a model on one GPU, and what fits into it. Pure; agrees with vLLM's log."""

from __future__ import annotations

import math
from dataclasses import dataclass

from supervisor.config import Profile
from supervisor.config.models import option
from supervisor.planning.architecture import Architecture
from supervisor.planning.arguments import WIDTHS, batch, count, stage, width

_KV_WIDTHS = {**WIDTHS, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1, "fp8_inc": 1, "int8": 1}


@dataclass(frozen=True, slots=True)
class KvCache:
    """How vLLM pages the KV cache of one GPU: blocks of `block` tokens, `page` bytes a layer, drawn from one pool.

    Layers are grouped so that each group has as many (`_get_kv_cache_groups_uniform_page_size` in
    v1/core/kv_cache_utils.py), and a request takes blocks of every group.
    """

    page: int
    block: int
    full: int
    """Layers that attend to everything."""
    windowed: int = 0
    window: int = 0
    in_flight: int = 0
    """Tokens scheduled and not yet settled, which windowed layers keep beyond their window."""

    @property
    def per_token(self) -> int:
        """Bytes that each token takes as long as every layer keeps it."""
        return (self.full + self.windowed) * self.page // self.block

    @property
    def block_size(self) -> int:
        """Bytes of one block in the pool: a page for each layer of a group."""
        return self._group * self.page

    @property
    def _group(self) -> int:
        """Layers of a group: of the rarer kind, or of the more frequent where that wastes less."""
        fewest, most = sorted((self.full, self.windowed))
        return most if fewest == 0 or most < 1.5 * fewest else fewest

    def pages(self, tokens: int) -> int:
        """Blocks that one request of `tokens` takes (`max_memory_usage_bytes` in v1/kv_cache_interface.py)."""
        kept = min(self.window - 1 + self.in_flight, tokens)
        groups = math.ceil(self.full / self._group), math.ceil(self.windowed / self._group)
        return groups[0] * _blocks(tokens, self.block) + groups[1] * (_blocks(kept, self.block) + 1)

    def holding(self, tokens: int) -> int:
        """Bytes of a cache that holds one request of `tokens`, and the block that vLLM never gives out."""
        return (self.pages(tokens) + 1) * self.block_size

    def requests(self, room: int, tokens: int) -> float:
        """How many requests of `tokens` fit in `room` bytes: "Maximum concurrency" in vLLM's log."""
        return room // self.block_size / self.pages(tokens)

    def tokens(self, room: int, window: int) -> int:
        """Tokens in `room` bytes as vLLM's log counts them: "KV cache size: N tokens"."""
        return int(self.requests(room, window) * window)

    def longest(self, room: int, most: int) -> int:
        """The longest request that fits in `room` bytes, at most `most` tokens; 0 where none does."""
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.holding(middle) <= room else (low, middle - 1)
        return low


def kv_cache(profile: Profile, model: Architecture, window: int, smallest: int) -> KvCache | None:
    """None where the model keeps nothing. Raises ValueError with the reason where it cannot be told.

    A token takes 2 x KV heads x head_dim in a layer, each rank at least one head (`AttentionSpec`,
    `get_num_kv_heads`); under latent attention kv_lora_rank + qk_rope_head_dim on every rank (`MLAAttentionSpec`).
    """
    if model.encoder:
        return None
    if model.unknown:
        raise ValueError(model.unknown)
    asked = option(profile.args, "--kv-cache-dtype") or "auto"
    dtype = model.kv_dtype if asked == "auto" else asked
    each = width(profile) if dtype == "auto" else _KV_WIDTHS.get(dtype)
    if each is None:
        raise ValueError(f"how vLLM lays out a KV cache of {dtype} is not known")
    heads = max(1, model.kv_heads // profile.tensor_parallel)
    elements = model.latent or 2 * heads * model.head_dim
    block = count(profile, _default_block(profile, model), "--block-size")
    windowed = stage(profile, model.windowed)
    return KvCache(
        page=elements * each * block,
        block=block,
        full=stage(profile, model.layers - model.windowed),
        windowed=windowed,
        window=model.window if windowed else 0,
        in_flight=_in_flight(profile, window, smallest) if windowed else 0,
    )


def _default_block(profile: Profile, model: Architecture) -> int:
    """Tokens of a block: 16, 64 as most kernels for latent attention want, 128 on the CPU (platforms/cpu.py)."""
    if profile.device == "cpu":
        return 128
    return 64 if model.latent else 16


def _in_flight(profile: Profile, window: int, smallest: int) -> int:
    """A batch a pipeline stage, and one more for scheduling ahead, which a CPU does not (`max_in_flight_tokens`
    in config/vllm.py)."""
    batches = profile.pipeline_parallel + (profile.device == "gpu")
    return batches * batch(profile, window, smallest)


def _blocks(tokens: int, block: int) -> int:
    return -(-tokens // block)
