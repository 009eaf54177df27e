"""A model as it lies on the disk, and what its weights take of one GPU. Pure arithmetic over files' headers."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from supervisor.config import Profile
from supervisor.config.models import option
from supervisor.planning.architecture import Architecture
from supervisor.planning.arguments import WIDTHS, stage, width

_FLOATS = {"F64", "F32", "F16", "BF16"}
_WHOLE = re.compile(r"q_a_proj|kv_a_proj|\.(gate|router)\.weight$|norm")
"""Matrices that every rank keeps whole: down-projections of latent attention, routers of experts."""

_KV_MATRIX = re.compile(r"\b[kv]_proj\b")
_IN_LAYER = re.compile(r"\b(layers?|h|blocks)\.\d+\.")
_KEPT_WIDE = re.compile(r"embed|lm_head|norm")
_ON_THE_FLY = {"fp8": 1.0, "bitsandbytes": 0.5625}
"""--quantization of unquantised weights while they load -> bytes an element, scales included."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One entry of a safetensors header. `dtype` is spelled as there: "BF16"."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model as it lies on the disk. `lump` is the size of weights whose tensors cannot be listed (.bin)."""

    architecture: Architecture
    tensors: tuple[Tensor, ...] = ()
    lump: int = 0


def weights(profile: Profile, checkpoint: Checkpoint) -> int:
    """Bytes of weights on the rank that has most of them.

    Floating-point tensors are cast to the engine's dtype, and 32-bit models run in 16 (`_resolve_auto_dtype` in
    config/model.py); quantised ones stay as stored. Matrices are split over tensor-parallel ranks, vectors are
    not; keys and values no further than there are KV heads (`QKVParallelLinear`).
    """
    model, parts = checkpoint.architecture, profile.tensor_parallel
    each = width(profile)
    lump = checkpoint.lump * each / WIDTHS.get(model.dtype, each)
    layers = others = 0.0
    for tensor in checkpoint.tensors:
        size = _loaded(tensor, profile, model, each) / _ranks(tensor, model, parts)
        if _IN_LAYER.search(tensor.name):
            layers += size
        else:
            others += size
    share = stage(profile, model.layers) / model.layers
    return math.ceil(layers * share + others + lump * share / parts)


def _loaded(tensor: Tensor, profile: Profile, model: Architecture, wide: int) -> float:
    if tensor.dtype not in _FLOATS or (model.quantized and tensor.dtype == "F32"):
        return tensor.size
    asked = option(profile.args, "--quantization", "-q") or ""
    matrix = len(tensor.shape) > 1 and not _KEPT_WIDE.search(tensor.name)
    each = _ON_THE_FLY.get(asked, wide) if matrix and not model.quantized else wide
    return math.prod(tensor.shape) * each


def _ranks(tensor: Tensor, model: Architecture, parts: int) -> int:
    if len(tensor.shape) < 2 or _WHOLE.search(tensor.name):
        return 1
    return min(parts, model.kv_heads) if _KV_MATRIX.search(tensor.name) else parts
