"""What Prometheus reads at /metrics: requests as they end, engines and devices as they are when asked.

Every label value is of the configuration, of the host's devices or of a few words here: nobody who sends requests
can make up one.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from supervisor.config import Config
from supervisor.web.counting import Counting, Counts
from supervisor.web.driving import Driver
from supervisor.web.exposition import merged
from supervisor.web.gauges import Gauges
from supervisor.web.record import Record

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_BETWEEN = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_LAG = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)

_COUNTS = (
    ("llmd_requests", "Requests ended", "model", "source", "status"),
    ("llmd_errors", "Requests that failed, by error code", "model", "source", "code"),
    (
        "llmd_tokens",
        "Tokens that engines counted; of streams without counts, about",
        "model",
        "source",
        "kind",
    ),
    ("llmd_hits", "Requests by what they found: warm, waking, cold, peer", "model", "engine"),
)

_TIMES = (
    ("request", "From arrival to the last byte", _SECONDS),
    ("first_byte", "From arrival to the first byte", _SECONDS),
    ("time_to_first_token", "The same of streamed answers alone", _SECONDS),
    ("inter_token", "Between two tokens, the mean of each streamed answer", _BETWEEN),
    ("queue", "Waiting for an engine", _SECONDS),
)

_BEAT = 1.0
"""Seconds between two looks at the loop's lag."""

CROWD = 16
"""Requests that are added up at once: the code is at hand then, which it is not between two requests."""

_Kind = tuple[str, str, int, str | None, str | None]
"""Of requests: model, source, status, error code, and what they found."""


class _Sums(msgspec.Struct):
    """Of all requests of one kind."""

    requests: int = 0
    prompt: int = 0
    completion: int = 0


class Metrics:
    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._registry = CollectorRegistry()
        self._registry.register(Gauges(driver))
        ProcessCollector(registry=self._registry)
        self._config = driver.config
        self._ended: list[Record] = []
        """Not added up yet."""
        self._sums: defaultdict[_Kind, _Sums] = defaultdict(_Sums)
        counting = Counting(self._counts)
        self._latency, self._first, self._ttft, self._between, self._queued = (
            counting.spread(f"llmd_{name}_seconds", text, ("model",), bounds) for name, text, bounds in _TIMES
        )
        self._lag = counting.spread("llmd_loop_lag_seconds", "The event loop's delay", (), _LAG)
        self._registry.register(counting)

    def count(self, record: Record) -> None:
        """A request has ended. It goes by the names of the configuration that held then."""
        if len(self._ended) >= CROWD or self._driver.config is not self._config:
            self._add_up()
        self._ended.append(record)

    def _add_up(self) -> None:
        """What was counted until now."""
        ended, self._ended = self._ended, []
        models: defaultdict[str, list[Record]] = defaultdict(list)
        for record in ended:
            models[model_of(record, self._config)].append(record)
        for model, records in models.items():
            self._sum(model, records)
            self._time((model,), records)
        self._config = self._driver.config

    def _sum(self, model: str, records: list[Record]) -> None:
        for record in records:
            sums = self._sums[model, record.source or "", record.status, record.code, record.hit]
            sums.requests += 1
            sums.prompt += record.prompt or 0
            sums.completion += record.completion or 0

    def _counts(self) -> Iterator[Counts]:
        """What was summed up of requests, by the labels that Prometheus reads."""
        self._add_up()
        requests, errors, tokens, hits = (Counts(*family) for family in _COUNTS)
        for (model, source, status, code, hit), sums in self._sums.items():
            requests.add((model, source, str(status)), sums.requests)
            if code is not None:
                errors.add((model, source, code), sums.requests)
            if hit is not None:
                hits.add((model, hit), sums.requests)
            tokens.add((model, source, "prompt"), sums.prompt)
            tokens.add((model, source, "completion"), sums.completion)
        yield from (requests, errors, tokens, hits)

    def _time(self, model: tuple[str], records: list[Record]) -> None:
        first = [
            (record.first - record.started, record.streamed) for record in records if record.first is not None
        ]
        self._latency.add(model, [record.latency() for record in records])
        self._first.add(model, [seconds for seconds, _ in first])
        self._ttft.add(model, [seconds for seconds, streamed in first if streamed])
        self._between.add(
            model, [mean for record in records if (mean := record.between_tokens()) is not None]
        )
        self._queued.add(model, [record.queued for record in records if record.queued is not None])

    async def text(self) -> bytes:
        """Ours, and the engines' where `server.engine_metrics` says so."""
        ours = generate_latest(self._registry)
        if not self._driver.config.server.engine_metrics:
            return ours
        return ours + merged(await self._driver.engine_metrics())

    async def watch_the_loop(self, _app: web.Application) -> AsyncIterator[None]:
        """For an application's cleanup contexts: measures, as long as it runs, how late a timer comes."""
        watching = asyncio.create_task(self._watch(), name="loop lag")
        yield
        watching.cancel()
        await asyncio.wait([watching])

    async def _watch(self) -> None:
        now = asyncio.get_running_loop().time
        while True:
            due = now() + _BEAT
            await asyncio.sleep(_BEAT)
            self._lag.add((), [max(0.0, now() - due)])


def model_of(record: Record, config: Config) -> str:
    """The configured model that a request was for, one in a peer's list that it went to, "" where it named none."""
    if record.profile in config.peers:
        return record.model or ""
    profile = config.profiles.get(record.profile or record.model or "")
    if profile is not None:
        return profile.model
    return next((p.model for p in config.profiles.values() if p.model == record.model), "")
