"""So many failures in a row, in so short a time."""

from __future__ import annotations

import pytest

from supervisor.host.breaker import Breaker


@pytest.mark.parametrize(
    ("times", "opens"),
    [
        ([0, 1, 2], [False, False, True]),
        ([0, 20, 40], [False, False, False]),  # too far apart
        ([0, 20, 40, 41, 42], [False, False, False, True, False]),  # and counted anew after it
        ([0], [False]),
    ],
)
def test_failures_in_a_row_within_the_window(times: list[float], opens: list[bool]) -> None:
    breaker = Breaker(limit=3, window=30)
    assert [breaker.failed(at) for at in times] == opens


def test_an_answer_in_between_starts_it_anew() -> None:
    breaker = Breaker(limit=2, window=30)
    assert not breaker.failed(0)
    breaker.answered()
    assert not breaker.failed(1)
    assert breaker.failed(2)


def test_one_is_enough_where_one_is_the_limit() -> None:
    assert Breaker(limit=1, window=30).failed(0)
