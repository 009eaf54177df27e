"""What Prometheus reads at /metrics: requests as they end, engines and GPUs as they are when asked."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from supervisor.web.driving import Driver
from supervisor.web.record import Record

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    def __init__(self, driver: Driver) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Now(driver))
        self._requests = Counter(
            "llmd_requests", "Requests ended", ["model", "source", "status"], registry=self._registry
        )
        self._tokens = Counter(
            "llmd_tokens", "Tokens that engines counted", ["model", "kind"], registry=self._registry
        )
        self._latency = self._histogram("llmd_request_seconds", "From arrival to the last byte")
        self._ttft = self._histogram("llmd_first_byte_seconds", "From arrival to the first byte")
        self._queued = self._histogram("llmd_queue_seconds", "Waiting for an engine")

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, ["model"], buckets=_SECONDS, registry=self._registry)

    def count(self, record: Record, model: str) -> None:
        """`model` is a configured name or "": clients must not be able to make up label values."""
        self._requests.labels(model, record.source or "", str(record.status)).inc()
        self._latency.labels(model).observe(record.latency())
        if (ttft := record.ttft()) is not None:
            self._ttft.labels(model).observe(ttft)
        if record.queued is not None:
            self._queued.labels(model).observe(record.queued)
        self._tokens.labels(model, "prompt").inc(record.prompt or 0)
        self._tokens.labels(model, "completion").inc(record.completion or 0)

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _Now(Collector):
    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def describe(self) -> Iterable[Metric]:
        return []  # else the driver would be asked before it runs

    def collect(self) -> Iterable[Metric]:
        status = self._driver.status()
        flying = GaugeMetricFamily("llmd_in_flight", "Requests on an engine", labels=["profile"])
        queued = GaugeMetricFamily("llmd_queued", "Requests that wait", labels=["profile"])
        state = GaugeMetricFamily("llmd_engine_state", "1 for its state", labels=["profile", "state"])
        for engine in status["engines"]:
            flying.add_metric([engine["profile"]], engine["in_flight"])
            queued.add_metric([engine["profile"]], engine["queued"])
            state.add_metric([engine["profile"], engine["state"]], 1)
        memory = GaugeMetricFamily("llmd_memory_bytes", "Of a device, by kind", labels=["device", "kind"])
        for device in status["devices"]:
            for kind in ("total", "used", "free"):
                if device[kind] is not None:
                    memory.add_metric([str(device["device"]), kind], device[kind])
        return [flying, queued, state, memory]
