"""One answer on its way from an engine's connection to a client's, spliced: bytes in, the same bytes out.

No coroutine, no queue and no new framing a piece. A broken answer never ends cleanly: most clients take a stream
that just stops for a success. It gets an error frame, where it is a stream of events, and its connection is cut.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from supervisor.errors import EngineSilent, LlmdError, Withdrawn
from supervisor.host.upstream import Broken, Connection, Head
from supervisor.web import dialects, heads
from supervisor.web.blame import blame
from supervisor.web.dialects import MARKS
from supervisor.web.driving import Lease
from supervisor.web.framing import LAST_CHUNK, Unframed, chunk
from supervisor.web.holding import READS, Signs, sign
from supervisor.web.passing import Events, Passing
from supervisor.web.patience import CANCELLED, TOO_LONG, Limits, Watch
from supervisor.web.protocol import Connection as Client
from supervisor.web.record import Record
from supervisor.web.routes import dialect_of

_LONGEST_REFUSAL = 1 << 20
_TOGETHER = 4 << 10
"""Bytes of a stream that wait for the pieces which came to other streams in the same turn of the loop, and go out behind
each other: a reader that is woken once for many of them costs the kernel less than one woken for each."""


class Owner(Protocol):
    """Who asked for an answer: told once that it `begun` or `failed`, then that it `ended`."""

    def held(self) -> None:
        """The head was sent, and nothing of the engine's behind it yet."""

    def begun(self) -> None: ...
    def failed(self, error: Broken | LlmdError) -> None:
        """Nothing of the engine's was sent to the client."""

    def ended(self) -> None:
        """All that there is was written; or the engine refused, and all that it said is in `refusal`."""


class _Nobody:
    """Owns answers that are over."""

    def held(self) -> None: ...
    def begun(self) -> None: ...
    def failed(self, error: Broken | LlmdError) -> None: ...
    def ended(self) -> None: ...


_NOBODY = _Nobody()


