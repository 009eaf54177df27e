"""Which profiles fit on given devices, alone and together, and what would make a misfit fit. Pure.

A profile fits alone where each of its devices can give what it asks for, and where what it asks for holds its
weights, its working memory and the KV cache of one request of full length: with less vLLM does not start.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from supervisor.config import Config, Profile
from supervisor.config.models import option
from supervisor.core.devices import HOST, MIB, Reading, Survey, gib
from supervisor.core.fit import gpu_reading, host_reading, need, needs
from supervisor.planning.checkpoint import Checkpoint
from supervisor.planning.footprint import Footprint, Logged, budget, footprint, known_share
from supervisor.planning.together import maximal_sets

MOST_SETS = 100
"""Sets listed for a mode."""

NOT_HERE = "weights not here; `llmd plan` can tell after its first start"

Mend = Mapping[str, int | float]
"""Settings that together make a misfit fit: key of the profile -> value, sizes in bytes."""


class Verdict(StrEnum):
    FITS = "fits"
    STATED = "as stated"
    """Its devices can give what it asks for; whether that is enough is not known."""
    NEVER = "misfit"
    UNKNOWN = "unknown"
    """A device of it is in trouble."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a profile's model: its checkpoint, or why there is none, and what a start has logged."""

    checkpoint: Checkpoint | None = None
    trouble: str = NOT_HERE
    logged: Logged | None = None


@dataclass(frozen=True, slots=True)
class Outlook:
    """One profile alone."""

    profile: Profile
    verdict: Verdict
    needs: Mapping[str, int] = field(default_factory=dict)
    """Device -> bytes."""
    footprint: Footprint | None = None
    reason: str = ""
    """Why it does not fit, or why it cannot be told."""
    mends: tuple[Mend, ...] = ()
    """Alternatives, the gentlest first."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    outlooks: tuple[Outlook, ...]
    sets: Mapping[str, tuple[tuple[str, ...], ...]]
    """Mode, or "" where there are none -> the maximal sets of profiles that fit together."""
    readings: tuple[Reading, ...]
    room: Mapping[str, int]
    """Device -> bytes that may be promised there."""

    @property
    def possible(self) -> bool:
        return all(outlook.verdict is not Verdict.NEVER for outlook in self.outlooks)


def plan(config: Config, names: Sequence[str], known: Mapping[str, Known], survey: Survey) -> Plan:
    """For the profiles `names`, of which `known` tells what was found, on the devices of `survey`."""
    outlooks = tuple(
        outlook(config.profiles[name], known.get(name, Known()), config, survey) for name in names
    )
    room = {reading.device: limit(reading, config) for reading in survey.readings}
    alone = {each.profile.name: each.needs for each in outlooks if each.verdict in _STARTS}
    modes = {mode: config.profiles_in(mode) for mode in config.modes} or {"": frozenset(names)}
    sets = {
        mode: _sets({name: alone[name] for name in alone if name in available}, room)
        for mode, available in modes.items()
        if not available.isdisjoint(names)
    }
    return Plan(outlooks, sets, survey.readings, room)


_STARTS = frozenset({Verdict.FITS, Verdict.STATED})


def _sets(needs: Mapping[str, Mapping[str, int]], room: Mapping[str, int]) -> tuple[tuple[str, ...], ...]:
    return tuple(itertools.islice(maximal_sets(needs, room), MOST_SETS)) if needs else ()


def limit(reading: Reading, config: Config) -> int:
    """Bytes of a device that engines may be promised."""
    kept = config.memory.host_floor if reading.device == HOST else config.memory.margin
    return max(0, reading.capacity - kept)


def outlook(profile: Profile, known: Known, config: Config, survey: Survey) -> Outlook:
    """What becomes of one profile with the devices to itself."""
    devices = devices_of(profile, survey)
    if isinstance(devices, str):
        return Outlook(profile, Verdict.NEVER, reason=devices)
    wanted = needs(profile, devices)
    if trouble := next(
        (f"{reading.name}: {reading.trouble}" for reading in devices if reading.trouble), None
    ):
        return Outlook(profile, Verdict.UNKNOWN, wanted, reason=trouble)
    if clash := _clash(profile, known.checkpoint):
        return Outlook(profile, Verdict.NEVER, wanted, reason=clash[0], mends=clash[1])
    counted, doubt = _counted(profile, known, devices)
    smallest = min(devices, key=lambda reading: reading.capacity)
    room = limit(smallest, config)
    if reason := _short(profile, smallest, room, counted):
        found = tuple(_mends(profile, smallest, room, counted))
        if not found:
            reason += _spread(profile, known, smallest, room)
        return Outlook(profile, Verdict.NEVER, wanted, counted, reason, found, _notes(profile))
    verdict = Verdict.FITS if counted else Verdict.STATED
    return Outlook(profile, verdict, wanted, counted, doubt, notes=_notes(profile))


def devices_of(profile: Profile, survey: Survey) -> tuple[Reading, ...] | str:
    """The devices that `profile` is budgeted on, or what is missing. Unified memory is the host's."""
    host = host_reading(survey)
    if profile.device == "cpu":
        return (host,) if host else "the host's memory cannot be read"
    found = []
    for ref in profile.gpus:
        reading = gpu_reading(ref, survey)
        reading = host if reading and reading.unified else reading
        if reading is None:
            have = ", ".join(str(each.index) for each in survey.readings if each.index is not None)
            return f"there is no GPU {ref}" + (f"; write some of {have}" if have else "")
        found.append(reading)
    return tuple(found)


