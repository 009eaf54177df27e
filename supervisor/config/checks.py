"""What the configuration contradicts in itself, as pure functions; each yields all that it finds."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator

from supervisor.config.lines import KeyPath
from supervisor.config.models import Config, Mode, Profile, option
from supervisor.errors import Problem

SOCKET_LIMIT = 107
"""Bytes of a Unix socket's path on Linux: sun_path is 108 with its end."""

ENGINE_SOCKET = "engines/12345678/ipc/123e4567-e89b-12d3-a456-426614174000"
"""The longest socket below state_dir: vLLM names its ZeroMQ sockets by UUID."""

OWNED = {
    ("--uds",): "leave it out, llmd gives each engine a private socket",
    ("--host",): "leave it out, llmd gives each engine a private socket",
    ("--port",): "leave it out, llmd gives each engine a private socket",
    ("--api-key",): "leave it out, llmd gives each engine a key of its own",
    ("--model",): "write weights = ... in the profile",
    ("--revision",): "write revision = ... in the profile",
    ("--served-model-name",): "write model = ... in the profile",
    ("--gpu-memory-utilization",): "write gpu_memory_utilization = ... or vram = ... in the profile",
    ("--max-model-len",): "write max_model_len = ... in the profile",
    ("--max-num-seqs",): "write max_concurrent = ... in the profile",
    ("--enable-sleep-mode",): "write sleep = true in the profile",
    ("--tensor-parallel-size", "-tp"): "leave it out, layers are split over as many GPUs as gpus names",
    ("--runner",): "write task = ... in the profile",
    ("--convert",): "write task = ... in the profile",
    ("--enable-lora",): "write lora = { NAME = ... } in the profile",
    ("--lora-modules",): "write lora = { NAME = ... } in the profile",
    ("--tool-call-parser",): "write tool_parser = ... in the profile",
    ("--enable-auto-tool-choice",): "write tool_parser = ... in the profile",
    ("--reasoning-parser",): "write reasoning_parser = ... in the profile",
    ("--chat-template",): "write chat_template = ... in the profile",
    ("--speculative-config", "-sc"): "write speculative = { ... } in the profile",
    ("--allowed-media-domains",): "write allowed_media_domains = [...] in the profile",
}
"""vLLM's flags that llmd passes itself."""

Finding = tuple[KeyPath, str, str]
"""A key, what is wrong with it, what to write instead."""


def contradictions(config: Config) -> list[Problem]:
    found = [Problem(config.path, what, instead, key) for key, what, instead in _document(config)]
    for name, profile in config.profiles.items():
        checks = (*_profile(profile), *_identity(profile, config))
        found += [Problem(config.files[name], what, instead, key) for key, what, instead in checks]
    return found


def _document(config: Config) -> Iterator[Finding]:
    yield from _sockets(config)
    yield from _sources(config)
    yield from _modes(config)
    yield from _preferences(config)
    yield from _peers(config)


def _sockets(config: Config) -> Iterator[Finding]:
    paths = {"admin_socket": config.server.admin_socket, "state_dir": config.server.state_dir / ENGINE_SOCKET}
    for key, path in paths.items():
        if (excess := len(os.fsencode(path)) - SOCKET_LIMIT) > 0:
            what = f"a Unix socket may have {SOCKET_LIMIT} bytes, {path} is {excess} too long"
            yield ("server", key), what, "write a shorter path"


def _sources(config: Config) -> Iterator[Finding]:
    seen: dict[object, str] = {}
    for source, key in config.keys.items():
        first = seen.setdefault((key.env, key.hash, key.file), source)
        if first != source:
            yield ("keys", source), f"{first} and {source} share one key", "write a key of its own for each"


def _modes(config: Config) -> Iterator[Finding]:
    starts: dict[object, str] = {}
    for name, mode in config.modes.items():
        first = starts.setdefault((mode.start, mode.timezone), name)
        if first != name:
            yield (
                ("modes", name, "start"),
                f"{first} and {name} start at one time",
                "write two different times",
            )
        for key, named in (("profiles", mode.profiles), ("warm", mode.warm)):
            for position, profile in enumerate(named):
                if profile not in config.files:
                    what = f"mode {name} names the profile {profile}, which does not exist"
                    yield ("modes", name, key, position), what, _one_of(config.files)
        yield from _warm(name, mode, config)


def _warm(name: str, mode: Mode, config: Config) -> Iterator[Finding]:
    for position, profile in enumerate(mode.warm):
        if profile in config.profiles and profile not in config.profiles_in(name):
            what = f"mode {name} warms {profile}, which it does not have"
            yield (
                ("modes", name, "warm", position),
                what,
                "add it to the mode's profiles, or leave it out here",
            )


def _preferences(config: Config) -> Iterator[Finding]:
    sources = [*config.keys, "default"]
    for source, targets in config.routing.prefer.items():
        key = ("routing", "prefer", source)
        if source not in sources:
            yield key, f"routing.prefer names {source}, which has no key", _one_of(sources)
        for position, target in enumerate(targets):
            if not _matches(target, config):
                instead = f'{_one_of(config.files)}, "gpu:N" or "cpu"'
                yield (*key, position), f"no profile is at {target}", instead


def _peers(config: Config) -> Iterator[Finding]:
    taken = {*config.files, *(profile.model for profile in config.profiles.values())}
    for name in config.peers:
        if name in taken:
            what = f"{name} is the name of a peer, and of a profile or model"
            yield ("peers", name), what, "write a name of its own, so that logs and headers tell them apart"
        elif not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", name):
            yield ("peers", name), f"{name!r} is no name for a peer", "write a-z, 0-9, _ and -, such as dgx"


