"""The short way of a request: a plain one, from somebody known, that an engine can take at once.

What it does for a request is what the ordinary way does, in one go and without a coroutine: key, ask, lease, answer,
account. Whatever is not plain (an unknown key, a body that is refused, a model that loads, tools, media) is left to
the ordinary way, before anything has happened.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from multidict import CIMultiDict

from supervisor.core.command import names_of
from supervisor.core.routing import LONGEST_NAME, Ask
from supervisor.errors import EngineDied, EngineFailed, LlmdError
from supervisor.host.upstream import Broken, Connection, Unread
from supervisor.web import dialects, heads
from supervisor.web.answer import Answer
from supervisor.web.auth import Keyring, presented_key
from supervisor.web.blame import translated
from supervisor.web.contents import read
from supervisor.web.conversation import session_of
from supervisor.web.driving import Driver, Lease
from supervisor.web.front import Failed, Front
from supervisor.web.holding import signs_of, stated_timeout
from supervisor.web.onward import elsewhere
from supervisor.web.openai import error_headers
from supervisor.web.patience import limits_of
from supervisor.web.plain import LONGEST_HEAD, Head, read_head
from supervisor.web.record import Record, people_of, request_id_of
from supervisor.web.relay import check_refusal, note_usage, own_head, refusal
from supervisor.web.routes import GENERATE, dialect_of
from supervisor.web.traffic import Traffic

_MOST_CALLERS = 512


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks by which head; clients send the same one over and over. `onward`: what an engine is
    sent of it, with its first line."""

    head: Head
    size: int
    length: int
    source: str
    onward: bytes
    presented: str | None
    session: str | None
    person: str | None
    chat: str | None
    stated: float | None


class ShortWay:
    """`note`: takes down what became of a request."""

    def __init__(
        self, driver: Driver, keyring: Keyring, traffic: Traffic, note: Callable[[Record], None]
    ) -> None:
        self.driver, self.traffic, self.note = driver, traffic, note
        self._keyring = keyring
        self.gathered = 0
        self._callers: OrderedDict[bytes, Caller] = OrderedDict()
        self._known = driver.config, keyring.sources

    def _forget_if_changed(self) -> None:
        """The configuration and the keys are other objects after a change."""
        config, sources = self._known
        if config is not self.driver.config or sources is not self._keyring.sources:
            self._callers.clear()
            self._known = self.driver.config, self._keyring.sources

    def read(self, data: bytes) -> Caller | None:
        self._forget_if_changed()
        end = data.find(b"\r\n\r\n", 0, LONGEST_HEAD) + 4
        block = data[:end]
        caller = self._callers.get(block)
        if caller is None and end >= 4 and (caller := self._meet(block)) is not None:
            self._callers[block] = caller
            if len(self._callers) > _MOST_CALLERS:
                self._callers.popitem(last=False)
        return caller

    def _meet(self, block: bytes) -> Caller | None:
        head = read_head(block)
        if head is None or head.length > self.driver.config.server.max_body:
            return None
        headers = CIMultiDict((name.decode(), value.decode()) for name, value in head.pairs)
        try:
            source = self._keyring.identify(presented_key(headers))
        except LlmdError:
            return None
        people, line = people_of(headers), f"POST {head.path} HTTP/1.1\r\n".encode()
        onward = line + heads.for_engine(head.pairs)
        told = headers.get("x-request-id"), session_of(headers), *people, stated_timeout(headers)
        return Caller(head, head.size, head.length, source, onward, *told)

    def take(self, client: Front, head: Caller, body: bytes) -> Exchange | None:
        try:
            name = request_id_of(head.presented)
            ask, demands = read(body, head.source, GENERATE, name, head.session, head.person)
        except LlmdError:
            return None
        if demands:
            return None
        lease = self.driver.lease_at_once(ask)
        if lease is None:
            return None
        if ask.model not in names_of(lease.configured):
            self.driver.give_back(lease)
            return None
        exchange = Exchange(self, client, head, ask, lease, body)
        exchange.begin()
        return exchange


