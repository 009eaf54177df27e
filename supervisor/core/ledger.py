"""What is promised and what is real on every device, and whether another start fits: a verdict with numbers.

vLLM takes `ceil(total x utilization)` on each device at start and refuses unless that much is free at that
moment, so a start's need is known beforehand. Two tests must hold on every device of a profile:

    sum of max(reserved, measured) + foreign + margin + need <= total      nothing is promised twice
    free - unspent of the others                             >= need      and it is there right now

`unspent` is what an engine was promised and has not taken yet. `foreign` is the highest in the last minute
of (used - memory of our own trees): a neighbour that breathes is met at its largest. All sizes are bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple

from supervisor.config import Memory, Profile
from supervisor.core.devices import HOST, Card, Holder, Reading, Survey, gib
from supervisor.core.fit import gpu_reading, needs

FOREIGN_WINDOW = 60.0


class Claim(NamedTuple):
    """What one engine holds on one device. `measured` is None where the driver does not tell."""

    profile: str
    reserved: int
    measured: int | None
    restless: bool = False
    """Its memory is changing: starting, stopping or settling."""
    going: bool = False
    """It gives memory back: what it still holds must not be mistaken for a neighbour's."""

    @property
    def held(self) -> int:
        return max(self.reserved, self.measured or 0)

    @property
    def blurred(self) -> bool:
        """Whether what it has now cannot be told from what others have."""
        return self.going or (self.restless and self.measured is None)

    @property
    def unspent(self) -> int:
        """Promised but not taken yet. Where nothing is measured, all of it counts as taken: the free
        memory that the device shows is then the only truth, and it is tested on its own."""
        return 0 if self.measured is None else max(0, self.reserved - self.measured)


class Demand(NamedTuple):
    """What one profile needs of one device, and what it would be given there beside what is free, in bytes."""

    profile: str
    needed: int
    given: int


Claims = Mapping[str, Sequence[Claim]]
"""Device -> what our engines hold there."""


class Obstacle(StrEnum):
    MISSING = "the host has no such GPU"
    UNREAD = "the devices cannot be read"
    SICK = "the GPU is sick"
    STALE = "the reading is stale"
    QUARANTINED = "the GPU is quarantined"
    TOO_BIG = "it can never fit"
    MEMORY = "the memory is taken"
    RESTLESS = "another engine is starting or stopping there"


PASSING = frozenset({Obstacle.MEMORY, Obstacle.RESTLESS})
"""Obstacles that our own engines may be the cause of, so that waiting or eviction can remove them."""

FINAL = frozenset({Obstacle.MISSING, Obstacle.TOO_BIG})
"""Obstacles that stay until a person changes the host or its configuration."""