def _counted(profile: Profile, known: Known, devices: Sequence[Reading]) -> tuple[Footprint | None, str]:
    """The footprint, or why there is none."""
    if known.checkpoint is None:
        return None, known.trouble
    try:
        return footprint(profile, known.checkpoint, devices, known.logged), ""
    except ValueError as error:
        return None, str(error)


def _clash(profile: Profile, checkpoint: Checkpoint | None) -> tuple[str, tuple[Mend, ...]] | None:
    """What vLLM refuses before it looks at memory (`verify_with_parallel_config`, `_get_and_verify_max_len`)."""
    if checkpoint is None:
        return None
    model, parts = checkpoint.architecture, profile.tensor_parallel
    if model.heads % parts:
        return f"its {model.heads} attention heads cannot be divided among {parts} GPUs", ()
    if model.positions and (profile.max_model_len or 0) > model.positions:
        reason = f"max_model_len is {profile.max_model_len}, the model was made for {model.positions} tokens"
        return reason, ({"max_model_len": model.positions},)
    return None


def _short(profile: Profile, reading: Reading, room: int, counted: Footprint | None) -> str:
    """Why it does not fit, with the numbers; nothing where it does."""
    asked = need(profile, reading)
    if asked > room:
        return f"it asks for {gib(asked)} of {gib(reading.capacity)}, of which {gib(reading.capacity - room)} stay free"
    if counted is None or counted.fits:
        return ""
    taken = f"weights take {gib(counted.weights)}, work {gib(counted.work)}"
    if counted.given and counted.holds_window:
        return f"{taken}, the KV cache that args set {gib(counted.given)}, of {gib(counted.budget)}"
    if not counted.longest:
        return f"{taken}, which leaves no KV cache in {gib(counted.budget)}"
    return f"the KV cache has room for {counted.longest} tokens of one request, max_model_len is {counted.window}"


def _mends(profile: Profile, reading: Reading, room: int, counted: Footprint | None) -> Iterator[Mend]:
    """Alternatives, each of which alone makes `profile` fit."""
    modest = need(profile, reading) <= room
    largest = [*largest_asked(profile, reading, room)]
    if counted is None:
        yield largest[0]
        return
    if modest:
        yield from _shorter({}, profile, reading, counted)
    least = size_holding(profile, counted.least, reading)
    bigger = [_asking(profile, least, reading, room)] if modest else largest
    good = [mend for mend in bigger if least <= room and _with(profile, mend, reading, counted).fits]
    yield from good[:1]
    if not good:
        yield from itertools.islice(_both(profile, reading, largest, counted), 1)


