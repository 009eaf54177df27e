"""The life of an engine: every state, every step, and the table of which step leads where.

One profile has one engine record, which goes round this table for every incarnation:

    COLD -> RESERVED -> STARTING -> READY -> DRAINING -> STOPPING -> SETTLING -> COLD

RESERVED    memory is promised, a fresh reading is awaited, nothing runs yet
STARTING    a process tree exists and loads
READY       it answers requests
DRAINING    no new requests; those in flight end. One-way: new requests queue for the next incarnation
SLEEPING    weights are off the device, the tree lives on; WAKING is the way back, once a fresh reading agrees
STOPPING    the stop ladder is running
SETTLING    the leader is gone; over when the tree is empty and the device shows the memory back
BACKOFF     it failed and waits before another try
IMPOSSIBLE  another try would fail the same way; a person must change something
ADOPTING    a tree left by an earlier daemon is being proven

A pair that is not in the table is a bug in the caller: `advance` raises and nothing changes.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    COLD = "cold"
    RESERVED = "reserved"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    SLEEPING = "sleeping"
    WAKING = "waking"
    STOPPING = "stopping"
    SETTLING = "settling"
    BACKOFF = "backoff"
    IMPOSSIBLE = "impossible"
    ADOPTING = "adopting"


class Step(StrEnum):
    RESERVE = "reserve"
    RELEASE = "release"
    SPAWN = "spawn"
    ADOPT = "adopt"
    SERVE = "serve"
    DRAIN = "drain"
    SLEEP = "sleep"
    WAKE = "wake"
    STOP = "stop"
    EXIT = "exit"
    SETTLE = "settle"
    BACK_OFF = "back off"
    GIVE_UP = "give up"


class Reason(StrEnum):
    """Why an engine is taken down in order."""

    ROOM = "room"
    IDLE = "idle"
    OPERATOR = "operator"
    MODE = "mode"
    ABANDONED = "abandoned"
    SICK = "sick"
    CONFIG = "config"
    SHUTDOWN = "shutdown"


LIVE = frozenset(
    {
        State.STARTING,
        State.READY,
        State.DRAINING,
        State.SLEEPING,
        State.WAKING,
        State.STOPPING,
        State.ADOPTING,
    }
)
"""A leader process is believed to run."""

HOLDING = LIVE | {State.RESERVED, State.SETTLING}
"""Memory is promised to it or not yet proven to be back."""

SERVING = frozenset({State.READY, State.DRAINING})
"""Loaded and awake: it answers requests, and what it holds now is what it needs."""

COMING = frozenset({State.RESERVED, State.STARTING, State.WAKING, State.ADOPTING})
"""On its way to READY."""

LEAVING = frozenset({State.DRAINING, State.STOPPING, State.SETTLING})
"""On its way out; demand that arrives now is for the next incarnation."""

PROFILING = frozenset({State.STARTING, State.WAKING, State.ADOPTING})
"""vLLM is measuring the GPU, or may be where it is not proven yet that it had done so: memory freed by anyone there
would abort it (vllm#56830)."""

RESTLESS = PROFILING | {State.RESERVED, State.STOPPING, State.SETTLING}
"""Its memory is changing: nobody else on the same GPU may start meanwhile (vllm#55827, vllm#56830)."""

STARTABLE = frozenset({State.COLD, State.BACKOFF})

_TABLE: dict[Step, dict[State, State]] = {
    Step.RESERVE: {State.COLD: State.RESERVED, State.BACKOFF: State.RESERVED},
    Step.RELEASE: {
        State.RESERVED: State.COLD,
        State.ADOPTING: State.COLD,
        State.BACKOFF: State.COLD,
        State.IMPOSSIBLE: State.COLD,
        State.WAKING: State.SLEEPING,
    },
    Step.SPAWN: {State.RESERVED: State.STARTING},
    Step.ADOPT: {State.COLD: State.ADOPTING},
    Step.SERVE: {
        State.STARTING: State.READY,
        State.WAKING: State.READY,
        State.ADOPTING: State.READY,
    },
    Step.DRAIN: {State.READY: State.DRAINING},
    Step.SLEEP: {State.DRAINING: State.SLEEPING, State.ADOPTING: State.SLEEPING},
    Step.WAKE: {State.SLEEPING: State.WAKING},
    Step.STOP: dict.fromkeys(LIVE - {State.STOPPING}, State.STOPPING),
    Step.EXIT: dict.fromkeys(LIVE, State.SETTLING),
    Step.SETTLE: {State.SETTLING: State.COLD},
    Step.BACK_OFF: {State.SETTLING: State.BACKOFF},
    Step.GIVE_UP: {State.SETTLING: State.IMPOSSIBLE, State.BACKOFF: State.IMPOSSIBLE},
}


class IllegalStep(Exception):
    """A step that the table does not allow from this state. A bug in llmd, never a user's fault."""


def advance(state: State, step: Step) -> State:
    """The state after `step`. Raises IllegalStep, changing nothing, where the table has no such pair."""
    try:
        return _TABLE[step][state]
    except KeyError:
        raise IllegalStep(f"cannot {step} an engine that is {state}") from None
