"""What an engine will hold of a GPU: weights, working memory, KV cache. Pure arithmetic over files' headers.

Each formula names the place in vLLM 0.32 that it follows. Weights and KV cache are counted, and agree with what
vLLM logs; the working memory is an estimate (`Work`), until a start of the same profile has logged it.
Sizes are bytes on one GPU.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from supervisor.config import Profile
from supervisor.config.models import option
from supervisor.core.devices import GIB, MIB, Reading
from supervisor.core.fit import utilization
from supervisor.planning.architecture import Architecture
from supervisor.planning.arguments import batch, capture_sizes, count, eager, width
from supervisor.planning.checkpoint import Checkpoint, weights
from supervisor.planning.kvcache import KvCache, kv_cache

CUDA_SHARE = 0.98
"""CUDA's total, of which vLLM takes its share, over NVML's: vLLM's users report 23.58 and 23.69 GiB of cards of 24,
79.22 of 79.65. An estimate at the lower end, for cards that no engine has told of."""

_ENDLESS = 1 << 24

_ALIKE = 0.1
"""A log whose weights differ by more than this share is of other settings, and no witness for these."""


@dataclass(frozen=True, slots=True)
class Logged:
    """What the last start of a profile logged: `weights`, and `work`, all else that is not KV cache."""

    weights: int
    work: int


@dataclass(frozen=True, slots=True)
class Work:
    """An estimate of what vLLM's profiling run (`determine_available_memory` in v1/worker/gpu_worker.py) will find
    beside the weights. Its numbers come from start logs that users of vLLM have published.

    activations: the widest layer for one batch (residuals, and the feed-forward's gate, up and product), and
    logits of each sequence as 16-bit, 32-bit and sampled copies. With 256 sequences that is 0.6 GiB for a 7B model
    where 0.7 were logged, and 1.2 GiB for an 8B one with batches of 8192 where 1.26 were.
    graphs: 24 MiB for each captured batch size of an 8B model.
    workspace: 0.3 GiB outside of torch, logged as 0.16 to 0.33, and FlashInfer's buffer of 394 MiB (envs.py) where
    it is asked for.
    """

    activations: int
    graphs: int
    workspace: int

    @property
    def total(self) -> int:
        return self.activations + self.graphs + self.workspace


@dataclass(frozen=True, slots=True)
class Footprint:
    """What an engine holds of each of its cards. `budget` is what vLLM may take there, at the smallest of them."""

    budget: int
    weights: int
    work: int
    learned: bool
    """`weights` and `work` were logged by a start, not counted and estimated."""
    window: int
    """Tokens of the longest request it shall serve: max_model_len."""
    most: int
    """Tokens that the model was made for, as far as it says."""
    kv: KvCache | None
    """None for an encoder, which keeps nothing."""
    given: int | None = None
    """The KV cache's size where the profile's arguments set it."""

    @property
    def room(self) -> int:
        """What is left for the KV cache."""
        return max(0, self.budget - self.weights - self.work) if self.given is None else self.given

    @property
    def least(self) -> int:
        """The smallest budget with which it starts and keeps to it; vLLM does not hold `given` against it."""
        if self.kv is None:
            return self.weights + self.work
        return self.weights + self.work + (self.given or self.kv.holding(self.window))

    @property
    def holds_window(self) -> bool:
        """Whether one request of full length fits in the KV cache, else vLLM does not start."""
        return self.kv is None or self.kv.holding(self.window) <= self.room

    @property
    def fits(self) -> bool:
        return self.least <= self.budget and self.holds_window

    @property
    def tokens(self) -> int | None:
        return self.kv.tokens(self.room, self.window) if self.kv else None

    @property
    def requests(self) -> float | None:
        return self.kv.requests(self.room, self.window) if self.kv else None

    @property
    def longest(self) -> int | None:
        """The largest max_model_len that starts; 0 where none does."""
        return self.kv.longest(self.room, self.most) if self.kv else None


def footprint(
    profile: Profile, checkpoint: Checkpoint, readings: Iterable[Reading], logged: Logged | None = None
) -> Footprint:
    """Of `profile` on the devices of `readings`, of which there is at least one."""
    devices = tuple(readings)
    model = checkpoint.architecture
    window = profile.max_model_len or model.positions or 2048
    smallest = min(device.total for device in devices)
    counted = weights(profile, checkpoint)
    if logged and abs(logged.weights - counted) > counted * _ALIKE:
        logged = None
    return Footprint(
        budget=min(budget(profile, device) for device in devices),
        weights=logged.weights if logged else counted,
        work=logged.work if logged else work(profile, model, window, smallest).total,
        learned=logged is not None,
        window=window,
        most=max(model.positions or _ENDLESS, window),
        kv=kv_cache(profile, model, window, smallest),
        given=count(profile, 0, "--kv-cache-memory-bytes", "--kv-cache-memory") or None,
    )


def budget(profile: Profile, reading: Reading) -> int:
    """What vLLM may take of a device: the fraction that llmd passes, of the total that CUDA sees
    (`request_memory` in v1/worker/utils.py)."""
    return math.floor(utilization(profile, reading) * reading.capacity * known_share(profile, reading))


def known_share(profile: Profile, reading: Reading) -> float:
    """What CUDA counts of a device's capacity as far as that is known."""
    return CUDA_SHARE if profile.device == "gpu" and reading.cuda_total is None else 1.0


def work(profile: Profile, model: Architecture, window: int, smallest: int) -> Work:
    """See Work: an estimate, for the smallest card's `smallest` bytes."""
    parts, each = profile.tensor_parallel, width(profile)
    sequences = count(profile, profile.max_concurrent, "--max-num-seqs")
    row = 4 * model.hidden + 3 * model.intermediate / parts
    logits = 0 if profile.task != "generate" else sequences * model.vocab * 10
    flashinfer = 394 * MIB if "FLASHINFER" in (option(profile.args, "--attention-backend") or "") else 0
    captured = 0 if eager(profile) else len(capture_sizes(sequences))
    return Work(
        activations=math.ceil(batch(profile, window, smallest) * row * each) + logits,
        graphs=captured * 24 * MIB,
        workspace=int(0.3 * GIB) + flashinfer if profile.device == "gpu" else 0,
    )


_LOADED = re.compile(r"Model loading took ([\d.]+) GiB memory")
_ACTUAL = re.compile(r"Actual usage is ([\d.]+) GiB for consumed memory .*?([\d.]+) GiB for peak activation")


def learn(lines: Iterable[str]) -> Logged | None:
    """What an engine's log says of its last finished start; None without one, or on a CPU, which logs less.

    "consumed" is weights and all that stays beside them, "peak activation" what one batch needs on top, CUDA
    graphs included (`compile_or_warm_up_model` in v1/worker/gpu_worker.py). The largest of several ranks counts.
    """
    loaded: list[float] = []
    found: Logged | None = None
    for line in lines:
        if "Initializing a V1 LLM engine" in line:
            loaded, found = [], None
        elif match := _LOADED.search(line):
            loaded.append(float(match[1]))
        elif loaded and (match := _ACTUAL.search(line)):
            held = max(loaded)
            rest = max(0.0, float(match[1]) + float(match[2]) - held)
            rest = max(rest, found.work / GIB if found else 0.0)
            found = Logged(math.ceil(held * GIB), math.ceil(rest * GIB))
    return found