def _matches(target: str, config: Config) -> bool:
    """A GPU named by UUID or PCI id may have any index, so it is given the benefit of the doubt."""
    broken = len(config.profiles) < len(config.files)
    profiles = config.profiles.values()
    if target == "cpu":
        return broken or any(profile.device == "cpu" for profile in profiles)
    if re.fullmatch(r"gpu:\d+", target):
        gpus = {gpu for profile in profiles for gpu in profile.gpus}
        return broken or int(target[4:]) in gpus or any(isinstance(gpu, str) for gpu in gpus)
    return target in config.files


def _identity(profile: Profile, config: Config) -> Iterator[Finding]:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", profile.name):
        what = f"{profile.name!r} is no name for a profile"
        yield (), what, "name the file with a-z, 0-9, _ and -, such as llama_0.toml"
    if profile.model in config.files and profile.model != profile.name:
        what = f"the model {profile.model} has the name of another profile"
        yield ("model",), what, "write a name that no file has, so that it is clear what a client asks for"
    for other in config.profiles.values():
        if other.name < profile.name and other.model == profile.model and other.task != profile.task:
            what = f"{profile.model} is for {other.task} in {other.name}, for {profile.task} here"
            yield ("task",), what, "write one task for all profiles of a model"
            break
    yield from _adapters(profile, config)


def _adapters(profile: Profile, config: Config) -> Iterator[Finding]:
    """An adapter's name leads to the profiles that have it, so nothing else may be called so."""
    for adapter in profile.lora:
        if adapter in config.files or any(adapter == other.model for other in config.profiles.values()):
            what = f"the adapter {adapter} has the name of a model or a profile"
            yield ("lora", adapter), what, "write a name that only this adapter has"
        for other in config.profiles.values():
            if other.name < profile.name and adapter in other.lora and other.model != profile.model:
                what = f"{adapter} is an adapter of {other.model} in {other.name}, of {profile.model} here"
                yield ("lora", adapter), what, "write another name for one of them"
                break


def _profile(profile: Profile) -> Iterator[Finding]:
    yield from _devices(profile)
    yield from _memory(profile)
    yield from _sleep(profile)
    yield from _writing(profile)
    yield from _flags(profile)


def _devices(profile: Profile) -> Iterator[Finding]:
    if profile.device == "cpu" and profile.gpus:
        yield ("gpus",), "a profile for the CPU has no GPUs", 'leave gpus out, or write device = "gpu"'
    if profile.device == "gpu" and not profile.gpus:
        yield ("gpus",), "a profile for GPUs says which", 'write gpus = [0], or device = "cpu"'
    repeated = sorted({str(gpu) for gpu in profile.gpus if profile.gpus.count(gpu) > 1})
    if repeated:
        yield ("gpus",), f"GPU {', '.join(repeated)} is named twice", "write each GPU once"
    if profile.gpus and len(profile.gpus) % profile.pipeline_parallel:
        what = f"{len(profile.gpus)} GPUs cannot be divided into {profile.pipeline_parallel} pipeline stages"
        yield ("args",), what, "write a --pipeline-parallel-size that divides the number of gpus"


def _memory(profile: Profile) -> Iterator[Finding]:
    if profile.gpu_memory_utilization is not None and profile.vram is not None:
        yield ("vram",), "vram and gpu_memory_utilization say the same thing", "write one of them"
    if profile.device == "cpu":
        for key in ("gpu_memory_utilization", "vram"):
            if getattr(profile, key) is not None:
                yield (key,), f"{key} is for GPUs", 'write memory = "8 GiB"'
    if profile.device == "cpu" and not profile.memory:
        yield ("memory",), "a profile for the CPU says what it may take of memory", 'write memory = "8 GiB"'
    if profile.device == "gpu" and profile.memory is not None:
        yield ("memory",), "memory is for the CPU", 'write vram = "8 GiB"'
    if profile.vram == 0:
        yield ("vram",), "vram is nothing", 'write what the engine may take, such as "21 GiB"'


def _sleep(profile: Profile) -> Iterator[Finding]:
    if profile.sleep and profile.device == "cpu":
        yield ("sleep",), "vLLM cannot sleep on the CPU", "leave sleep out"
    if profile.sleep_after is not None and not profile.sleep:
        yield ("sleep_after",), "an engine that may not sleep has no sleep_after", "write sleep = true"
    elif (rest := profile.sleep_after) is not None and (end := profile.idle_ttl) is not None and rest >= end:
        what = f"it would sleep after {rest:g} s without a request, and is stopped after {end:g} s (idle_ttl)"
        yield ("sleep_after",), what, f"write less than {end:g} s, or a longer idle_ttl"


def _writing(profile: Profile) -> Iterator[Finding]:
    """What only a model that writes can use."""
    for key in ("tool_parser", "reasoning_parser", "speculative"):
        if profile.task != "generate" and getattr(profile, key) is not None:
            yield (key,), f"a model for {profile.task} has no {key}", "leave it out"


def _flags(profile: Profile) -> Iterator[Finding]:
    for names, instead in OWNED.items():
        if option(profile.args, *names) is not None:
            yield ("args",), f"{names[0]} is llmd's to pass", instead


def _one_of(names: Iterable[str]) -> str:
    return f"write one of {', '.join(names)}"
