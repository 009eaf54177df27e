"""What a reply is expected to have, by the last ones alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.replies import FIRST_GUESS, REMEMBERED, Replies


@given(st.lists(st.integers(0, 50), max_size=3 * REMEMBERED))
def test_nine_of_ten_of_the_last_had_no_more(lengths: list[int]) -> None:
    replies = Replies()
    for tokens in lengths:
        replies.add(tokens)
    last = sorted(lengths[-REMEMBERED:])
    assert replies.usual == (last[len(last) * 9 // 10] if last else FIRST_GUESS)
