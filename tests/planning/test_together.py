"""Maximal sets against every subset tried out."""

from __future__ import annotations

from itertools import chain, combinations, islice

from hypothesis import given
from hypothesis import strategies as st

from supervisor.planning.together import maximal_sets

CARDS = ("gpu:0", "gpu:1")
NEEDS = st.lists(st.dictionaries(st.sampled_from(CARDS), st.integers(1, 10), min_size=1), max_size=7).map(
    lambda found: {f"p{number}": need for number, need in enumerate(found)}
)


def fits(names: tuple[str, ...], needs: dict[str, dict[str, int]], room: dict[str, int]) -> bool:
    return all(sum(needs[name].get(card, 0) for name in names) <= room[card] for card in CARDS)


@given(needs=NEEDS, first=st.integers(0, 12), second=st.integers(0, 12))
def test_the_sets_are_all_those_and_only_those(
    needs: dict[str, dict[str, int]], first: int, second: int
) -> None:
    room = {"gpu:0": first, "gpu:1": second}
    subsets = chain.from_iterable(combinations(needs, size) for size in range(len(needs) + 1))
    good = [set(names) for names in subsets if fits(names, needs, room)]
    expected = [names for names in good if not any(names < other for other in good)]
    found = [set(names) for names in maximal_sets(needs, room)]
    assert sorted(map(sorted, found)) == sorted(map(sorted, expected))


def test_many_small_profiles_are_one_set_at_once() -> None:
    needs = {f"p{number}": {"gpu:0": 1} for number in range(60)}
    assert list(maximal_sets(needs, {"gpu:0": 60})) == [tuple(needs)]


def test_the_first_of_very_many_sets_come_at_once() -> None:
    needs = {f"p{number}": {"gpu:0": 1} for number in range(60)}
    assert len(list(islice(maximal_sets(needs, {"gpu:0": 30}), 100))) == 100


def test_a_device_that_is_not_there() -> None:
    assert list(maximal_sets({"a": {"gpu:7": 1}}, {"gpu:0": 9})) == [()]
