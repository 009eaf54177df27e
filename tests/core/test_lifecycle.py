"""The table of states: what is in it leads where it says, and what is not raises."""

from __future__ import annotations

import itertools

import pytest

from supervisor.core.lifecycle import HOLDING, LIVE, IllegalStep, State, Step, advance

ROUND = (
    (Step.RESERVE, State.RESERVED),
    (Step.SPAWN, State.STARTING),
    (Step.SERVE, State.READY),
    (Step.DRAIN, State.DRAINING),
    (Step.SLEEP, State.SLEEPING),
    (Step.WAKE, State.WAKING),
    (Step.SERVE, State.READY),
    (Step.DRAIN, State.DRAINING),
    (Step.STOP, State.STOPPING),
    (Step.EXIT, State.SETTLING),
    (Step.SETTLE, State.COLD),
)


def leads() -> dict[tuple[Step, State], State]:
    """Every pair that the table has."""
    found = {}
    for step, state in itertools.product(Step, State):
        try:
            found[step, state] = advance(state, step)
        except IllegalStep:
            continue
    return found


def test_once_round() -> None:
    state = State.COLD
    for step, expected in ROUND:
        state = advance(state, step)
        assert state is expected


def test_draining_is_one_way() -> None:
    ways_out = {after for (_, before), after in leads().items() if before is State.DRAINING}
    assert ways_out == {State.SLEEPING, State.STOPPING, State.SETTLING}


def test_only_settling_lets_go_of_memory_that_a_tree_has_held() -> None:
    ends = {
        (before, after) for (_, before), after in leads().items() if before in LIVE and after not in HOLDING
    }
    assert ends == {(State.ADOPTING, State.COLD)}, "which was never ours, and is let alone"
    assert {before for (step, before) in leads() if step is Step.EXIT} == LIVE


def test_what_is_not_in_the_table_raises_and_says_so() -> None:
    with pytest.raises(IllegalStep, match="cannot serve an engine that is cold"):
        advance(State.COLD, Step.SERVE)
