"""What of a peer's answer says that it, not the request, is at fault."""

from __future__ import annotations

import pytest

from supervisor.errors import BadRequest, LoopDetected
from supervisor.web.onward import hops_of, is_unwilling


@pytest.mark.parametrize("status", [301, 302, 307, 308, 401, 403, 404, 429, 502, 503, 504])
def test_another_may_serve_what_this_one_would_not(status: int) -> None:
    assert is_unwilling(status)


@pytest.mark.parametrize("status", [200, 206, 400, 408, 409, 413, 422, 500, 501, 508])
def test_what_it_says_of_the_request_is_the_answer(status: int) -> None:
    assert not is_unwilling(status)


def test_hops_are_counted_and_end() -> None:
    assert [hops_of({}), hops_of({"x-llmd-hops": "3"})] == [0, 3]
    with pytest.raises(LoopDetected, match="passed on 4 times"):
        hops_of({"x-llmd-hops": "4"})


@pytest.mark.parametrize("given", ["", "-1", "1.0", "1000", "\u0663", "many"])
def test_hops_that_are_no_number_are_refused(given: str) -> None:
    with pytest.raises(BadRequest):
        hops_of({"x-llmd-hops": given})
