"""The last requests: where each might have gone, why, and what became of it. In memory alone, oldest forgotten first.

Never a prompt, never a key.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from supervisor.core.routing import Ask, Route
from supervisor.errors import LlmdError, ModelNotFound

MOST = 4000

Outcome = Callable[[], Mapping[str, object]]
"""What became of a request, for those few who ask."""


class Try(msgspec.Struct):
    """One lease that was asked for. `waited`: seconds until it was granted, or refused."""

    route: Route
    began: float
    granted: str | None = None
    reason: str | None = None
    waited: float | None = None
    failed: str | None = None


class Request(msgspec.Struct):
    ask: Ask
    tries: list[Try] = []
    outcome: Outcome | None = None


@dataclass(slots=True)
class Requests:
    most: int = MOST
    _found: OrderedDict[str, Request] = field(default_factory=OrderedDict)

    def routed(
        self, ask: Ask, route: Route, now: float, granted: str | None = None, reason: str | None = None
    ) -> None:
        """A client may send one id twice: the later request counts, but for further tries of the same. `granted`:
        the profile whose lease it had as it came."""
        found, name = self._found, ask.request
        tried = Try(route, now, granted, reason, None if granted is None else 0.0)
        request = found.get(name)
        if request is not None and request.outcome is None:
            request.tries.append(tried)
            return
        if request is not None:
            found.move_to_end(name)
        found[name] = Request(ask, [tried])
        if len(found) > self.most:
            found.popitem(last=False)

    def joined(self, name: str, others: Sequence[str]) -> None:
        """They go with `name`, in one call."""
        found = self._found.get(name)
        if found is None:
            return
        for other in others:
            tries = [msgspec.structs.replace(tried) for tried in found.tries]
            self._found[other] = Request(found.ask, tries)
            self._found.move_to_end(other)
        while len(self._found) > self.most:
            self._found.popitem(last=False)

    def granted(self, name: str, profile: str, reason: str, now: float) -> None:
        if found := self._last(name):
            found.granted, found.reason, found.waited = profile, reason, max(0.0, now - found.began)

    def failed(self, name: str, error: LlmdError, now: float) -> None:
        """Refused, or broken off after it was granted."""
        if found := self._last(name):
            found.failed = error.message.split("\n")[0]
            found.waited = now - found.began if found.waited is None else found.waited

    def ended(self, name: str, outcome: Outcome) -> None:
        if request := self._found.get(name):
            request.outcome = outcome

    def _last(self, name: str) -> Try | None:
        request = self._found.get(name)
        return request.tries[-1] if request else None

    def describe(self, name: str) -> dict[str, Any]:
        """As JSON, durations in seconds. Raises ModelNotFound where it is not remembered."""
        request = self._found.get(name)
        if request is None:
            raise ModelNotFound(f"no request {name!r} among the last {len(self._found)} that were routed")
        ask = request.ask
        return {
            "request": name,
            "model": ask.model,
            "source": ask.source,
            "tokens": ask.tokens,
            "max_tokens": ask.max_tokens,
            "hops": ask.hops,
            "conversation": ask.conversation,
            "tries": [_try(tried) for tried in request.tries],
            "outcome": None if request.outcome is None else dict(request.outcome()),
        }

    def __len__(self) -> int:
        return len(self._found)


def _try(tried: Try) -> dict[str, Any]:
    return {
        "candidates": [{"name": c.profile, "reason": c.reason} for c in tried.route.candidates],
        "passed_over": [{"name": c.profile, "reason": c.reason} for c in tried.route.passed_over],
        "granted": tried.granted,
        "reason": tried.reason,
        "waited": None if tried.waited is None else round(tried.waited, 3),
        "failed": tried.failed,
    }
