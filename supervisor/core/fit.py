"""How much memory a profile needs on a device, and whether it can ever have it.

vLLM takes `ceil(total x gpu_memory_utilization)` of every GPU of the profile and refuses to start unless that
much is free at that moment, `--kv-cache-memory-bytes` or not. So a need is known before anything is spawned.
`total` is CUDA's there, a little less than NVML's, which stands here for it until an engine's log has told: the
need is never told too low.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from supervisor.config import DEFAULT_UTILIZATION, Config, Profile
from supervisor.core.devices import HOST, Reading, Survey, gib
from supervisor.errors import Problem

ALIKE = 1.02
"""Cards of one kind differ by less; the margin covers that."""

_STEPS = 10_000
"""A fraction derived from a size is cut to four decimals, 2.4 MiB of a 24 GiB card, so it never takes more."""


def need(profile: Profile, reading: Reading) -> int:
    """Bytes that an engine of `profile` takes of its only device, or of the smallest of several."""
    return needs(profile, (reading,))[reading.device]


def needs(profile: Profile, readings: Sequence[Reading]) -> dict[str, int]:
    """Device -> bytes that an engine of `profile` takes there, for all its devices; none of a GPU that has no memory
    of its own. vLLM takes one fraction of them all: of a card larger than the smallest, more than the size asked for.
    """
    share, asked = utilization(profile, *readings), _size(profile) or 0
    return {
        reading.device: 0 if reading.unified else max(asked, math.ceil(reading.capacity * share))
        for reading in readings
    }


def utilization(profile: Profile, *readings: Reading) -> float:
    """The fraction to pass as --gpu-memory-utilization, 0 < fraction <= 1: as written, or cut from a size, so that
    it is the size of the smallest of the profile's devices."""
    asked = _size(profile)
    if asked is None:
        return profile.gpu_memory_utilization or DEFAULT_UTILIZATION
    smallest = min((reading.capacity for reading in readings if reading.total), default=1)
    return min(max(asked * _STEPS // smallest, 1), _STEPS) / _STEPS


def _size(profile: Profile) -> int | None:
    return (profile.memory or 0) if profile.device == "cpu" else profile.vram


def gpu_reading(gpu: int | str, survey: Survey) -> Reading | None:
    """The reading of a GPU named by index, UUID or PCI id, as a profile names it."""
    if isinstance(gpu, int):
        return survey.by_index.get(gpu)
    gpus = (reading for reading in survey.readings if reading.device != HOST)
    return next((reading for reading in gpus if _is(gpu, reading)), None)


def host_reading(survey: Survey) -> Reading | None:
    return survey.by_device.get(HOST)


def _is(gpu: str, reading: Reading) -> bool:
    if gpu.startswith("GPU-"):
        return gpu.lower() == reading.device.lower()
    return reading.pci is not None and _pci(gpu) == _pci(reading.pci)


def _pci(address: str) -> tuple[int, str]:
    """Domain and the rest: "01:00.0", "0000:01:00.0" and "00000000:01:00.0" are one device."""
    *domain, bus, slot = address.lower().split(":")
    return int(domain[0], 16) if domain else 0, f"{bus}:{slot}"


def check_devices(config: Config, survey: Survey) -> list[Problem]:
    """What this host can never serve: a GPU it lacks, a profile larger than its device. Without line numbers.

    A device in trouble, or GPUs that cannot be read at all, say nothing for or against a profile.
    """
    found = []
    for name, profile in config.profiles.items():
        problems = (
            _cpu(profile, config, survey) if profile.device == "cpu" else _gpus(profile, config, survey)
        )
        found += [Problem(config.files[name], what, instead, (key,)) for key, what, instead in problems]
    return found


def _cpu(profile: Profile, config: Config, survey: Survey) -> Iterator[tuple[str, str, str]]:
    host = host_reading(survey)
    if host is not None and host.trouble is None:
        yield from _room(profile, host, "this host", host.total - config.memory.host_floor, "memory")


def _gpus(profile: Profile, config: Config, survey: Survey) -> Iterator[tuple[str, str, str]]:
    if survey.trouble is not None:
        return
    readings = {gpu: gpu_reading(gpu, survey) for gpu in profile.gpus}
    for gpu in (gpu for gpu, reading in readings.items() if reading is None):
        have = ", ".join(str(r.index) for r in survey.readings if r.device != HOST and r.index is not None)
        yield (
            "gpus",
            f"there is no GPU {gpu}",
            f"write some of {have}" if have else 'write device = "cpu"',
        )
    known = [reading for reading in readings.values() if reading is not None]
    for device, times in Counter(reading.device for reading in known).items():
        if times > 1:
            yield "gpus", f"GPU {device} is named twice", "write each GPU once"
    yield from _unlike(profile, known)
    for reading in known:
        yield from _card(profile, reading, config, survey)


def _unlike(profile: Profile, readings: Sequence[Reading]) -> Iterator[tuple[str, str, str]]:
    """A size on cards of several sizes: vLLM is given one fraction, and takes more than the size of a larger one."""
    totals = [reading.total for reading in readings if not reading.trouble]
    if profile.vram is None or not totals or max(totals) <= min(totals) * ALIKE:
        return
    share = math.ceil(utilization(profile, *readings) * 100) / 100
    have = ", ".join(f"GPU {reading.index} has {gib(reading.total)}" for reading in readings)
    takes = ", ".join(gib(math.ceil(reading.capacity * share)) for reading in readings)
    yield (
        "vram",
        f"vLLM takes the same fraction of every GPU, and {have}",
        f"write gpu_memory_utilization = {share:.2f} instead, which takes {takes}",
    )


def _card(
    profile: Profile, reading: Reading, config: Config, survey: Survey
) -> Iterator[tuple[str, str, str]]:
    """A GPU without memory of its own is budgeted against the host's."""
    key = (
        "gpus"
        if profile.vram is None and profile.gpu_memory_utilization is None
        else "gpu_memory_utilization"
    )
    key = "vram" if profile.vram is not None else key
    room, limit = reading, reading.capacity - config.memory.margin
    if reading.unified:
        host = host_reading(survey)
        if host is None:
            return
        room, limit = host, host.total - config.memory.host_floor
    if reading.trouble is None and room.trouble is None:
        yield from _room(profile, room, f"GPU {reading.index} ({reading.name})", limit, key)


def _room(
    profile: Profile, reading: Reading, where: str, limit: int, key: str
) -> Iterator[tuple[str, str, str]]:
    asked = need(profile, reading)
    if asked <= limit:
        return
    reserve = gib(reading.capacity - limit)
    what = (
        f"{profile.name} needs {gib(asked)}, {where} has {gib(reading.capacity)} of which {reserve} stay free"
    )
    most = math.floor(max(limit, 0) / reading.capacity * 100) / 100 if reading.capacity else 0
    amount = f'"{max(limit, 0) >> 20} MiB"'
    gpu = f"vram = {amount} or less, or gpu_memory_utilization = {most:.2f} or less"
    yield key, what, f"write {gpu}" if profile.device == "gpu" else f"write memory = {amount} or less"