def _both(profile: Profile, reading: Reading, largest: Sequence[Mend], counted: Footprint) -> Iterator[Mend]:
    """All that the card can give, and a shorter max_model_len."""
    for mend in largest:
        yield from _shorter(mend, profile, reading, _with(profile, mend, reading, counted))


def _shorter(mend: Mend, profile: Profile, reading: Reading, counted: Footprint) -> Iterator[Mend]:
    """`mend` with the longest max_model_len that then fits, rounded down to what a person would write."""
    longest = min(counted.longest or 0, counted.window)
    longest -= longest % (1024 if longest >= 4096 else 1)
    shorter = {**mend, "max_model_len": longest}
    if longest and _with(profile, shorter, reading, counted).fits:
        yield shorter


def largest_asked(profile: Profile, reading: Reading, room: int) -> Iterator[Mend]:
    """Settings that ask for all that the device can give, those that the profile uses first."""
    share = math.floor(room / reading.capacity * 100) / 100 if reading.capacity else 0
    if profile.device == "gpu" and profile.vram is None and share > 0:
        yield {"gpu_memory_utilization": share}
    yield {"memory" if profile.device == "cpu" else "vram": room - room % MIB}


def size_holding(profile: Profile, budgeted: int, reading: Reading) -> int:
    """The size to ask for, in whole MiB, so that vLLM may take `budgeted`: what CUDA does not see, and what is
    cut from the fraction, come on top."""
    budgeted = math.ceil(budgeted / known_share(profile, reading)) + reading.capacity // 10_000 + 1
    return budgeted + -budgeted % MIB


def _asking(profile: Profile, size: int, reading: Reading, room: int) -> Mend:
    """Settings that ask for `size` bytes: by the key that the profile uses, where that is fine enough."""
    if profile.device == "cpu":
        return {"memory": size}
    share = math.ceil(size / reading.capacity * 100) / 100 if reading.capacity else 1.0
    if profile.vram is None and math.ceil(reading.capacity * share) <= room:
        return {"gpu_memory_utilization": share}
    return {"vram": size}


def mended(profile: Profile, mend: Mend) -> Profile:
    """`profile` with the settings of `mend`; vram takes the place of gpu_memory_utilization."""
    cleared = {"gpu_memory_utilization": None} if "vram" in mend else {}
    return profile.model_copy(update={**cleared, **mend})


def _with(profile: Profile, mend: Mend, reading: Reading, counted: Footprint) -> Footprint:
    window = int(mend.get("max_model_len", counted.window))
    return replace(counted, budget=budget(mended(profile, mend), reading), window=window)


def _spread(profile: Profile, known: Known, reading: Reading, room: int) -> str:
    """How many cards of this size it would take, where no setting helps."""
    if profile.device == "cpu" or known.checkpoint is None:
        return ""
    for count in (2, 4, 8):
        wider = profile.model_copy(update={"gpus": tuple(range(count * profile.pipeline_parallel))})
        if wider.tensor_parallel <= profile.tensor_parallel or _clash(wider, known.checkpoint):
            continue
        counted, _ = _counted(wider, known, (reading,))
        if counted and size_holding(wider, counted.least, reading) <= room:
            return f"; over {len(wider.gpus)} such GPUs it would fit"
    return "; no setting mends that here"


UNCOUNTED = [
    "--speculative-config",
    "--enable-lora",
    "--hf-overrides",
    "--cpu-offload-gb",
    "--data-parallel-size",
    "--decode-context-parallel-size",
    "--kv-cache-dtype-skip-layers",
    "--num-gpu-blocks-override",
]
"""vLLM's flags that change what is held, and are not counted."""


def _notes(profile: Profile) -> tuple[str, ...]:
    return tuple(f"{flag} is not counted" for flag in UNCOUNTED if option(profile.args, flag) is not None)
