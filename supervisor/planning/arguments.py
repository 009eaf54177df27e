"""What a profile's arguments for vLLM say, with vLLM's defaults where they are silent. Pure."""

from __future__ import annotations

import math
import re

from supervisor.config import Profile
from supervisor.config.models import option
from supervisor.core.devices import GIB

LARGE_GPU = 70 * GIB
"""From here on vLLM lets a batch have 8192 tokens instead of 2048, except on an A100
(`get_batch_defaults` in engine/arg_utils.py)."""

WIDTHS = {"float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2}
"""dtype -> bytes of an element."""


def width(profile: Profile) -> int:
    """Bytes of an element of activations: "auto" runs 32-bit models in 16 (`_resolve_auto_dtype`, config/model.py)."""
    asked = option(profile.args, "--dtype") or "auto"
    return WIDTHS.get(asked, 2)


def stage(profile: Profile, layers: int) -> int:
    """Layers of the pipeline stage that has most."""
    return math.ceil(layers / profile.pipeline_parallel)


def batch(profile: Profile, window: int, smallest: int) -> int:
    """Tokens of the largest batch: a pooling model reads its input in one piece."""
    usual = 8192 if profile.device == "gpu" and smallest >= LARGE_GPU else 2048
    usual = usual if profile.task == "generate" else max(usual, window)
    return count(profile, usual, "--max-num-batched-tokens")


def eager(profile: Profile) -> bool:
    return profile.device == "cpu" or option(profile.args, "--enforce-eager") is not None


def capture_sizes(sequences: int) -> list[int]:
    """Batch sizes that CUDA graphs are captured for (`_set_cudagraph_sizes` in config/vllm.py)."""
    most = min(2 * sequences, 512)
    return [size for size in (1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)) if size <= most]


def count(profile: Profile, default: int, *names: str) -> int:
    """A number in the profile's arguments; vLLM counts 1k as 1000, 1K as 1024."""
    match = re.fullmatch(r"(\d{1,15})([kmgKMG]?)", option(profile.args, *names) or "")
    if match is None or int(match[1]) == 0:
        return default
    base = 1024 if match[2].isupper() else 1000
    return int(int(match[1]) * base ** " kmg".index(match[2].lower() or " "))
