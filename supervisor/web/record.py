"""What is remembered of one request: counts, times and names; never a prompt, never a key."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec
from aiohttp import web

from supervisor.host.activity import Request
from supervisor.host.logbook import now, tell

_SAFE_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_LEFT = 499
_WHERE_KNOWN = ("guessed", "error", "code", "person", "chat", "dropped")


class Figures(NamedTuple):
    """Of a request that ended: tokens as counted, or about, and milliseconds."""

    prompt: int | None
    completion: int | None
    latency: int
    ttft: int | None
    queue: int | None


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
    whole: bool = False
    """Its stream's last event went out: clients leave on it, without waiting for the connection's end."""

    @classmethod
    def of(cls, presented: str | None) -> Record:
        """Under the client's own request id where it gave a sane one."""
        return cls(request_id_of(presented))

    def note_people(self, headers: Mapping[str, str]) -> None:
        self.person, self.chat = people_of(headers)

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

    @property
    def guessed(self) -> bool:
        """Whether nobody counted its tokens: the engine of a stream does where the client asks for that alone."""
        return self.streamed and self.first is not None and self.prompt is None and self.completion is None

    def tokens(self) -> tuple[int | None, int | None]:
        """Of the prompt and of the answer, as the engine counted them; about, where it did not."""
        return (self.guess, self.made()) if self.guessed else (self.prompt, self.completion)

    def outcome(self) -> dict[str, object]:
        """For those who ask why."""
        figures = self.figures()
        return {
            "status": self.status,
            "error": self.error,
            "profile": self.profile,
            "prompt": figures.prompt,
            "completion": figures.completion,
            "latency_ms": figures.latency,
            "ttft_ms": figures.ttft,
            "queue_ms": figures.queue,
        }

    def left(self) -> None:
        """Its client has gone; not, where llmd itself has cut it."""
        if not self.whole and (self.error is None or self.status < 500):
            self.status = _LEFT

    def figures(self) -> Figures:
        return Figures(*self.tokens(), round(self.latency() * 1000), _ms(self.ttft()), _ms(self.queued))

    def end(self) -> Figures:
        """From now on it tells what was, and holds nothing of the answer."""
        self.over, self.written = time.monotonic(), self.made()
        self.counter = self.cut = None
        return self.figures()

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
        _, written = self.tokens()
        if self.first is None or not self.streamed or self.status >= 400 or (written or 0) < 2:
            return None
        return (self.started + self.latency() - self.first) / ((written or 0) - 1)

    def request(self, told: Figures) -> Request | None:
        """What of it is kept; None of whoever is not known, or asked for no model."""
        if self.source is None or self.model is None:
            return None
        return Request(
            self.request_id,
            self.source,
            self.model,
            self.profile,
            self.path,
            self.status,
            self.code,
            self.hit,
            *told,
        )

    def write(self, told: Figures) -> None:
        known = [count for count in (told.prompt, told.completion) if count is not None]
        line: dict[str, object] = {
            "timestamp": now(),
            "level": "INFO" if self.status < 500 else "WARNING",
            "event": "request",
            "request_id": self.request_id,
            "model": self.model,
            "profile": self.profile,
            "reason": self.reason,
            "source": self.source,
            "tokens": sum(known) if known else None,
            "prompt": told.prompt,
            "completion": told.completion,
            "latency_ms": told.latency,
            "ttft_ms": told.ttft,
            "queue_ms": told.queue,
            "status": self.status,
        }
        for name in _WHERE_KNOWN:
            if value := getattr(self, name):
                line[name] = value
        tell(line)


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