class Exchange:
    """One request on its way: owns the answer, and gives back the lease."""

    def __init__(
        self,
        way: ShortWay,
        client: Front,
        caller: Caller,
        ask: Ask,
        lease: Lease,
        body: bytes,
    ) -> None:
        self._way, self._client, self._caller, self._ask = way, client, caller, ask
        self._lease, self._body = lease, body
        self._record = record = _record(caller, ask, lease)
        config = way.driver.config
        limits, signs = limits_of(ask, config, lease), signs_of(config, ask, caller.stated)
        self._answer = Answer(client, lease, record, self, limits, signs, keeps=caller.head.keeps)
        self._number = way.traffic.began(record, ask.tokens)
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._held = False

    def begin(self) -> None:
        connection = self._lease.pool.free()
        if connection is None:
            self._task = asyncio.get_running_loop().create_task(self._connect())
        else:
            self._send(connection)

    async def _connect(self) -> None:
        try:
            connection = await self._lease.pool.open()
        except Broken as error:
            self._answer.fail(error)  # of no effect where it is over, by then
        else:
            self._send(connection)

    def _send(self, connection: Connection) -> None:
        self._connection = connection
        self._answer.attach(connection)
        caller = self._caller
        head = caller.onward + own_head(self._lease, self._record, caller.length)
        connection.ask(head, self._body, self._answer)

    # Of the answer

    def held(self) -> None:
        self._held = True

    def begun(self) -> None:
        self._lease.answered()
        self._client.begun()
        self._body = b""

    def failed(self, error: Broken | LlmdError) -> None:
        """Before anything of the engine's was sent to the client."""
        connection, self._connection = self._connection, None
        if isinstance(error, Unread) and connection is not None and connection.reused:
            self._answer.begin_anew()
            self._task = asyncio.get_running_loop().create_task(self._connect())
            return
        if isinstance(error, Broken | EngineFailed):  # not what a person cancelled
            self._lease.failed(str(error))
        told = translated(error, self._lease) if isinstance(error, Broken) else error
        self._way.driver.broke_off(self._ask.request, told)
        if isinstance(told, EngineDied):
            self._task = asyncio.get_running_loop().create_task(self._elsewhere(told))
        else:
            self._refuse(told)

    def ended(self) -> None:
        answer, record = self._answer, self._record
        if answer.refusal is not None:
            self._refused(bytes(answer.refusal))
            return
        note_usage(answer, self._lease, record)
        self._end(answer.keeps)

    # Of the client

    def left(self) -> None:
        record = self._record
        self._answer.left()
        if self._task is not None:
            self._task.cancel()
        if record.first is not None:
            note_usage(self._answer, self._lease, record)
        self._close()
        self._way.note(record)

    # What follows

    async def _elsewhere(self, error: EngineDied) -> None:
        """To another place by the ordinary way, where this one has ended."""
        self._close()
        try:
            ask = await elsewhere(self._way.driver, self._ask, self._lease, error)
        except LlmdError as told:
            self._refuse(told)
        else:
            self._client.failed = Failed(ask.tried, self._record.started, self._record.request_id, self._held)
            self._client.go_round()

    def _refused(self, said: bytes) -> None:
        answer, record = self._answer, self._record
        try:
            check_refusal(answer.head.status, said, self._lease)
        except LlmdError as error:
            self._lease.failed(error.message)
            self._refuse(error)
            return
        self._lease.answered()
        record.status = answer.head.status
        kept, told = refusal(answer, record.path)
        self._respond(heads.lines(kept), told)

    def _refuse(self, error: LlmdError) -> None:
        record = self._record
        record.refused(error)
        if self._held:
            self._answer.tell(error)
            self._end(False)
            return
        lines = {"Content-Type": "application/json; charset=utf-8", **error_headers(error)}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items()).encode()
        self._respond(head, json.dumps(dialects.told(error, dialect_of(record.path))).encode())

    def _respond(self, head: bytes, body: bytes) -> None:
        record, transport, keeps = self._record, self._client.transport, self._caller.head.keeps
        if transport is not None:
            line, close = heads.status_line(record.status), b"" if keeps else b"Connection: close\r\n"
            length = b"Content-Length: %d\r\n\r\n" % len(body)
            transport.write(b"".join((line, head, record.head(), close, length, body)))
        self._end(keeps)

    def _end(self, keeps: bool) -> None:
        self._close()
        self._way.note(self._record)
        self._client.over(keeps)

    def _close(self) -> None:
        """The lease goes back, once. The client has the body, should it be sent elsewhere."""
        self._body = b""
        self._answer.close()
        self._way.traffic.over(self._number)
        self._way.driver.give_back(self._lease)


def _record(caller: Caller, ask: Ask, lease: Lease) -> Record:
    return Record(
        ask.request,
        path=caller.head.path,
        model=ask.model[:LONGEST_NAME],
        profile=lease.profile,
        reason=lease.reason,
        source=caller.source,
        queued=lease.queued,
        hit=lease.hit,
        person=caller.person,
        chat=caller.chat,
    )
