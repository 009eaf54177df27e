"""How long a model's replies are, in tokens, from the last ones."""

from __future__ import annotations

import bisect
from collections import deque
from dataclasses import dataclass, field

FIRST_GUESS = 512
"""Tokens that a reply is taken to have before any was counted."""

REMEMBERED = 64


@dataclass(slots=True)
class Replies:
    """`usual`: the tokens that nine of ten had at the most. Kept, since every request asks for it."""

    usual: int = FIRST_GUESS
    _last: deque[int] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    _ordered: list[int] = field(default_factory=list)

    def add(self, tokens: int) -> None:
        """One had so many."""
        if len(self._last) == REMEMBERED:
            del self._ordered[bisect.bisect_left(self._ordered, self._last[0])]
        self._last.append(tokens)
        bisect.insort(self._ordered, tokens)
        self.usual = self._ordered[len(self._ordered) * 9 // 10]
