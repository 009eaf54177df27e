"""Requests as people look at them: those in flight, which can be cancelled, and the last few hundred that ended."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

from supervisor.core.routing import Ask
from supervisor.core.speed import Speed
from supervisor.errors import ModelNotFound, Withdrawn
from supervisor.host.clock import on_the_wall
from supervisor.web.patience import CANCELLED
from supervisor.web.record import Record

REMEMBERED = 300
"""Requests that ended."""

_WORDS = 300
"""Letters of an error that are kept."""


class Traffic:
    def __init__(self) -> None:
        self._numbers = count(1)
        self._flights: dict[str, Record] = {}
        self._recent: deque[tuple[int, Record]] = deque(maxlen=REMEMBERED)
        self._written: Counter[str] = Counter()
        self._speed = Speed()

    def began(self, record: Record, tokens: int) -> str:
        """Returns its number, by which it is `over`: clients may give two requests one id. `tokens`: of its prompt,
        about."""
        number, record.guess = str(next(self._numbers)), tokens
        self._flights[number] = record
        return number

    def over(self, number: str) -> None:
        self._flights.pop(number, None)

    @asynccontextmanager
    async def watched(self, record: Record, ask: Ask) -> AsyncIterator[None]:
        """Raises Withdrawn where the request was cancelled before its answer began."""
        number, scope = self.began(record, ask.tokens), asyncio.timeout(None)
        if record.cut is None:
            record.cut = lambda: scope.reschedule(asyncio.get_running_loop().time())
        try:
            async with scope:
                yield
        except TimeoutError:
            if not scope.expired():
                raise
            raise Withdrawn(CANCELLED) from None
        finally:
            self.over(number)

    def ended(self, record: Record) -> None:
        """What was asked of no model (a list of models, a wrong key) is no traffic."""
        if record.model is None:
            return
        made = record.completion if record.written is None else record.written  # counted on the way: once
        self._written[record.profile or ""] += made or 0
        self._recent.append((next(self._numbers), record))

    def cancel(self, number: str) -> str:
        """Raises ModelNotFound where no such request is under way."""
        if number not in self._flights:
            raise ModelNotFound("this request has ended")
        if cut := self._flights[number].cut:
            cut()
        return "cancelled"

    def in_flight(self) -> dict[str, dict[str, Any]]:
        return {number: _under_way(record) for number, record in self._flights.items()}

    def listed(self) -> list[dict[str, Any]]:
        """Those under way, oldest first, each with the `number` that it is cancelled by, and its age in seconds."""
        return [
            {"number": number, "age_s": round(record.latency(), 1), **_under_way(record)}
            for number, record in self._flights.items()
        ]

    def recent(self) -> dict[str, dict[str, Any]]:
        """By number, oldest first."""
        return {str(number): _ended(record) for number, record in self._recent}

    def speeds(self) -> dict[str, float]:
        """Profile -> tokens a second, since it was asked for some seconds ago."""
        return self._speed.look(self.written(), time.monotonic())

    def written(self) -> Mapping[str, int]:
        """Profile -> tokens written since the daemon began, by requests ended and under way."""
        total = Counter(self._written)
        for record in self._flights.values():
            total[record.profile or ""] += record.made() or 0
        return total


def _under_way(record: Record) -> dict[str, Any]:
    return {
        "id": record.request_id,
        "model": record.model,
        "source": record.source,
        "profile": record.profile,
        "prompt": record.guess,
        "output": record.made(),
        "ttft_s": record.ttft(),
        "started": round(on_the_wall(record.started), 1),
    }


def _ended(record: Record) -> dict[str, Any]:
    return {
        "id": record.request_id,
        "at": round(on_the_wall(record.started + record.latency()), 1),
        "model": record.model,
        "profile": record.profile,
        "source": record.source,
        "prompt": record.prompt,
        "output": record.written if record.completion is None else record.completion,
        "guessed": record.guessed,
        "ttft_s": record.ttft(),
        "queue_s": record.queued,
        "latency_s": record.latency(),
        "status": record.status,
        "error": record.error[:_WORDS] if record.error else None,
    }
