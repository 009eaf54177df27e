"""Random histories of requests for embeddings in imaginary time: each ends, with its own embeddings or an error, and
nothing is left behind."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from fakes import FakeLease

from supervisor.config import Config, Profile, Server
from supervisor.core.routing import Ask
from supervisor.errors import EngineFailed, LlmdError, NotAvailable
from supervisor.host.upstream import Pool
from supervisor.web import patience
from supervisor.web.batching import Batches
from supervisor.web.embeddings import read_wish
from supervisor.web.record import Record

REQUESTS = 40
FOREVER = 600.0
"""Seconds that a request may take in all: none comes near it but one that hangs."""


class Imaginary(asyncio.SelectorEventLoop):
    """Its clock goes on when nothing is to be done."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        due = [timer.when() for timer in self._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
        if due and not self._ready:  # type: ignore[attr-defined]
            self.now = max(self.now, min(due))
        super()._run_once()  # type: ignore[misc]


@dataclass
class Reply:
    status: int
    body: bytes = b""

    @property
    def content(self) -> Reply:
        return self

    async def iter_any(self) -> AsyncIterator[bytes]:
        yield self.body


@dataclass
class Engine:
    """A driver and the engine behind it: slow at times, unwilling, failing, or dead."""

    rng: random.Random
    config: Config
    held: int = 0

    async def takes(self, *seconds: float) -> None:
        await asyncio.sleep(self.rng.choice(seconds))

    @asynccontextmanager
    async def lease(self, ask: Ask) -> AsyncIterator[FakeLease]:
        await self.takes(0.0, 0.01, 0.5)
        if self.rng.random() < 0.1:
            raise NotAvailable("it does not start", retry_after=1)
        self.held += 1
        try:
            pool, known = Pool(Path("/nowhere"), None, 1.0), self.config.profiles["bge_0"]
            yield FakeLease("bge_0", pool, self, configured=known)  # type: ignore[arg-type]
        finally:
            self.held -= 1

    @asynccontextmanager
    async def post(self, _url: str, data: bytes, headers: object) -> AsyncIterator[Reply]:
        await self.takes(0.0, 0.01, 0.3, 2.0)
        chance, inputs = self.rng.random(), json.loads(data)["input"]
        if chance < 0.1:
            raise aiohttp.ClientError
        told = [{"index": n, "object": "embedding", "embedding": [text]} for n, text in enumerate(inputs)]
        body = {"data": told[1:] if chance < 0.2 else told, "model": "bge", "usage": {"prompt_tokens": 9}}
        yield Reply(400 if chance < 0.3 else 200, json.dumps(body).encode())

    async def is_over(self, _lease: object) -> bool:
        await self.takes(0.0, 0.01)
        return self.rng.random() < 0.5

    def joined(self, *_: object) -> None: ...


@dataclass
class History:
    rng: random.Random
    engine: Engine
    errors: set[type[LlmdError]] = field(default_factory=set)
    closed: list[tuple[Record, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.batches = Batches(self.engine)  # type: ignore[arg-type]

    async def ask(self, number: int) -> None:
        inputs = [f"{number} {part}" for part in range(self.rng.choice([1, 1, 1, 2, 4]))]
        record = Record(f"r{number}", asyncio.get_running_loop().time())
        try:
            found = await self.answer(inputs, record)
            assert found in (inputs, ["alone"])
        except LlmdError as error:
            self.errors.add(type(error))
        finally:
            self.closed.append((record, repr(record)))

    async def answer(self, inputs: list[str], record: Record) -> list[str]:
        wish = read_wish(json.dumps({"model": "bge", "input": inputs}).encode())
        assert wish is not None
        response: Any = await self.batches.serve(wish, Ask("bge", letters=4), record, self.alone)
        return [entry["embedding"][0] for entry in json.loads(response.body)["data"]]

    async def alone(self, _tried: frozenset[str]) -> web.StreamResponse:
        await self.engine.takes(0.0, 0.01, 0.3, 2.0)
        return web.json_response({"data": [{"embedding": ["alone"]}]})

    async def play(self) -> None:
        """Clients come, and some of them leave."""
        tasks = []
        for number in range(REQUESTS):
            tasks.append(asyncio.create_task(self.ask(number)))
            await self.engine.takes(0.0, 0.001, 0.05, 0.2, 1.0)
            if self.rng.random() < 0.25:
                self.rng.choice(tasks).cancel()
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            assert ended is None or isinstance(ended, asyncio.CancelledError), ended
        await asyncio.sleep(FOREVER)


@pytest.mark.parametrize("seed", range(60))
def test_whatever_happens_each_ends_and_nothing_is_left(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    bge = Profile(
        name="bge_0",
        model="bge",
        weights="w",
        gpus=(0,),
        task="embed",
        batch_inputs=rng.choice([2, 4, 8]),
        batch_wait=rng.choice([0.0, 0.05, 1.0]),
        max_concurrent=rng.choice([1, 2, 4]),
    )
    server = Server(max_wait=rng.choice([1.0, 5.0, 50.0]), request_timeout=FOREVER)
    engine = Engine(rng, Config(path=Path("llmd.toml"), server=server, profiles={"bge_0": bge}))
    with asyncio.Runner(loop_factory=Imaginary) as runner:
        monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=runner.get_loop().time))
        history = History(rng, engine)
        runner.run(history.play())
    assert history.errors <= {NotAvailable, EngineFailed}, "and none that waited without an end"
    assert (engine.held, history.batches._lines) == (0, {})
    assert all(repr(record) == told for record, told in history.closed), "it changed after its end"
