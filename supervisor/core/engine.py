"""One profile's engine: its record in the core. Owned and changed by the fleet alone."""

from __future__ import annotations

from dataclasses import dataclass, field

from supervisor.config import Profile
from supervisor.core.failures import Failure
from supervisor.core.ledger import Claim
from supervisor.core.lifecycle import COMING, HOLDING, LEAVING, RESTLESS, State, Step, advance
from supervisor.core.progress import Progress

FIRST_GUESS_LOAD = 60.0
"""Seconds a load is taken to last before one was measured."""


@dataclass(slots=True)
class Engine:
    """`wanted` and `state` are two fields: what should be, and what is."""

    profile: Profile
    state: State = State.COLD
    incarnation: str | None = None
    wanted: bool = False
    """Someone asked for it: an operator, or the restart after a crash while serving."""
    since: float = 0.0
    """When the present state was entered."""
    deadline: float | None = None
    """When the present state must be looked at again."""

    devices: tuple[str, ...] = ()
    reserved: dict[str, int] = field(default_factory=dict)
    measured: dict[str, int] = field(default_factory=dict)
    """Bytes that its tree holds by device, from the last survey."""
    before: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """Device -> (used, measured, unattributed) when the stop began: what settling is proven against."""

    leases: set[str] = field(default_factory=set)
    idle_since: float | None = None
    last_used: float = 0.0
    start_tickets: list[str] = field(default_factory=list)
    stop_tickets: list[str] = field(default_factory=list)

    progress: Progress | None = None
    loading_since: float | None = None
    load_seconds: float | None = None
    was_loading: bool = False
    """The stop began before it was ready: vLLM then swallows the first SIGTERM."""
    retired: bool = False
    """It goes because that was decided: a crash on the way out starts nothing again."""
    terminated: int = 0
    """SIGTERMs sent to this incarnation."""
    gone_at: float | None = None
    """When the last process of the tree was gone."""
    survivors: tuple[int, ...] = ()

    failure: Failure | None = None
    """Why this incarnation ended; decides what follows settling."""
    last_failure: Failure | None = None
    last_reason: str | None = None
    """The restart policy's words."""
    failures: list[float] = field(default_factory=list)
    starts: int = 0

    @property
    def name(self) -> str:
        return self.profile.name

    @property
    def free_slots(self) -> int:
        return self.profile.max_concurrent - len(self.leases) if self.state is State.READY else 0

    @property
    def room(self) -> int:
        """How many may wait for it: its queue, and, until it is ready, the slots that it will bring."""
        slots = 0 if self.state is State.READY else self.profile.max_concurrent
        return self.profile.max_queue + slots

    @property
    def is_coming(self) -> bool:
        return self.state in COMING

    @property
    def eta(self) -> float:
        """Seconds that a cold start is expected to take."""
        return self.load_seconds or FIRST_GUESS_LOAD

    def step(self, step: Step, now: float) -> None:
        self.state = advance(self.state, step)
        self.since = now
        self.deadline = None

    def claims(self) -> dict[str, Claim]:
        """What it holds on each device; nothing unless its state holds memory."""
        if self.state not in HOLDING:
            return {}
        return {
            device: Claim(
                profile=self.name,
                reserved=size,
                measured=self.measured.get(device),
                restless=self.state in RESTLESS,
                going=self.state in LEAVING and self.state is not State.DRAINING,
            )
            for device, size in self.reserved.items()
        }

    def clear(self) -> None:
        """Back to holding nothing: the incarnation is over."""
        self.incarnation = None
        self.devices = ()
        self.reserved.clear()
        self.measured.clear()
        self.before.clear()
        self.progress = self.loading_since = self.idle_since = None
        self.terminated, self.gone_at, self.survivors = 0, None, ()
        self.was_loading = self.retired = False

    def __repr__(self) -> str:
        return f"<{self.name} {self.state} {self.incarnation or '-'} {len(self.leases)} in flight>"
