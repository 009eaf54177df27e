"""Many small requests for embeddings as few calls of an engine.

Programs that index documents send one request a text, dozens at once. The first goes on its way alone and at
once, to its byte. Those that come while one of its kind is at work gather, for `batch_wait` or until they are
`batch_inputs`, and go as one call; what has so many by itself is a call as it is. Calls beyond what the engines take
at once wait here, and gather on, so that a burst while a model loads needs a few places in its queue, whatever its
size. Only requests of one key, for one model, with the same other fields, gather: a call is one lease, taken by the
key that it is for, so no key gets more places by sending small requests, nor fewer.

A call that the engine refuses is not an answer: its members go again, each alone, so that one bad text is told to
the one who sent it. So do those whose engine died. One that fails otherwise fails for all, since what was sent may
have been carried out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web
from msgspec.structs import replace

from supervisor.core.routing import Ask
from supervisor.errors import EngineFailed, EngineSilent, NotAvailable
from supervisor.web.blame import blame, who
from supervisor.web.driving import Driver, Lease
from supervisor.web.embeddings import EMBEDDINGS, NoAnswer, Wish, merged, split
from supervisor.web.patience import comes, in_time
from supervisor.web.record import Record

_LARGEST = 256 << 20
"""Bytes of an engine's answer."""

Alone = Callable[[frozenset[str]], Awaitable[web.StreamResponse]]


