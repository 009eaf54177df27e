"""What is counted by hand reads as prometheus_client's own counters and histograms do."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest

from supervisor.web.counting import Counting, Counts

BOUNDS = (0.1, 1, 2.5)
VALUES = [("a", 0.1), ("a", 0.1000001), ("b", 0.0), ("b", 2.5), ("b", 99.0), ("a", -1.0)]


def test_the_exposition_is_prometheus_clients_own() -> None:
    ours, theirs, counts = CollectorRegistry(), CollectorRegistry(), Counts("x", "Things", "model", "kind")
    counting = Counting(lambda: [counts])
    disable_created_metrics()  # type: ignore[no-untyped-call]
    counter = Counter("x", "Things", ["model", "kind"], registry=theirs)
    histogram = Histogram("y_seconds", "Times", ["model"], buckets=BOUNDS, registry=theirs)
    spread = counting.spread("y_seconds", "Times", ("model",), BOUNDS)
    ours.register(counting)
    for model, value in VALUES:
        counter.labels(model, "z").inc(3)
        counts.add((model, "z"), 3)
        histogram.labels(model).observe(value)
        spread.add((model,), [value])
    assert generate_latest(ours) == generate_latest(theirs)
