"""Who must go: the set whose loss costs least, and nobody who need not go."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core import eviction
from supervisor.core.eviction import HALF_LIFE, Rate, Victim, choose, worth

SIZES = {"a": 10, "b": 10, "c": 20, "d": 4}


def frees(needed: int) -> Callable[[frozenset[str]], bool]:
    return lambda names: sum(SIZES[name] for name in names) >= needed


def victims(**worths: float) -> list[Victim]:
    return [Victim(name, value, 0.0) for name, value in worths.items()]


@pytest.mark.parametrize(
    ("needed", "worths", "chosen"),
    [
        (10, {"a": 2.0, "b": 1.0, "c": 3.0}, ("b",)),
        (20, {"a": 2.0, "b": 2.0, "c": 3.0}, ("c",)),  # one dear one is cheaper than two cheap ones
        (20, {"a": 1.0, "b": 1.0, "c": 3.0}, ("a", "b")),
        (4, {"a": 1.0, "d": 1.0}, ("a",)),  # alike: the first by name
        (50, {"a": 1.0, "b": 1.0}, None),  # all of them would not do: nobody goes
        (1, {}, None),
    ],
)
def test_the_cheapest_set_that_frees_enough(
    needed: int, worths: dict[str, float], chosen: tuple[str, ...] | None
):
    assert choose(victims(**worths), frees(needed)) == chosen


def test_of_equal_worth_who_was_used_longest_ago():
    found = choose([Victim("a", 1.0, last_used=50.0), Victim("b", 1.0, last_used=10.0)], frees(10))
    assert found == ("b",)


def test_beyond_what_can_be_enumerated_nobody_is_taken_for_nothing():
    many = [Victim(f"v{n}", float(n), 0.0) for n in range(eviction.EXHAUSTIVE + 5)]
    found = choose(many, lambda names: {"v3", "v12"} <= names)
    assert found == ("v3", "v12")


@given(
    st.dictionaries(
        st.sampled_from("abcdefgh"), st.tuples(st.floats(0, 100), st.integers(1, 24)), max_size=8
    ),
    st.integers(1, 60),
)
def test_what_is_chosen_frees_enough_and_leaving_anyone_out_does_not(
    engines: dict[str, tuple[float, int]], needed: int
):
    def fits(names: frozenset[str]) -> bool:
        return sum(engines[name][1] for name in names) >= needed

    found = choose([Victim(name, value, 0.0) for name, (value, _) in engines.items()], fits)
    if found is None:
        assert not fits(frozenset(engines))
        return
    assert fits(frozenset(found))
    assert not any(fits(frozenset(found) - {name}) for name in found)


def test_worth_is_ageing_and_what_bringing_back_costs_for_what_it_frees():
    assert worth(5.0, rate=0.1, seconds=60.0, gib=20.0) == pytest.approx(5.0 + 0.1 * 60 / 20)


def test_a_rate_fades_by_half_and_counts_a_steady_stream_as_it_is():
    rate = Rate()
    for second in range(20 * int(HALF_LIFE)):
        rate.hit(float(second))
    assert rate.seen(rate.at) == pytest.approx(1.0, rel=0.01)  # one request a second
    assert rate.seen(rate.at + HALF_LIFE) == pytest.approx(0.5, rel=0.01)
