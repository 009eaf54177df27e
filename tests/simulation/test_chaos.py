"""Every seed is hours of trouble in virtual time, every invariant checked after every event.

A seed that fails names itself; `python -m tests.simulation.replay SEED` plays it again with its history.
"""

from __future__ import annotations

import pytest

from tests.simulation.replay import fault
from tests.simulation.scenario import Scenario

SEEDS = range(200)


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_goes_wrong_every_invariant_holds_and_it_ends_at_rest(seed: int) -> None:
    found = fault(seed)
    assert found is None, found


def test_a_seed_is_one_history() -> None:
    first, second = Scenario(3), Scenario(3)
    first.play()
    second.play()
    assert repr(first.history) == repr(second.history)
