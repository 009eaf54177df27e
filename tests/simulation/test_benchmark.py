"""What llmd's scheduling is for, held against the policies people use: virtual time, so the same on any machine."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest

from benchmarks.scheduling import TRACES, compare
from supervisor.config import Server

SEED = 1
OWN = ("llmd, with sleep", "llmd")
CLEARLY = 0.7
"""Of the best other policy's p95: 30 % less."""


@cache
def played(trace: str) -> dict[str, dict[str, Any]]:
    return compare(TRACES[trace](random.Random(SEED)), SEED)


def refused(found: dict[str, Any]) -> int:
    return int(found["interactive"]["refused"] + found["batch"]["refused"])


def best_of_others(trace: str, *, fair: bool) -> float:
    """The least p95 of interactive requests in seconds; `fair`: of policies that refused nobody."""
    others = (found for policy, found in played(trace).items() if policy not in OWN)
    return min(found["interactive"]["p95_s"] for found in others if not (fair and refused(found)))


@pytest.mark.parametrize("trace", TRACES)
def test_with_sleep_nobody_interactive_waits_longer_than_under_the_best_other_policy(trace: str) -> None:
    assert played(trace)["llmd, with sleep"]["interactive"]["p95_s"] <= best_of_others(trace, fair=False)


@pytest.mark.parametrize("trace", TRACES)
def test_without_sleep_it_is_as_good_as_the_best_that_refuses_nobody(trace: str) -> None:
    assert played(trace)["llmd"]["interactive"]["p95_s"] <= best_of_others(trace, fair=True)


def test_sleep_is_clearly_better_on_half_of_the_traces_at_least() -> None:
    better = [
        trace
        for trace in TRACES
        if played(trace)["llmd, with sleep"]["interactive"]["p95_s"]
        <= CLEARLY * best_of_others(trace, fair=True)
    ]
    assert len(better) >= 3, better


@pytest.mark.parametrize("trace", TRACES)
@pytest.mark.parametrize("policy", OWN)
def test_nobody_is_refused_or_waits_past_the_bound(trace: str, policy: str) -> None:
    found = played(trace)[policy]
    assert refused(found) == 0
    for kind in ("interactive", "batch"):
        assert (found[kind]["max_s"] or 0.0) < Server().max_wait


def test_the_night_is_a_mode() -> None:
    modes = TRACES["the day and its night run"](random.Random(SEED)).modes
    assert modes["night"].warm == ("72b_dual",)