@dataclass(eq=False, slots=True)
class Member:
    """One request. `part`: its answer, or None where it must go alone. `tried`: the engine that died of the call."""

    wish: Wish
    ask: Ask
    record: Record
    tried: frozenset[str] = frozenset()
    part: asyncio.Future[bytes | None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


@dataclass(eq=False, slots=True)
class Batch:
    """Requests that go together. `full` ends their waiting early."""

    limit: int
    members: list[Member] = field(default_factory=list)
    full: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    @property
    def size(self) -> int:
        return sum(len(member.wish.inputs) for member in self.members)

    def takes(self, member: Member) -> bool:
        return not self.full.is_set() and self.size + len(member.wish.inputs) <= self.limit

    def add(self, member: Member) -> None:
        self.members.append(member)
        if self.size >= self.limit:
            self.full.set()

    def leave(self, member: Member) -> None:
        """Its client is gone. The call goes on as long as anybody waits for it; nobody joins one that does not."""
        self.members.remove(member)
        if not self.members and self.task:
            self.full.set()
            self.task.cancel()


@dataclass(eq=False, slots=True)
class Line:
    """The requests of one kind that are out: at work or gathering. `turns`: calls that may go now."""

    turns: asyncio.Semaphore
    out: int = 0
    gathering: Batch | None = None


class Batches:
    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._lines: dict[tuple[str, str, str, bytes], Line] = {}

    async def serve(self, wish: Wish, ask: Ask, record: Record, alone: Alone) -> web.StreamResponse:
        """`alone` answers the request by itself, elsewhere than at the places that it is given. Raises LlmdError."""
        key = (ask.source, ask.model, wish.kind, wish.rest)
        limit, wait, places = self._terms(ask.model)
        line = self._lines.setdefault(key, Line(asyncio.Semaphore(places)))
        line.out += 1
        try:
            if line.out == 1 or limit == 1:
                return await alone(frozenset())
            member = Member(wish, ask, record)
            if len(wish.inputs) < limit:
                async with in_time(record.started, self._driver.config.server.request_timeout):
                    part = await self._together(line, member, limit, wait)
                if part is not None:
                    return _response(part)
            async with self._turn(line):
                return await alone(member.tried)
        finally:
            line.out -= 1
            if not line.out:
                del self._lines[key]

    @asynccontextmanager
    async def _turn(self, line: Line) -> AsyncIterator[None]:
        """Raises NotAvailable where it does not come as soon as a request has to have a place."""
        limit = self._driver.config.server.max_wait
        try:
            async with asyncio.timeout(limit):
                await line.turns.acquire()
        except TimeoutError:
            why = f"the embeddings that were asked for before took longer than {limit:g} s"
            raise NotAvailable(why, retry_after=10) from None
        try:
            yield
        finally:
            line.turns.release()

    def _terms(self, model: str) -> tuple[int, float, int]:
        """Most inputs of a call, and seconds to gather: the least of the profiles that may serve it. And how many
        calls these take at once."""
        able = self._driver.config.named.get(model, ())
        inputs = min((profile.batch_inputs for profile in able), default=1)
        wait = min((profile.batch_wait for profile in able), default=0.0)
        return inputs, wait, sum(profile.max_concurrent for profile in able) or 1

    async def _together(self, line: Line, member: Member, limit: int, wait: float) -> bytes | None:
        batch = line.gathering
        if batch is None or not batch.takes(member):
            if batch is not None:
                batch.full.set()
            batch = line.gathering = Batch(limit)
            batch.task = asyncio.create_task(self._go(line, batch, wait), name="embeddings together")
        batch.add(member)
        try:
            return await member.part
        except asyncio.CancelledError:
            batch.leave(member)
            raise

    async def _go(self, line: Line, batch: Batch, wait: float) -> None:
        """Gather, then call; whatever comes of it, each member is told."""
        try:
            await comes(batch.full, wait)
            async with self._turn(line):
                batch.full.set()
                if line.gathering is batch:
                    line.gathering = None
                if len(batch.members) > 1:
                    await self._call(batch)
        except Exception as error:  # noqa: BLE001 - raised again in the request of each member
            _tell(batch, error)
        finally:
            batch.full.set()  # nobody joins it any more
            _tell(batch, None)

    async def _call(self, batch: Batch) -> None:
        members = list(batch.members)
        ask = _ask_of(members)
        async with self._driver.lease(ask) as lease:
            if lease.peer is None:  # else each goes there alone: it may merge them itself
                self._driver.joined(ask.request, [member.record.request_id for member in members[1:]])
                await self._answered(lease, members)

    async def _answered(self, lease: Lease, members: Sequence[Member]) -> None:
        """Each has its part; or none has, and who is at fault shows when each goes alone."""
        try:
            status, body = await self._post(lease, members)
        except EngineFailed as error:
            await self._failed(lease, members, error)
            return
        lease.answered()
        if 400 <= status < 500 and status not in (401, 403):
            return
        if status != 200:
            raise EngineFailed(f"{who(lease)} answered {status}", log=lease.log_tail())
        _share(lease, members, body)

    async def _failed(self, lease: Lease, members: Sequence[Member], error: EngineFailed) -> None:
        """Raises it where the engine lives: it may be carrying out what it was sent."""
        lease.failed(error.message)
        if not await self._driver.is_over(lease):
            raise error
        for member in members:
            member.tried = frozenset({lease.incarnation})

    async def _post(self, lease: Lease, members: Sequence[Member]) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", "Connection": "close"}
        headers["X-Request-Id"] = members[0].record.request_id
        body = merged([member.wish for member in members])
        try:
            async with (
                asyncio.timeout(self._driver.config.engine.answer_timeout),
                lease.session.post(f"http://engine{EMBEDDINGS}", data=body, headers=headers) as reply,
            ):
                return reply.status, await _bounded(reply)
        except TimeoutError as error:
            raise blame(lease, "did not answer in time", EngineSilent) from error
        except (aiohttp.ClientError, OSError) as error:
            raise blame(lease, f"did not answer ({type(error).__name__})") from error


async def _bounded(reply: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in reply.content.iter_any():
        body += chunk
        if len(body) > _LARGEST:
            raise aiohttp.ClientPayloadError("too long")
    return bytes(body)


def _ask_of(members: Sequence[Member]) -> Ask:
    """A text must fit the context by itself, so the call is as long as the longest of its members."""
    asks = [member.ask for member in members]
    letters = [ask.letters for ask in asks if ask.letters is not None]
    known = sum(letters) if len(letters) == len(asks) else None
    name = members[0].record.request_id
    return replace(asks[0], tokens=max(ask.tokens for ask in asks), letters=known, request=name)


def _share(lease: Lease, members: Sequence[Member], body: bytes) -> None:
    try:
        names = [member.record.request_id for member in members]
        parts = split(body, [member.wish for member in members], names)
    except NoAnswer as error:
        what = f"{who(lease)} gave an answer that is none: {error}"
        raise EngineFailed(what, log=lease.log_tail()) from error
    lease.used(sum(count for _, count in parts), None)
    for member, (part, count) in zip(members, parts, strict=True):
        if member.part.done():  # its client has left, and its record is closed
            continue
        member.record.went(lease)
        member.record.prompt = count
        member.part.set_result(part)


def _tell(batch: Batch, error: Exception | None) -> None:
    """Those who have no answer yet: the error, or to go alone."""
    for member in batch.members:
        if member.part.done():
            continue
        if error:
            member.part.set_exception(error)
        else:
            member.part.set_result(None)


def _response(part: bytes) -> web.Response:
    return web.Response(body=part, content_type="application/json")
