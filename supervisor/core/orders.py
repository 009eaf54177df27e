"""What to do: the core's orders to the shell, in the imperative. The shell obeys and reports back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from supervisor.core.devices import Card
from supervisor.core.learned import Learned
from supervisor.core.routing import Ask, Route
from supervisor.errors import LlmdError


@dataclass(frozen=True, slots=True)
class Spawn:
    """Launch this incarnation. `indices`: CUDA indices, empty on the CPU. `utilization`: vLLM's fraction.
    `slots`: requests at a time, vLLM's --max-num-seqs. `pinned`: as Pin's."""

    profile: str
    incarnation: str
    devices: tuple[str, ...]
    indices: tuple[int, ...]
    utilization: float
    slots: int
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Terminate:
    """SIGTERM to the leader."""

    incarnation: str


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL to the whole tree, again and again until nobody is left; then report TreeGone."""

    incarnation: str


@dataclass(frozen=True, slots=True)
class Sleep:
    """vLLM's sleep mode: level 1 keeps the weights in host memory, level 2 drops them."""

    incarnation: str
    level: int


@dataclass(frozen=True, slots=True)
class Wake:
    """`level`: how deep it sleeps; after 2 its weights must be loaded again. Then probe it as after a start."""

    incarnation: str
    level: int


@dataclass(frozen=True, slots=True)
class Prove:
    """Probe an adopted engine on its socket with its key."""

    incarnation: str


@dataclass(frozen=True, slots=True)
class Watch:
    """It serves: report from now on if its health fails or it stalls."""

    incarnation: str


@dataclass(frozen=True, slots=True)
class LetGo:
    """This one could not be proven ours: watch it no more, and leave it and its record alone."""

    incarnation: str
    why: str


@dataclass(frozen=True, slots=True)
class Pin:
    """Write down that a person pinned this one, or no longer does, for a daemon that adopts it."""

    incarnation: str
    pinned: bool


@dataclass(frozen=True, slots=True)
class ReadAhead:
    """A start of this profile is foreseen: read its weights into the page cache."""

    profile: str


@dataclass(frozen=True, slots=True)
class Forget:
    """This incarnation is over: remove its directory and its record."""

    incarnation: str


@dataclass(frozen=True, slots=True)
class Survey:
    """Read all devices now and report DevicesRead."""


class Routed(msgspec.Struct, frozen=True, gc=False):
    """Where a request that waits, or finds nothing, may go."""

    lease: str
    ask: Ask
    route: Route


class Grant(msgspec.Struct, frozen=True, gc=False):
    """`profile`: or the name of a peer, which has no incarnation. `route`: where else it might have gone, None where
    a Routed has told that."""

    lease: str
    profile: str
    incarnation: str
    reason: str
    ask: Ask
    route: Route | None = None


@dataclass(frozen=True, slots=True)
class Refuse:
    lease: str
    error: LlmdError


@dataclass(frozen=True, slots=True)
class Answer:
    """The end of what an operator asked for: done where `error` is None."""

    ticket: str
    message: str
    error: LlmdError | None = None


@dataclass(frozen=True, slots=True)
class Remember:
    """Keep what was learned of a profile for the next daemon."""

    profile: str
    learned: Learned


@dataclass(frozen=True, slots=True)
class RememberTotal:
    """Keep what CUDA counts on a GPU, bytes, for the next daemon."""

    card: Card
    total: int


@dataclass(frozen=True, slots=True)
class Note:
    """A decision worth a log line."""

    event: str
    profile: str | None
    message: str
    level: str = "INFO"
    facts: Mapping[str, object] = field(default_factory=dict)


Order = (
    Spawn
    | Terminate
    | Kill
    | Sleep
    | Wake
    | Prove
    | Watch
    | LetGo
    | Pin
    | ReadAhead
    | Forget
    | Survey
    | Routed
    | Grant
    | Refuse
    | Answer
    | Remember
    | RememberTotal
    | Note
)
