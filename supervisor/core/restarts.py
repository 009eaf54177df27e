"""When a failed engine may try again: verdict, delay and a reason for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from supervisor.config import Restarts
from supervisor.core.failures import Failure, FailureClass


@dataclass(frozen=True, slots=True)
class Verdict:
    """`delay` in seconds; None means never, until a person acts."""

    delay: float | None
    reason: str


NOT_COUNTED = frozenset({FailureClass.CONTENTION, FailureClass.ADDRESS_TAKEN})
"""Not the engine's fault: others were there first, and the next start finds another place or other circumstances."""


def decide(policy: Restarts, failures: Sequence[float], failure: Failure, luck: float) -> Verdict:
    """What follows a failure. `failures`: when the engine failed since its last long ready time, seconds,
    oldest first, this one included and last where it counts. `luck`: 0 to 1, how much of the jitter is taken off.

    The delay doubles from `first_delay` to `max_delay`; jitter only ever shortens it, so that delays
    before jitter are monotone and the cap holds.
    """
    if failure.kind is FailureClass.ADDRESS_TAKEN:
        return Verdict(0.0, f"{failure.message}; tried again at once with another")
    if failure.kind is FailureClass.CONTENTION:
        return Verdict(
            policy.first_delay, f"{failure.message}; looked at again in {policy.first_delay:.0f} s"
        )
    if failure.kind is FailureClass.IMPOSSIBLE:
        return Verdict(None, f"not tried again until its configuration changes: {failure.message}")
    now = failures[-1]
    recent = sum(1 for at in failures if at >= now - policy.within)
    if recent >= policy.give_up_after:
        minutes = policy.within / 60
        return Verdict(None, f"failed {recent} times in {minutes:g} min, given up: {failure.message}")
    if failure.kind is FailureClass.OUT_OF_MEMORY and not failure.serving:
        return Verdict(policy.max_delay, f"{failure.message}; next try in {policy.max_delay:.0f} s at most")
    base = min(policy.first_delay * 2 ** (len(failures) - 1), policy.max_delay)
    delay = base * (1 - policy.jitter * luck)
    return Verdict(delay, f"{failure.message}; next try in {delay:.0f} s")
