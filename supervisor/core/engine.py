"""One profile's engine: its record in the core. Owned and changed by the fleet alone."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from supervisor.config import Profile
from supervisor.core.devices import HOST
from supervisor.core.eviction import Rate
from supervisor.core.failures import Failure
from supervisor.core.learned import Learned
from supervisor.core.ledger import Claim
from supervisor.core.lifecycle import COMING, HOLDING, LEAVING, RESTLESS, State, Step, advance
from supervisor.core.progress import Progress
from supervisor.core.replies import Replies
from supervisor.core.routing import Ask

FIRST_GUESS_LOAD = 60.0
"""Seconds a load is taken to last before one was measured."""

FIRST_GUESS_WAKE = 3.0
"""Seconds; an 8B model woke from level 1 in about 2."""

FIRST_GUESS_SERVICE = 10.0
"""Seconds that a request is taken to last before one was measured."""


class Granted(msgspec.Struct, frozen=True, gc=False):
    """A lease that was given: to whom, on what, and the tokens it was taken to need."""

    profile: str
    incarnation: str
    source: str
    prompt: int
    output: int
    at: float
    letters: int | None = None


class Before(NamedTuple):
    """A device when the stop began, or before the start, in bytes."""

    rest: int | None
    """In use there, but by our other engines and by neighbours with a name; None where it could not be read, or in
    parts that are not of one moment: less than its own."""
    measured: int
    """What of that was its own."""


@dataclass(slots=True)
class Engine:
    """`wanted` and `state` are two fields: what should be, and what is."""

    profile: Profile
    state: State = State.COLD
    since: float = 0.0
    """When the present state was entered."""
    deadline: float | None = None
    """When it must be looked at again."""

    # What people and the calendar want of it

    wanted: bool = False
    """Someone asked for it: an operator, or the restart after a crash while serving."""
    patient_until: float = -math.inf
    """How long its start waits for its place: the calendar gives it time, a person is told at once."""
    foreseen_at: float | None = None
    """When its weights were last read ahead."""
    pinned_by_hand: bool = False
    """A person asked that it stays; until it is stopped, or that word is taken back."""
    start_tickets: list[str] = field(default_factory=list)
    stop_tickets: list[str] = field(default_factory=list)
    """Operators' questions that are answered when it is ready, and when it has stopped."""

    # What requests make of it

    leases: dict[str, int] = field(default_factory=dict)
    """Lease -> KV cache tokens that it may come to need."""
    promised: int = 0
    """The sum of those."""
    ready_since: float = 0.0
    last_used: float = 0.0
    rate: Rate = field(default_factory=Rate)
    ageing: float = 0.0
    """The fleet's ageing term when it was last asked for."""
    service: float | None = None
    """Seconds that a request holds its lease, a moving mean."""
    replies: Replies = field(default_factory=Replies)

    # The present incarnation: over with `clear`

    incarnation: str | None = None
    devices: tuple[str, ...] = ()
    reserved: dict[str, int] = field(default_factory=dict)
    """Bytes that are promised to it by device."""
    measured: dict[str, int] = field(default_factory=dict)
    """Bytes that its tree holds by device, from the last survey."""
    before: dict[str, Before] = field(default_factory=dict)
    """Device -> what settling is proven against."""
    progress: Progress | None = None
    loading_since: float | None = None
    """When it began to load or to wake."""
    kv_tokens: int | None = None
    """What its KV cache holds, from its log."""
    proven: bool = False
    """It has served: its end is a crash, no failed start."""
    idle_since: float | None = None
    squeezed: str | None = None
    """Why it may not be given more requests although it is ready: others have taken its headroom."""

    going_to_sleep: bool = False
    asleep: int = 0
    """Sleep level, 0 while awake."""
    slept_at: float | None = None
    """When it answered that it sleeps: what it holds is told by readings taken from then on."""
    settled: bool = False
    """Its memory was seen to have come back after it fell asleep."""
    lain: dict[str, int] = field(default_factory=dict)
    """What was promised to it by device while it slept, from the decision to wake it until it is told to."""

    retired: bool = False
    """It goes because that was decided: a crash on the way out starts nothing again."""
    was_loading: bool = False
    """The stop began before it was ready: vLLM then swallows the first SIGTERM."""
    terminated: int = 0
    """SIGTERMs that it was sent."""
    gone_at: float | None = None
    """When the last process of the tree was gone."""
    survivors: tuple[int, ...] = ()
    """Processes that outlive their kill."""

    # How incarnations end

    outdated: bool = False
    """What it was started with is no longer configured: with this incarnation the whole record is over."""
    failure: Failure | None = None
    """Why this incarnation ended; decides what follows settling."""
    last_failure: Failure | None = None
    last_reason: str | None = None
    """The restart policy's words, or why it could not be started."""
    reasoned_at: float | None = None
    """When that was."""
    left_because: str | None = None
    """Why it was last taken down."""
    failures: list[float] = field(default_factory=list)
    """When those were that count for the restart policy."""
    starts: int = 0

    # What was learned of it

    learned: Learned = field(default_factory=Learned)
    formerly: Learned | None = None
    """What was learned under the version of vLLM before the present one."""
    kept: Learned = field(default_factory=Learned)
    """What of it was last ordered to be remembered."""
    versions: dict[str, Learned] = field(default_factory=dict)
    """What was learned under other versions, for whoever goes back to one."""
    drifts: set[str] = field(default_factory=set)
    """In what it was said that the present version is far off the one before."""

    def recall(self, known: Sequence[Learned]) -> None:
        """Take up what was learned earlier, by version, the newest first."""
        if known:
            self.learned = self.kept = known[0]
            self.versions = {record.version: record for record in known if record.version}

    @property
    def name(self) -> str:
        return self.profile.name

    @property
    def pinned(self) -> bool:
        """Neither evicted nor put to bed when idle."""
        return self.profile.pin or self.pinned_by_hand

    @property
    def places(self) -> set[str]:
        """Devices whose memory it must return: its own, and any other that it was seen on."""
        return {*self.devices, *self.before}

    @property
    def expected(self) -> Learned:
        """What to expect of it: as measured with its version, else with the one before."""
        return self.learned if self.formerly is None else self.learned.or_else(self.formerly)

    @property
    def is_to_stop(self) -> bool:
        """It sleeps, and its stop is decided: it is not woken any more."""
        return self.state is State.SLEEPING and self.settled and self.retired and not self.going_to_sleep

    @property
    def weights(self) -> int | None:
        """Bytes, from its log."""
        return self.expected.weights

    @property
    def residue(self) -> dict[str, int]:
        """Bytes that it holds by device while asleep."""
        kept = self.lain or self.reserved
        return (
            {device: self.measured.get(device, size) for device, size in kept.items()} if self.asleep else {}
        )

    @property
    def host_need(self) -> int:
        """Bytes of host memory that level 1 takes for its weights; told too high where they are not known."""
        return self.weights or sum(size for device, size in self.reserved.items() if device != HOST)

    @property
    def slots(self) -> int:
        """Requests that it takes at a time."""
        return self.profile.max_concurrent if self.learned.rung is None else self.learned.rung

    @property
    def sleeps(self) -> bool:
        """Whether it may be put to sleep; where that failed before it is stopped instead."""
        return self.profile.sleep and not self.learned.sleepless

    @property
    def is_serving(self) -> bool:
        """Ready, and given requests."""
        return self.state is State.READY and not self.squeezed

    @property
    def has_room(self) -> bool:
        """Whether it could take another request."""
        return self.state is State.READY and not self.squeezed and len(self.leases) < self.slots

    def admits(self, ask: Ask) -> bool:
        """Whether it can take this request now without vLLM having to preempt another."""
        if not self.has_room:
            return False
        if self.kv_tokens is None or not self.leases:
            return True
        return self.promised + self.needs(ask)[1] <= self.kv_tokens

    def needs(self, ask: Ask) -> tuple[int, int]:
        """(tokens that a reply may have, tokens that it may come to hold in the KV cache).

        A reply has the usual, no more than asked for; none when pooling. vLLM clamps both together to the context.
        """
        profile, output = self.profile, 0
        if profile.task == "generate":
            output = self.replies.usual
            if ask.max_tokens is not None and ask.max_tokens < output:
                output = ask.max_tokens
        wanted, window = ask.tokens + output, profile.max_model_len
        return output, wanted if window is None or wanted < window else window

    def take(self, lease: str, tokens: int) -> None:
        """`tokens` of its KV cache are promised to a request from now on."""
        self.leases[lease] = tokens
        self.promised += tokens

    def drop(self, lease: str) -> None:
        """It is over."""
        self.promised -= self.leases.pop(lease, 0)

    def drop_all(self) -> None:
        self.leases.clear()
        self.promised = 0

    @property
    def room(self) -> int:
        """How many may wait for it: its queue, and, until it is ready, the slots that it will bring."""
        return self.profile.max_queue + (0 if self.state is State.READY else self.slots)

    @property
    def is_coming(self) -> bool:
        return self.state in COMING

    @property
    def eta(self) -> float:
        """Seconds that a cold start is expected to take."""
        return self.seconds_from(0)

    def seconds_from(self, level: int) -> float:
        """Until it is ready from asleep at `level`, or, from 0, from cold; guessed where it was never measured."""
        known = self.measured_from(level)
        if known is not None:
            return known
        return self.eta if level == 2 else (FIRST_GUESS_LOAD, FIRST_GUESS_WAKE)[level]

    def measured_from(self, level: int) -> float | None:
        """The same, None where it was never measured."""
        known = self.expected
        return {0: known.start, 1: known.wake, 2: known.reload}[level]

    def seconds_left(self, now: float) -> float:
        """Until it is ready if it begins to come up now, or has begun; negative where it is overdue."""
        return self.seconds_from(self.asleep) - self.elapsed(now)

    def put_off(self, now: float) -> float:
        """Seconds until it may be tried again after a failure."""
        return max(0.0, self.deadline - now) if self.state is State.BACKOFF and self.deadline else 0.0

    def elapsed(self, now: float) -> float:
        """Seconds since it began to load or to wake; 0 where it does neither."""
        return now - self.loading_since if self.is_coming and self.loading_since is not None else 0.0

    @property
    def way_back(self) -> float:
        """Seconds to be ready again once it has made room: from level 1 where it would sleep, else from cold."""
        return self.seconds_from(1 if self.sleeps else 0)

    @property
    def expected_service(self) -> float:
        return FIRST_GUESS_SERVICE if self.service is None else self.service

    def idle_seconds(self, now: float) -> float | None:
        """Since its last request ended; None while it has some, or never came up."""
        return None if self.leases or self.idle_since is None else round(now - self.idle_since, 1)

    def served(self, seconds: float) -> None:
        """A request was over after `seconds`."""
        self.service = seconds if self.service is None else 0.9 * self.service + 0.1 * seconds

    def want(self, until: float) -> None:
        """Start it, as soon as there is a place for it, until then at the latest."""
        self.wanted, self.patient_until = True, until

    def give_up_wanting(self) -> None:
        self.wanted, self.patient_until = False, -math.inf

    def give_reason(self, reason: str | None, now: float) -> None:
        """Keep the words with their moment: the numbers in them soon stop being true."""
        self.last_reason, self.reasoned_at = reason, None if reason is None else now

    def step(self, step: Step, now: float) -> None:
        self.state = advance(self.state, step)
        self.since = now
        self.deadline = None

    def holds(self, on: Collection[str] | None = None) -> bool:
        """Whether memory is promised to it: anywhere, or on one of these devices."""
        return self.state in HOLDING and (on is None or not self.reserved.keys().isdisjoint(on))

    def held_on(self, device: str) -> int:
        """Bytes that it held there at the last reading; once its tree is gone, what it has not been seen to return."""
        if self.gone_at is not None:
            return self.before[device].measured if device in self.before else 0
        if not self.measured:  # it had no process then
            return 0
        return self.measured.get(device, self.reserved.get(device, 0))

    def returns_before(self, other: Engine) -> bool:
        """Both their trees are gone, and what comes back is taken for its own first: nobody can tell them apart, but
        who has been given up is the likelier to keep it."""
        if self.gone_at is None or other.gone_at is None:
            return False
        return (self.deadline is None, self.gone_at) < (other.deadline is None, other.gone_at)

    def claims(self) -> dict[str, Claim]:
        """What it holds on each device; nothing unless its state holds memory."""
        if self.state not in HOLDING:
            return {}
        falling = self.state is State.SLEEPING and not self.settled
        restless = self.state in RESTLESS or falling
        going = falling or (self.state in LEAVING and self.state is not State.DRAINING)
        return {
            device: Claim(self.profile.name, size, self.measured.get(device), restless, going)
            for device, size in self.reserved.items()
        }

    def clear(self) -> None:
        """Back to holding nothing: the incarnation is over."""
        self.incarnation, self.devices = None, ()
        for held in (self.reserved, self.measured, self.before, self.lain):
            held.clear()
        self.progress = self.loading_since = self.kv_tokens = self.idle_since = self.squeezed = None
        self.proven = self.going_to_sleep = self.settled = self.retired = self.was_loading = False
        self.asleep, self.slept_at = 0, None
        self.terminated, self.gone_at, self.survivors = 0, None, ()

    def __repr__(self) -> str:
        return f"<{self.name} {self.state} {self.incarnation or '-'} {len(self.leases)} in flight>"
