"""How fast tokens are written, from counters that are looked at now and then."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

WINDOW = 5.0
"""Seconds that tokens a second are counted over."""


class Speed:
    """Tokens a second by profile, over the last WINDOW seconds that were looked at."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, Mapping[str, int]]] = deque()

    def look(self, written: Mapping[str, int], now: float) -> dict[str, float]:
        """`now`: monotonic. The first look tells nothing."""
        self._seen.append((now, written))
        while len(self._seen) > 2 and self._seen[1][0] <= now - WINDOW:
            self._seen.popleft()
        then, before = self._seen[0]
        if now <= then:
            return {}
        return {name: max(0.0, (made - before.get(name, 0)) / (now - then)) for name, made in written.items()}
