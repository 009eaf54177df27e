"""The command line and environment of one engine: profile and placement in, words out. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from supervisor.config import Config, Profile

POOLING: Mapping[str, tuple[str, ...]] = {
    "generate": (),
    "embed": ("--runner", "pooling", "--convert", "embed"),
    "rerank": ("--runner", "pooling"),
    "classify": ("--runner", "pooling", "--convert", "classify"),
    "pool": ("--runner", "pooling"),
    "transcribe": (),
}
"""vLLM calls all but the first and the last pooling. What an architecture is made for it finds out by itself:
--convert makes embeddings or classes of one that was made for something else."""

NO_HOST = "none.invalid"
"""A name that no URL can have (RFC 6761): vLLM takes an empty list of domains to allow all."""

_SHAPING = (
    "weights", "revision", "task", "device", "gpus", "max_model_len", "gpu_memory_utilization", "vram", "memory",
    "max_concurrent", "sleep", "lora", "speculative", "args",
)  # fmt: skip
"""What of a profile decides how its engine loads and what it takes."""


def fingerprint(profile: Profile, config: Config) -> str:
    """The same as long as what was measured with these arguments holds for the next engine too."""
    shape = [profile.command or config.engine.command, *(getattr(profile, name) for name in _SHAPING)]
    return hashlib.sha256(repr(shape).encode()).hexdigest()[:16]


def recipe(profile: Profile, config: Config) -> tuple[object, ...]:
    """All that an engine of `profile` is started with, but where and for how many: what differs takes a new engine."""
    place = profile.device, profile.gpus, profile.vram, profile.memory, profile.gpu_memory_utilization
    return argv(profile, config, Path("socket"), 0.0), place, {**config.engine.env, **profile.env}


def served_names(profile: Profile) -> tuple[str, ...]:
    """The names that the engine answers to: the public model first, then the profile's own."""
    return tuple(dict.fromkeys((profile.model, profile.name)))


def names_of(profile: Profile) -> tuple[str, ...]:
    """Every name that a request to the engine may hold: adapters too."""
    return (*served_names(profile), *profile.lora)


def argv(
    profile: Profile, config: Config, socket: Path, utilization: float, slots: int | None = None
) -> tuple[str, ...]:
    """The `vllm serve` command, for `slots` requests at a time (None: as many as the profile says).

    The profile's own `args` come last, so that they win where both are set.
    """
    seats = profile.max_concurrent if slots is None else slots
    words: list[str] = [*(profile.command or config.engine.command), profile.weights]
    words += ["--uds", str(socket), "--served-model-name", *served_names(profile)]
    words += ["--gpu-memory-utilization", f"{utilization:g}", "--max-num-seqs", str(seats)]
    words += [*_dialogue(profile), "--allowed-media-domains", *(profile.allowed_media_domains or (NO_HOST,))]
    words += POOLING[profile.task]
    if profile.max_model_len is not None:
        words += ["--max-model-len", str(profile.max_model_len)]
    if profile.tensor_parallel > 1:
        words += ["--tensor-parallel-size", str(profile.tensor_parallel)]
    if profile.sleep:
        words.append("--enable-sleep-mode")
    if profile.lora:
        adapters = (f"{name}={path}" for name, path in profile.lora.items())
        words += ["--enable-lora", "--lora-modules", *adapters]
    if profile.revision is not None:
        words += ["--revision", profile.revision]
    return (*words, "--disable-fastapi-docs", *profile.args)


def _dialogue(profile: Profile) -> Iterator[str]:
    """How prompts are put together, and what is read out of what the model writes."""
    if profile.tool_parser is not None:
        yield from ("--enable-auto-tool-choice", "--tool-call-parser", profile.tool_parser)
    if profile.reasoning_parser is not None:
        yield from ("--reasoning-parser", profile.reasoning_parser)
    if profile.chat_template is not None:
        yield from ("--chat-template", profile.chat_template)
    if profile.speculative is not None:
        yield from ("--speculative-config", json.dumps(profile.speculative))


def environment(
    profile: Profile,
    config: Config,
    inherited: Mapping[str, str],
    *,
    directory: Path,
    key: str,
    indices: Sequence[int],
) -> dict[str, str]:
    """What the engine sees: the daemon's own environment without its secrets, then engine and profile env,
    then what llmd must own. The key goes here and never into argv, which everyone on the host can read.
    """
    secrets = {found.env for found in config.keys.values() if found.env}
    secrets |= {peer.key_env for peer in config.peers.values() if peer.key_env}
    kept = {
        name: value
        for name, value in inherited.items()
        if name not in secrets and not name.startswith(("NOTIFY_", "WATCHDOG_", "LISTEN_", "PYTHONPATH"))
    }
    cards = ",".join(map(str, indices))
    # Opens routes that change the engine for everyone, outside its key: they stay behind its private socket.
    sleep = {"VLLM_SERVER_DEV_MODE": "1"} if profile.sleep else {}
    return {
        **kept,
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "300",
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
        **config.engine.env,
        **profile.env,
        **sleep,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": cards,
        "VLLM_API_KEY": key,
        "VLLM_RPC_BASE_PATH": str(directory / "ipc"),
        "TMPDIR": str(directory / "tmp"),
    }