@dataclass(frozen=True, slots=True)
class Shortage:
    """Why a start does not fit on one device, in numbers and in words."""

    obstacle: Obstacle
    device: str
    message: str
    need: int = 0
    available: int = 0
    holders: tuple[Holder, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    shortages: tuple[Shortage, ...] = ()

    @property
    def admitted(self) -> bool:
        return not self.shortages

    @property
    def passing(self) -> bool:
        """Nothing but our own engines' memory or movement may stand in the way."""
        return all(shortage.obstacle in PASSING for shortage in self.shortages)

    @property
    def final(self) -> bool:
        """It would be the same at any later time."""
        return any(shortage.obstacle in FINAL for shortage in self.shortages)

    def __str__(self) -> str:
        return "; ".join(shortage.message for shortage in self.shortages) or "fits"


@dataclass(slots=True)
class Sickness:
    """Why a GPU is out of use. `was_lost`: it could not be read since."""

    why: str
    was_lost: bool = False


@dataclass(slots=True)
class Ledger:
    """The last survey, the recent past of foreign memory, and the devices that may not be used."""

    memory: Memory
    survey: Survey = field(default_factory=Survey)
    totals: dict[Card, int] = field(default_factory=dict)
    """GPU -> what CUDA counts there, bytes; those that an engine has told of."""
    ours: frozenset[int] = frozenset()
    _once_ours: frozenset[int] = frozenset()
    """PIDs of ours that are over, as long as the driver lists them: their memory is no neighbour's."""
    _quarantined: dict[str, dict[str, str]] = field(default_factory=dict)
    """Device -> owner -> why."""
    sick: dict[str, Sickness] = field(default_factory=dict)
    """GPUs out of use until they were reset."""
    _foreign: dict[str, deque[tuple[float, int]]] = field(default_factory=dict)

    # Facts in

    def take(self, survey: Survey, ours: frozenset[int]) -> None:
        """From now on this is what the devices show."""
        listed = frozenset(holder.pid for reading in survey.readings for holder in reading.holders)
        self._once_ours = (self._once_ours | self.ours) & listed - ours
        self.survey, self.ours = survey.with_cuda(self.totals), ours

    def look_for_foreign(self, claims: Claims) -> None:
        """In the last survey. A device where memory is on its way back, or promised and not measured yet, is no
        witness."""
        for reading in self.survey.readings:
            claimed = claims.get(reading.device, ())
            if reading.trouble or any(claim.blurred for claim in claimed):
                continue
            held = (claim.reserved if claim.measured is None else claim.measured for claim in claimed)
            samples = self._foreign.setdefault(reading.device, deque())
            samples.append((reading.at, max(0, reading.used - sum(held))))
            while samples[0][0] < reading.at - FOREIGN_WINDOW:
                samples.popleft()

    def unlearn_foreign(self, devices: Collection[str]) -> None:
        """An engine found running there is ours: what was seen before counted its memory as foreign."""
        for device in devices:
            self._foreign.pop(device, None)

    def quarantine(self, device: str, owner: str, why: str) -> None:
        """Nothing starts on `device` until `owner` releases it. `why` in words that name the PIDs."""
        self._quarantined.setdefault(device, {})[owner] = why

    def release(self, device: str, owner: str) -> str | None:
        """Take `owner`'s reason away, and only that; why it was there, None where it was not."""
        reasons = self._quarantined.get(device, {})
        why = reasons.pop(owner, None)
        if not reasons:
            self._quarantined.pop(device, None)
        return why

    # Questions

    @property
    def quarantined(self) -> Mapping[str, str]:
        """Device -> why nothing may start there."""
        return MappingProxyType({d: "; ".join(reasons.values()) for d, reasons in self._quarantined.items()})

    def barred(self, device: str) -> str | None:
        """Why nothing may start there, whatever it shows; None where it may."""
        sick = self.sick.get(device)
        return sick.why if sick else self.quarantined.get(device)

    def reading(self, device: str) -> Reading | None:
        return self.survey.by_device.get(device)

    def foreign(self, device: str) -> int:
        """Bytes that are not ours. Host memory moves too much for a minute's peak: its latest counts."""
        samples = self._foreign.get(device)
        if not samples:
            return 0
        return samples[-1][1] if device == HOST else max(size for _, size in samples)

    def foreign_now(self, device: str) -> int:
        """Bytes that are not ours, at the last reading that could tell."""
        samples = self._foreign.get(device)
        return samples[-1][1] if samples else 0

    def devices_of(self, profile: Profile) -> tuple[str, ...] | None:
        """The devices that `profile` is budgeted on, or None when the host lacks one of its GPUs.

        A GPU without memory of its own (unified) is budgeted against host memory, which then comes first; it is there
        itself, without a size, because only one engine may start on it at a time.
        """
        if profile.device == "cpu":
            return (HOST,)
        found = [self.gpu(ref) for ref in profile.gpus]
        if None in found:
            return None
        cards = [gpu for gpu in found if gpu]
        host = [HOST] if any(gpu.unified for gpu in cards) else []
        return tuple(dict.fromkeys([*host, *(gpu.device for gpu in cards)]))

    def shares_host(self, device: str) -> bool:
        """It is a GPU without memory of its own."""
        reading = self.reading(device)
        return reading is not None and reading.unified

    def gpu(self, ref: int | str) -> Reading | None:
        """The GPU that a profile names by index, UUID or PCI id."""
        return gpu_reading(ref, self.survey)

    def judge(
        self,
        profile: Profile,
        claims: Claims,
        now: float,
        *,
        freed: Mapping[str, int] | None = None,
        own: Mapping[str, int] | None = None,
    ) -> Verdict:
        """Whether `profile` could start, or wake, given what our other engines hold.

        `freed`: bytes by device that engines would give back which `claims` no longer holds. `own`: bytes that
        the engine holds there already, asleep.
        """
        devices = self.devices_of(profile)
        if devices is None:
            return Verdict((self._missing(profile),))
        needed, found = self.needs(profile, devices), []
        for device in devices:
            given = (freed or {}).get(device, 0) + (own or {}).get(device, 0)
            demand = Demand(profile.name, needed.get(device, 0), given)
            found.append(self._judge_device(demand, device, claims.get(device, ()), now))
        return Verdict(tuple(shortage for shortage in found if shortage))

    def needs(self, profile: Profile, devices: Sequence[str]) -> dict[str, int]:
        """Device -> bytes that an engine of `profile` takes there; `devices` are all that it has."""
        return needs(profile, [reading for device in devices if (reading := self.reading(device))])

    def room(self, device: str, claims: Claims, given: int = 0) -> int:
        """Bytes that could be promised there now, beside what `claims` holds; 0 where it cannot be told."""
        reading = self.reading(device)
        if reading is None or reading.trouble:
            return 0
        return self._room(reading, claims.get(device, ()), given)

    def _missing(self, profile: Profile) -> Shortage:
        absent = ", ".join(str(ref) for ref in profile.gpus if self.gpu(ref) is None)
        unread = self.survey.trouble or (None if self.survey.readings else "no device was read yet")
        obstacle, why = Obstacle.UNREAD if unread else Obstacle.MISSING, f"it has {len(self.gpus())} GPUs"
        return Shortage(obstacle, absent, f"{profile.name} wants GPU {absent}, but {unread or why}")

    def gpus(self) -> list[Reading]:
        return [reading for reading in self.survey.readings if reading.index is not None]

    def _judge_device(
        self, demand: Demand, device: str, claimed: Sequence[Claim], now: float
    ) -> Shortage | None:
        reading = self.reading(device)
        if reading is None:
            return Shortage(Obstacle.UNREAD, device, f"{device} cannot be read")
        where = name_of(reading)
        if unfit := self._unfit(reading):
            return unfit
        age = now - reading.at
        if age > self.memory.max_age:
            return Shortage(
                Obstacle.STALE, device, f"{where} was last read {age:.0f} s ago, NVML does not answer"
            )
        short = None if reading.unified else self._judge_memory(demand, reading, claimed)
        return short or self._judge_quiet(reading, claimed)

    def _unfit(self, reading: Reading) -> Shortage | None:
        where = name_of(reading)
        if why := self.barred(reading.device):
            return Shortage(Obstacle.QUARANTINED, reading.device, f"{where} is quarantined: {why}")
        if reading.trouble:
            return Shortage(Obstacle.SICK, reading.device, f"{where}: {reading.trouble}")
        return None

    def _judge_memory(self, demand: Demand, reading: Reading, claimed: Sequence[Claim]) -> Shortage | None:
        where, needed, margin = name_of(reading), demand.needed, self._margin(reading)
        if needed + margin > reading.capacity:
            message = (
                f"{demand.profile} needs {gib(needed)} on {where}, which has {gib(reading.capacity)} in all"
                f" ({gib(margin)} kept free)"
            )
            return Shortage(Obstacle.TOO_BIG, reading.device, message, needed, reading.capacity - margin)
        available = self._room(reading, claimed, demand.given)
        return self._taken(demand, reading, claimed, available) if available < needed else None

    def _judge_quiet(self, reading: Reading, claimed: Sequence[Claim]) -> Shortage | None:
        mover = next((claim for claim in claimed if claim.restless), None)
        if mover is None or reading.device == HOST:
            return None
        message = f"{mover.profile} is starting or stopping on {name_of(reading)}"
        return Shortage(Obstacle.RESTLESS, reading.device, message)

    def _margin(self, reading: Reading) -> int:
        return self.memory.host_floor if reading.device == HOST else self.memory.margin

    def _room(self, reading: Reading, claimed: Sequence[Claim], given: int) -> int:
        promised = sum(claim.held for claim in claimed)
        # what CUDA does not count is in use, by NVML, and so foreign already
        ours = min(reading.capacity, reading.total - self.foreign(reading.device))
        on_paper = ours - promised - self._margin(reading)
        right_now = reading.free + given - sum(claim.unspent for claim in claimed)
        if reading.device == HOST:
            right_now -= self._margin(reading)
        return max(0, min(on_paper, right_now))

    def _taken(self, demand: Demand, reading: Reading, staying: Sequence[Claim], available: int) -> Shortage:
        message = (
            f"{demand.profile} needs {gib(demand.needed)} on {name_of(reading)}, {gib(available)} is available"
            f" of {gib(reading.total)}; held by: {self.holders(reading, staying) or 'nobody (margin)'}"
        )
        others = self.strangers(reading)
        return Shortage(Obstacle.MEMORY, reading.device, message, demand.needed, available, others)

    def holders(self, reading: Reading, claimed: Sequence[Claim]) -> str:
        """Who holds memory there, ours as `claimed`, then strangers, in words; empty where nobody does."""
        held = [f"{claim.profile} {gib(claim.held)}" for claim in claimed]
        held += [
            f"PID {h.pid} {h.name} ({h.user}) {'?' if h.used is None else gib(h.used)}"
            for h in self.strangers(reading)
        ]
        if not held and self.foreign(reading.device):
            held = [f"processes that cannot be named {gib(self.foreign(reading.device))}"]
        return ", ".join(held)

    def squeeze(self, device: str, already: bool) -> str | None:
        """Why engines on `device` should be given no more requests: others hold what activations need.

        Once squeezed it takes half as much again to be let go, so that it does not flap.
        """
        reading, foreign = self.reading(device), self.foreign(device)
        if reading is None or device == HOST or not foreign:
            return None
        wanted = self.memory.headroom * (1.5 if already else 1)
        if reading.free >= wanted:
            return None
        others = ", ".join(f"PID {h.pid} {h.name} ({h.user})" for h in self.strangers(reading)[:3])
        return (
            f"{name_of(reading)} has {gib(reading.free)} free, {gib(self.memory.headroom)} are needed to serve;"
            f" others hold {gib(foreign)}{': ' + others if others else ''}"
        )

    def strangers(self, reading: Reading) -> tuple[Holder, ...]:
        """Processes that are not ours, the largest first."""
        ours = self.ours | self._once_ours
        foreign = (holder for holder in reading.holders if holder.pid not in ours)
        return tuple(sorted(foreign, key=lambda holder: -(holder.used or 0)))


def name_of(reading: Reading) -> str:
    """`GPU 0 (NVIDIA GeForce RTX 3090)` or `host memory`."""
    return reading.name if reading.index is None else f"GPU {reading.index} ({reading.name})"
