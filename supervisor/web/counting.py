"""Counters and histograms as Prometheus reads them, counted without locks or look-ups of labels: on one event loop."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import INF, floatToGoString

Labels = tuple[str, ...]


class Counts:
    """A counter for each set of labels."""

    def __init__(self, name: str, text: str, *labels: str) -> None:
        self._family = name, text, labels
        self._found: Counter[Labels] = Counter()

    def add(self, labels: Labels, amount: int = 1) -> None:
        self._found[labels] += amount

    def collect(self) -> Metric:
        name, text, labels = self._family
        family = CounterMetricFamily(name, text, labels=labels)
        for values, amount in self._found.items():
            family.add_metric(values, amount)
        return family


class Spread:
    """A histogram for each set of labels. `bounds` are the buckets' upper ends, without the infinite one."""

    def __init__(self, name: str, text: str, labels: Labels, bounds: tuple[float, ...]) -> None:
        self._family = name, text, labels
        self._bounds = bounds
        self._found: dict[Labels, tuple[list[int], list[float]]] = {}

    def add(self, labels: Labels, values: Sequence[float]) -> None:
        if not values:
            return
        counts, total = self._found.setdefault(labels, ([0] * (len(self._bounds) + 1), [0.0]))
        for value in values:
            counts[bisect_left(self._bounds, value)] += 1
        total[0] += sum(values)

    def collect(self) -> Metric:
        name, text, labels = self._family
        family = HistogramMetricFamily(name, text, labels=labels)
        ends = [floatToGoString(bound) for bound in (*self._bounds, INF)]  # type: ignore[no-untyped-call]
        for values, (counts, total) in self._found.items():
            family.add_metric(values, list(zip(ends, accumulate(counts), strict=True)), total[0])
        return family


class Counting(Collector):
    """All of them, for a registry. `counts` are made when they are read."""

    def __init__(self, counts: Callable[[], Iterable[Counts]]) -> None:
        self._counts = counts
        self._spreads: list[Spread] = []

    def spread(self, name: str, text: str, labels: Labels, bounds: tuple[float, ...]) -> Spread:
        self._spreads.append(made := Spread(name, text, labels, bounds))
        return made

    def collect(self) -> Iterator[Metric]:
        for counts in self._counts():
            yield counts.collect()
        for spread in self._spreads:
            yield spread.collect()