class Answer:
    """A receiver for the engine's connection, a source for the client's."""

    def __init__(
        self,
        client: Client,
        lease: Lease,
        record: Record,
        owner: Owner,
        limits: Limits,
        signs: Signs,
        *,
        keeps: bool,
        chunks: bool = True,
        held: bool = False,
        first: Callable[[bytes], None] | None = None,
    ) -> None:
        """`keeps`: the client's connection serves more requests. `chunks`: it reads chunks, as HTTP/1.1 does.
        `held`: the head is out already. `first` is told what comes first of an answer that is no refusal."""
        assert client.transport is not None
        self.keeps, self._chunks, self._held, self._tell_first = keeps, chunks, held, first
        self._connection, self._client, self._owner = client, client.transport, owner
        self._lease, self._record, self._dialect = lease, record, dialect_of(record.path)
        self._upstream: Connection | None = None
        self._unframed: Unframed | None = None
        self._pending = b""
        self.refusal: bytearray | None = None
        """What the engine refused with: it is told in the shape that the client reads."""
        self._streams = False  # the engine has begun a stream
        self._started = False  # the client has its first byte
        self._over = False  # nothing more is taken from the engine
        self._flows = False  # what comes goes on as it is
        self._limits, self._signs = limits, signs
        self._watch = Watch(limits, record.started, self._expired, waits=self._show_life, every=signs.every)
        self._cut, record.cut = record.cut, self.withdraw

    def attach(self, upstream: Connection) -> None:
        self._upstream = upstream
        if self._over:  # it took too long to connect
            upstream.abort()

    def begin_anew(self) -> None:
        """For another connection, after nothing came of the first."""
        self._over = self._streams = False

    def close(self) -> None:
        """Whatever became of it: nothing more is read for it, and an engine that still writes is stopped."""
        self._watch.close()
        self._record.cut = self._cut  # it may wait for another
        self._connection.source = None
        if not self._over and self._upstream is not None:
            self._upstream.abort()
        self._over = True
        self._stand()
        self._owner = _NOBODY  # no cycle is left for the garbage collector to find

    def left(self) -> None:
        """The client has gone, or was cut off because it took nothing more."""
        stalled, record = self._connection.stalled, self._record
        record.whole = self._started and self.passing.events and self.passing.ended() and not stalled
        record.left()
        if stalled:
            record.error = "client_stalled"

    # From the engine

    def begin(self, head: Head) -> None:
        self.head = head
        events = head.kind.startswith(b"text/event-stream")
        self.passing = Events(MARKS[self._dialect]) if events else Passing()
        self._see = self.passing.see
        if head.status >= 300:
            self.refusal = bytearray()
        else:
            self._streams = events and head.length is None
        if not self._chunks or self._held or head.until_close or self.refusal is not None or self._tell_first:
            self._unframed = Unframed(head, self._chunks)

    def take(self, data: bytes, done: bool) -> None:
        if self._flows and not done:
            self._watch.since = time.monotonic()
            if (end := self._see(data)) < 0:
                self._client.write(data)
            else:
                self._fail_within(data[:end])
            return
        if self._over:
            return
        if self._unframed is not None:
            data = self._unframed.take_out(data)
            if not data and not done:
                return
            if self.refusal is not None:
                self._collect(self.refusal, data, done)
                return
        end = self.passing.see(data)
        if self._started:
            self._watch.since = time.monotonic()
        elif not self._begin(data, done):
            return
        if end >= 0:
            self._fail_within(data[:end])
        elif done:
            self._end(data)
        else:
            self._send(data, False)
            if self._unframed is None:
                self._flow()

    def fail(self, error: Broken) -> None:
        self._fail(error, blame(self._lease, str(error)))

    # From the client's connection, and from people

    def pause(self) -> None:
        """The client takes no more for now."""
        self._watch.rest()
        if self._upstream is not None and not self._over:
            self._upstream.hold()

    def resume(self) -> None:
        self._watch.go_on()
        if self._upstream is not None and not self._over:
            self._upstream.go_on()

    def lost(self) -> None:
        if not self._over:
            self._stop()

    def withdraw(self) -> None:
        error = Withdrawn(CANCELLED)
        self._fail(error, error)

    # What follows

    def _show_life(self) -> None:
        """The engine reads a long prompt. Its status is known, so nothing is lost with the head; and should it fail now,
        another may still answer behind it."""
        shown = self._held or self._streams
        if not shown or self._over or self.refusal is not None or self._connection.transport is None:
            return
        head = b"" if self._held else self._head_for_client()
        record, mode = self._record, self._signs.mode
        said = sign(mode, record.path, record.model or "", record.request_id, READS)
        self._client.write(head + self._piece(said))
        if not self._held:
            self._held = True
            self._owner.held()

    def tell(self, error: LlmdError) -> None:
        """In a stream whose head alone was sent, and cut it."""
        self._client.write(self._piece(dialects.event(error, self._dialect)))
        self._client.close()

    def _piece(self, said: bytes) -> bytes:
        """Of ours, behind a head of ours."""
        return chunk(said) if self._chunks else said

    def _begin(self, data: bytes, done: bool) -> bool:
        """The first byte is here: tell the client, where it is not gone, or nobody but llmd."""
        if self._connection.transport is None:
            self.lost()
            return False
        if done and data in (b"", LAST_CHUNK) and self._is_short():
            self._refuse(blame(self._lease, "ended its answer before it began"))
            return False
        if self._tell_first is not None:
            self._tell_first(data)
        self._record.first, self._record.status = time.monotonic(), self.head.status
        self._record.streamed, self._record.counter = self.passing.events, self.passing.made
        self._pending = b"" if self._held else self._head_for_client()
        self._connection.source = self
        self._started = True
        self._owner.begun()
        if not done:
            self._watch.began()
        if self._connection.writing_paused:  # it has not taken the answer before this one
            self.pause()
        return True

    def _collect(self, refusal: bytearray, data: bytes, done: bool) -> None:
        self._watch.go_on()
        refusal += data[: _LONGEST_REFUSAL - len(refusal)]
        if done or len(refusal) >= _LONGEST_REFUSAL:
            if not done:
                self._stop()
            self._over = True
            self._owner.ended()

    def _refuse(self, error: Broken | LlmdError) -> None:
        self._stop()
        self._owner.failed(error)

    def _flow(self) -> None:
        self._flows = True
        self._client.set_write_buffer_limits(_TOGETHER)

    def _stand(self) -> None:
        """Every byte that the kernel did not take counts as waiting again."""
        if self._flows and not self._client.is_closing():
            self._client.set_write_buffer_limits(0)
        self._flows = False

    def _stop(self) -> None:
        self._over = True
        self._stand()
        if self._upstream is not None:
            self._upstream.abort()

    def _is_short(self) -> bool:
        return self.passing.events and not self.passing.ended()

    def _fail_within(self, data: bytes) -> None:
        """The engine itself told of an error, which is the last that goes on."""
        self._send(data, False)
        self._break_off(blame(self._lease, "broke off with an error"))

    def _end(self, data: bytes) -> None:
        if self._is_short():
            kept = self._withhold(data)
            self._send(kept or b"", False)
            self._break_off(blame(self._lease, "ended its answer too early"), is_open=kept is not None)
        else:
            self._over = True
            self._stand()
            self._send(data, True)
            self._owner.ended()

    def _send(self, data: bytes, done: bool) -> None:
        pending, self._pending = self._pending, b""
        out = data if self._unframed is None else self._unframed.wrap(data, done)
        if pending or out:
            self._client.write(pending + out)

    def _withhold(self, data: bytes) -> bytes | None:
        """Without what would end the answer; None where a part of that is out already, and nothing may follow it."""
        if self._unframed is not None:
            return data
        if self.head.chunked:
            return data.removesuffix(LAST_CHUNK) if data.endswith(LAST_CHUNK) else None
        return data[:-1]

    def _break_off(self, why: LlmdError, *, is_open: bool = True) -> None:
        """Say what happened, where there is a place to say it, and cut."""
        self._record.broke_off(why)
        self.keeps = False
        if is_open and self.passing.events and not self.passing.failed:
            self._client.write(self._framed(dialects.event(why, self._dialect)))
        self._stop()
        self._client.close()  # what is written still goes out; the chunk that ends an answer does not
        self._owner.ended()

    def _framed(self, event: bytes) -> bytes:
        """An event of ours behind what was sent. In the middle of a chunk there is no place for it."""
        if self._unframed is not None:
            return self._unframed.wrap(b"\n\n" + event, False)
        return chunk(event) if self.head.chunked and self.passing.at_boundary() else b""

    def _expired(self, in_all: bool) -> None:
        what = "fell silent in the middle of its answer"
        if in_all:
            what = TOO_LONG
        elif not self._started:
            what = f"did not begin to answer within {self._limits.first:g} s"
        error = blame(self._lease, what, EngineSilent)
        self._fail(error, error)

    def _fail(self, early: Broken | LlmdError, late: LlmdError) -> None:
        """`early` where nothing was sent yet, for llmd to act upon; `late` where the client has to be told."""
        if self._over:
            return
        if self._started:
            self._break_off(late)
        else:
            self._refuse(early)

    def _head_for_client(self) -> bytes:
        kept, own = heads.for_client(self.head.headers), self._record.head()
        live = heads.UNGATHERED if self.passing.events else b""
        return b"".join((heads.status_line(self.head.status), kept, own, live, self._framing(), b"\r\n"))

    def _framing(self) -> bytes:
        close = b"" if self.keeps else b"Connection: close\r\n"
        if self.head.chunked if self._unframed is None else self._unframed.chunked:
            return b"Transfer-Encoding: chunked\r\n" + close
        if self.head.length is not None:
            return b"Content-Length: %d\r\n" % self.head.length + close
        return close
