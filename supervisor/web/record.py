"""What is remembered of one request: counts, times and names; never a prompt, never a key."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import web

from supervisor.host.logbook import log

_SAFE_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


def _unknown() -> None:
    return None


@dataclass(slots=True)
class Record:
    """Times are monotonic seconds; `queued` is a duration. `status` is what became of it, not only what was sent:
    502 for a stream that broke, 499 for a client that left."""

    request_id: str
    started: float = field(default_factory=time.monotonic)
    model: str | None = None
    profile: str | None = None
    reason: str | None = None
    """Why it went to that profile."""
    hops: int = 0
    """How often it was passed on before it came here."""
    source: str | None = None
    prompt: int | None = None
    completion: int | None = None
    first: float | None = None
    queued: float | None = None
    status: int = 500
    error: str | None = None
    made: Callable[[], int | None] = _unknown
    """Tokens that went by so far, about; None where they cannot be told before the end."""
    cut: Callable[[], None] | None = None
    """Ends an answer that has begun: an error frame, then the connection is cut."""

    @classmethod
    def of(cls, presented: str | None) -> Record:
        """Under the client's own request id where it gave a sane one."""
        own = presented is not None and _SAFE_ID.fullmatch(presented)
        return cls(presented if own and presented else uuid.uuid4().hex)

    def headers(self) -> dict[str, str]:
        told = {"x-request-id": self.request_id, "request-id": self.request_id}
        if self.profile is not None:
            told["x-llmd-profile"] = self.profile
        if self.queued is not None:
            told["x-llmd-queue-ms"] = str(_ms(self.queued))
        return told

    def outcome(self) -> dict[str, object]:
        """For those who ask why, in milliseconds."""
        return {
            "status": self.status,
            "error": self.error,
            "profile": self.profile,
            "prompt": self.prompt,
            "completion": self.completion,
            "latency_ms": _ms(self.latency()),
            "ttft_ms": _ms(self.ttft()),
            "queue_ms": _ms(self.queued),
        }

    def latency(self) -> float:
        return time.monotonic() - self.started

    def ttft(self) -> float | None:
        return None if self.first is None else self.first - self.started

    def write(self) -> None:
        known = [count for count in (self.prompt, self.completion) if count is not None]
        log(
            "request",
            "INFO" if self.status < 500 else "WARNING",
            request_id=self.request_id,
            model=self.model,
            profile=self.profile,
            reason=self.reason,
            source=self.source,
            tokens=sum(known) if known else None,
            prompt=self.prompt,
            completion=self.completion,
            latency_ms=_ms(self.latency()),
            ttft_ms=_ms(self.ttft()),
            queue_ms=_ms(self.queued),
            status=self.status,
            **({"error": self.error} if self.error else {}),
        )


RECORD = web.RequestKey("record", Record)


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)
