"""When failures of one engine are more than bad luck: so many in a row, in so short a time."""

from __future__ import annotations

from collections import deque


class Breaker:
    """`limit` requests in a row that failed before their first byte, within `window` seconds. Times are monotonic."""

    def __init__(self, limit: int, window: float) -> None:
        self._window = window
        self._failed: deque[float] = deque(maxlen=limit)

    def answered(self) -> None:
        self._failed.clear()

    def failed(self, now: float) -> bool:
        """Whether this failure is the one too many; counting begins anew after it."""
        self._failed.append(now)
        if len(self._failed) < (self._failed.maxlen or 0) or now - self._failed[0] > self._window:
            return False
        self._failed.clear()
        return True
