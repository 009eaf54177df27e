"""Every seed is hours of trouble in virtual time, every invariant checked after every event.

A seed that fails names itself; `python -m tests.simulation.replay SEED` plays it again with its history.
"""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest

from tests.simulation.replay import MUST_HAPPEN, Played, play
from tests.simulation.scenario import Scenario

SEEDS = range(200)

once = cache(play)


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_goes_wrong_every_invariant_holds_and_it_ends_at_rest(seed: int) -> None:
    found: Played = once(seed)
    assert found.fault is None, found.fault


def test_everything_that_can_happen_takes_part_in_it() -> None:
    """In any 40 seeds: what never comes is proven by nothing."""
    happened = sum((once(seed).happened for seed in SEEDS[:40]), Counter[str]())
    missing = [what for what in MUST_HAPPEN if not happened[what]]
    assert not missing, f"never seen in 40 seeds: {missing}"


def test_a_seed_is_one_history() -> None:
    first, second = Scenario(3), Scenario(3)
    first.play()
    second.play()
    assert repr(first.history) == repr(second.history)
