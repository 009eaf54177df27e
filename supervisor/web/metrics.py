"""What Prometheus reads at /metrics: requests as they end, engines and devices as they are when asked.

Every label value is of the configuration, of the host's devices or of a few words here: nobody who sends requests
can make up one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from aiohttp import web
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from supervisor.config import Config
from supervisor.web.driving import Driver
from supervisor.web.exposition import merged
from supervisor.web.gauges import Gauges
from supervisor.web.record import Record

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_BETWEEN = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_LAG = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)

_BEAT = 1.0
"""Seconds between two looks at the loop's lag."""


class Metrics:
    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a gauge for each series, which nobody asks for
        self._registry = CollectorRegistry()
        self._registry.register(Gauges(driver))
        ProcessCollector(registry=self._registry)
        self._requests = self._counter("requests", "Requests ended", "model", "source", "status")
        self._errors = self._counter(
            "errors", "Requests that failed, by error code", "model", "source", "code"
        )
        self._tokens = self._counter("tokens", "Tokens that engines counted", "model", "source", "kind")
        self._hits = self._counter(
            "hits", "Requests by what they found: warm, waking, cold, peer", "model", "engine"
        )
        self._latency = self._histogram("request_seconds", "From arrival to the last byte")
        self._first = self._histogram("first_byte_seconds", "From arrival to the first byte")
        self._ttft = self._histogram("time_to_first_token_seconds", "The same of streamed answers alone")
        self._between = self._histogram(
            "inter_token_seconds", "Between two tokens, the mean of each streamed answer", _BETWEEN
        )
        self._queued = self._histogram("queue_seconds", "Waiting for an engine")
        self._lag = Histogram(
            "llmd_loop_lag_seconds", "The event loop's delay", buckets=_LAG, registry=self._registry
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"llmd_{name}", text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
        return Histogram(f"llmd_{name}", text, ["model"], buckets=buckets, registry=self._registry)

    def count(self, record: Record) -> None:
        """A request has ended."""
        model, source = model_of(record, self._driver.config), record.source or ""
        self._requests.labels(model, source, str(record.status)).inc()
        if record.code is not None:
            self._errors.labels(model, source, record.code).inc()
        if record.hit is not None:
            self._hits.labels(model, record.hit).inc()
        for kind, tokens in (("prompt", record.prompt), ("completion", record.completion)):
            self._tokens.labels(model, source, kind).inc(tokens or 0)
        self._time(record, model)

    def _time(self, record: Record, model: str) -> None:
        first = record.ttft()
        for histogram, seconds in (
            (self._latency, record.latency()),
            (self._first, first),
            (self._ttft, first if record.streamed else None),
            (self._between, record.between_tokens()),
            (self._queued, record.queued),
        ):
            if seconds is not None:
                histogram.labels(model).observe(seconds)

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
            self._lag.observe(max(0.0, now() - due))


def model_of(record: Record, config: Config) -> str:
    """The configured model that a request was for, one in a peer's list that it went to, "" where it named none."""
    if record.profile in config.peers:
        return record.model or ""
    profile = config.profiles.get(record.profile or record.model or "")
    if profile is not None:
        return profile.model
    return next((p.model for p in config.profiles.values() if p.model == record.model), "")
