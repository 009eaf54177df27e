"""What happened: the facts that the shell reports to the core, in the past tense.

Times inside events are monotonic seconds. `incarnation` names one process tree; facts about an incarnation
that is no longer the profile's current one are ignored by the core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from supervisor.config import Config
from supervisor.core.devices import Survey
from supervisor.core.learned import Learned
from supervisor.core.peer import Listed
from supervisor.core.progress import Progress
from supervisor.core.routing import Ask


class Arrived(msgspec.Struct, frozen=True, gc=False):
    """A request asks for a lease; it is willing to wait `patience` seconds. `at_once`: not at all, it comes again
    by a way on which waiting is possible."""

    lease: str
    ask: Ask
    patience: float
    at_once: bool = False


class Left(msgspec.Struct, frozen=True, gc=False):
    """A request is over, or its client gave up waiting. Exactly one per lease that was not refused.

    The tokens are None where the engine did not tell.
    """

    lease: str
    prompt: int | None = None
    output: int | None = None


@dataclass(frozen=True, slots=True)
class DevicesRead:
    """All devices as read together.

    `measured`: bytes that each incarnation's tree holds, by device. A device is missing where it cannot be
    told. `ours`: every PID of our trees, so that the rest can be called foreign.
    """

    survey: Survey
    measured: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    ours: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class XidReported:
    """The driver reported an error of a GPU. `xid`: its number in NVIDIA's catalogue."""

    device: str
    xid: int


@dataclass(frozen=True, slots=True)
class Ticked:
    """The deadline that the core had published has come."""


@dataclass(frozen=True, slots=True)
class SpawnFailed:
    incarnation: str
    reason: str


@dataclass(frozen=True, slots=True)
class Progressed:
    """The engine's log moved: it is alive, and perhaps at a new stage."""

    incarnation: str
    progress: Progress | None


@dataclass(frozen=True, slots=True)
class Told:
    """What the engine said of itself: in its log the bytes of its weights, the tokens that its KV cache holds and
    CUDA's totals of its GPUs by their rank, asked for it the version of its vLLM."""

    incarnation: str
    weights: int | None = None
    kv_tokens: int | None = None
    version: str | None = None
    totals: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Slept:
    """The engine answered that it sleeps, now or when it was found; whether its memory came back is for the
    devices to show."""

    incarnation: str


@dataclass(frozen=True, slots=True)
class SleepFailed:
    incarnation: str
    reason: str


@dataclass(frozen=True, slots=True)
class WakeFailed:
    incarnation: str
    reason: str


@dataclass(frozen=True, slots=True)
class ProbePassed:
    """`/health` said 200 and one tiny request of the right task was answered."""

    incarnation: str


@dataclass(frozen=True, slots=True)
class Unhealthy:
    """A ready engine failed its health probes."""

    incarnation: str
    reason: str


@dataclass(frozen=True, slots=True)
class Exited:
    """The leader is gone. `code` is None where it was not our child. `tail`: the log's last lines."""

    incarnation: str
    code: int | None
    tail: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TreeGone:
    """No process of the tree is left."""

    incarnation: str


@dataclass(frozen=True, slots=True)
class Unkillable:
    """These processes of the tree outlived SIGKILL; the shell goes on trying."""

    incarnation: str
    pids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """An engine of an earlier daemon, proven ours. `alive`: its leader runs; else only leftovers may.

    `asleep`: the level at which it may sleep, 0 where it was never put to sleep. `waking`: it was being woken.
    `pinned`: as the engine's.
    """

    profile: str
    incarnation: str
    devices: tuple[str, ...]
    alive: bool
    asleep: int = 0
    waking: bool = False
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class AdoptionFailed:
    """The tree is not ours to touch after all; it is reported and left alone."""

    incarnation: str
    reason: str


@dataclass(frozen=True, slots=True)
class StartAsked:
    """`pin`: from now on it is to stay, or no longer; None leaves that as it is."""

    ticket: str
    profile: str
    pin: bool | None = None


@dataclass(frozen=True, slots=True)
class WarmAsked:
    """The calendar wants this profile ready before anybody asks."""

    profile: str


@dataclass(frozen=True, slots=True)
class StopAsked:
    ticket: str
    profile: str
    at_once: bool = False


@dataclass(frozen=True, slots=True)
class SleepAsked:
    """An operator wants an engine to give up its GPU and keep its process."""

    ticket: str
    profile: str


@dataclass(frozen=True, slots=True)
class ReleaseAsked:
    """An operator writes off memory that did not come back on a quarantined GPU."""

    ticket: str
    gpu: int | str


@dataclass(frozen=True, slots=True)
class LoanAsked:
    """Another program wants `size` bytes on each of `gpus` for `ttl` seconds. `name` is its ticket, too."""

    name: str
    borrower: str
    gpus: tuple[int | str, ...]
    size: int
    ttl: float


@dataclass(frozen=True, slots=True)
class LoanEnded:
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class TicketDropped:
    """Whoever asked has gone; the start or stop itself goes on."""

    ticket: str


@dataclass(frozen=True, slots=True)
class PeerHeard:
    """A peer answered with the models that it serves."""

    peer: str
    listed: Mapping[str, Listed]


@dataclass(frozen=True, slots=True)
class PeerLost:
    """A peer did not answer, or not as it should."""

    peer: str
    reason: str


@dataclass(frozen=True, slots=True)
class ModeChanged:
    """`until` is for people: wall clock text of when `next_mode` begins, in `next_in` seconds. `forced`: by a
    person, not by the calendar."""

    mode: str | None
    next_mode: str | None = None
    until: str | None = None
    next_in: float | None = None
    forced: bool = False


@dataclass(frozen=True, slots=True)
class Reconfigured:
    """`config` holds from now on. `changes`: the difference in words. `mode`: what the calendar says under it, None
    where it says the same. `learned`: profile -> what is known of engines with its arguments, by version, the newest first."""

    config: Config
    changes: tuple[str, ...] = ()
    mode: ModeChanged | None = None
    learned: Mapping[str, Sequence[Learned]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ShutdownAsked:
    keep_engines: bool


Event = (
    Arrived
    | Left
    | DevicesRead
    | XidReported
    | Ticked
    | SpawnFailed
    | Progressed
    | Told
    | Slept
    | SleepFailed
    | WakeFailed
    | ProbePassed
    | Unhealthy
    | Exited
    | TreeGone
    | Unkillable
    | Found
    | AdoptionFailed
    | StartAsked
    | WarmAsked
    | StopAsked
    | SleepAsked
    | ReleaseAsked
    | LoanAsked
    | LoanEnded
    | TicketDropped
    | PeerHeard
    | PeerLost
    | ModeChanged
    | Reconfigured
    | ShutdownAsked
)
