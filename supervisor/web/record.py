"""What is remembered of one request: counts, times and names; never a prompt, never a key."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Mapping

import msgspec
from aiohttp import web

from supervisor.errors import LlmdError
from supervisor.host.logbook import now, tell, thin
from supervisor.web.driving import Lease

_SAFE_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_LEFT = 499


class Line(msgspec.Struct, omit_defaults=True, gc=False):
    """Of the log, its fields in the order in which they are written; those below the status where there is one."""

    timestamp: str
    level: str
    event: str
    request_id: str
    model: str | None
    profile: str | None
    reason: str | None
    source: str | None
    tokens: int | None
    prompt: int | None
    completion: int | None
    latency_ms: int
    ttft_ms: int | None
    queue_ms: int | None
    status: int
    guessed: bool = False
    error: str | None = None
    code: str | None = None
    person: str | None = None
    chat: str | None = None
    dropped: str | None = None


class Record(msgspec.Struct, eq=False):
    """Times are monotonic seconds; `queued` is a duration. `status` is what became of it, not only what was sent:
    502 for a stream that broke, 499 for a client that left. `hit`: whether the engine was warm, waking or cold.
    `code`: the error's, one of those in `errors`."""

    request_id: str
    started: float = msgspec.field(default_factory=time.monotonic)
    path: str = ""
    model: str | None = None
    profile: str | None = None
    reason: str | None = None
    """Why it went to that profile."""
    hops: int = 0
    """How often it was passed on before it came here."""
    source: str | None = None
    prompt: int | None = None
    completion: int | None = None
    """Tokens as the engine counted them; about, in the end, where it did not."""
    guessed: bool = False
    """Whether nobody counted them: the engine of a stream does where the client asks for that alone."""
    guess: int | None = None
    """Tokens of its prompt, as estimated from its letters."""
    first: float | None = None
    queued: float | None = None
    hit: str | None = None
    streamed: bool = False
    status: int = 500
    error: str | None = None
    person: str | None = None
    """Who asks through Open WebUI, and in which chat: ids, where it forwards them."""
    chat: str | None = None
    dropped: str | None = None
    """What of the request the engine was not given."""
    code: str | None = None
    written: int | None = None
    counter: Callable[[], int | None] | None = None
    """Counts the tokens of an answer under way."""
    cut: Callable[[], None] | None = None
    """Ends an answer that has begun: an error frame, then the connection is cut."""
    over: float | None = None
    """When it ended."""
    at: str = ""
    """The same by the wall's clock, RFC 3339."""
    latency_ms: int = 0
    """Known when it ended, as the two below."""
    ttft_ms: int | None = None
    queue_ms: int | None = None
    whole: bool = False
    """Its stream's last event went out: clients leave on it, without waiting for the connection's end."""

    @classmethod
    def of(cls, presented: str | None) -> Record:
        """Under the client's own request id where it gave a sane one."""
        return cls(request_id_of(presented))

    def headers(self) -> dict[str, str]:
        told = {"x-request-id": self.request_id, "request-id": self.request_id}
        if self.profile is not None:
            told["x-llmd-profile"] = self.profile
        if self.queued is not None:
            told["x-llmd-queue-ms"] = str(_ms(self.queued))
        if self.dropped is not None:
            told["x-llmd-dropped"] = self.dropped
        return told

    def head(self) -> bytes:
        """The same as it goes on the wire."""
        name, profile = self.request_id, f"x-llmd-profile: {self.profile}\r\n" if self.profile else ""
        queued = "" if self.queued is None else f"x-llmd-queue-ms: {_ms(self.queued)}\r\n"
        dropped = "" if self.dropped is None else f"x-llmd-dropped: {self.dropped}\r\n"
        return f"x-request-id: {name}\r\nrequest-id: {name}\r\n{profile}{queued}{dropped}".encode()

    def outcome(self) -> dict[str, object]:
        """For those who ask why."""
        return {
            "status": self.status,
            "error": self.error,
            "profile": self.profile,
            "prompt": self.prompt,
            "completion": self.completion,
            "latency_ms": self.latency_ms,
            "ttft_ms": self.ttft_ms,
            "queue_ms": self.queue_ms,
        }

    def went(self, lease: Lease) -> None:
        """To the place that is leased for it."""
        self.profile, self.reason = lease.profile, lease.reason
        self.queued, self.hit = lease.queued, lease.hit

    def refused(self, error: LlmdError | type[LlmdError]) -> None:
        """Its words are the client's alone: they may quote what was asked."""
        self.status, self.error, self.code = error.status, error.code, error.code

    def broke_off(self, error: LlmdError) -> None:
        """An answer under way; the words are llmd's own."""
        self.status, self.error, self.code = error.status, error.message, error.code

    def left(self) -> None:
        """Its client has gone; not, where llmd itself has cut it."""
        if not self.whole and (self.error is None or self.status < 500):
            self.status = _LEFT

    def end(self) -> None:
        """From now on it tells what was, does not change, and holds nothing of the answer."""
        self.over, self.at, self.written = time.monotonic(), now(), self.made()
        self.latency_ms = round((self.over - self.started) * 1000)
        self.ttft_ms, self.queue_ms = _ms(self.ttft()), _ms(self.queued)
        self.counter = self.cut = None
        if self.streamed and self.first is not None and self.prompt is None and self.completion is None:
            self.guessed, self.prompt, self.completion = True, self.guess, self.written

    def made(self) -> int | None:
        """Tokens that went by so far, about; None where they cannot be told before the end."""
        return self.written if self.counter is None else self.counter()

    def latency(self) -> float:
        """Seconds, so far or in all."""
        return (time.monotonic() if self.over is None else self.over) - self.started

    def ttft(self) -> float | None:
        return None if self.first is None else self.first - self.started

    def between_tokens(self) -> float | None:
        """Seconds, the mean of a streamed answer; None where there is no second token."""
        if self.first is None or not self.streamed or self.status >= 400:
            return None
        written = self.completion or 0
        return None if written < 2 else (self.started + self.latency() - self.first) / (written - 1)

    @property
    def is_kept(self) -> bool:
        """Not of whoever is not known, or asked for no model."""
        return self.source is not None and self.model is not None

    def line(self) -> Line:
        prompt, completion = self.prompt, self.completion
        return Line(
            self.at,
            "INFO" if self.status < 500 else "WARNING",
            "request",
            self.request_id,
            self.model,
            self.profile,
            self.reason,
            self.source,
            None if prompt is None and completion is None else (prompt or 0) + (completion or 0),
            prompt,
            completion,
            self.latency_ms,
            self.ttft_ms,
            self.queue_ms,
            self.status,
            self.guessed,
            self.error or None,
            self.code,
            self.person,
            self.chat,
            self.dropped,
        )

    def write(self) -> None:
        """Into the log: what ended well in any case, and of what did not as much as there is room for."""
        if self.error or self.status >= 500:
            thin(msgspec.to_builtins(self.line()))
        else:
            tell(self)


RECORD = web.RequestKey("record", Record)


def request_id_of(presented: str | None) -> str:
    """The client's own where it gave a sane one."""
    return _safe(presented) or f"{random.getrandbits(128):032x}"


def people_of(headers: Mapping[str, str]) -> tuple[str | None, str | None]:
    """(who asks, in which chat), where Open WebUI forwards it."""
    return _safe(headers.get("X-OpenWebUI-User-Id")), _safe(headers.get("X-OpenWebUI-Chat-Id"))


def _safe(presented: str | None) -> str | None:
    """An id that a client gave, where it is one: logs and headers take no other text from outside."""
    return presented if presented is not None and _SAFE_ID.fullmatch(presented) else None


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)
