"""Who has had how much: a virtual token counter for each source, so that none starves another.

After Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024): a source's counter rises by the
weighted tokens it was served, the source with the lowest goes next, and one that comes back from idleness is
lifted to the lowest of those active, so that it cannot save up.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

PROMPT = 1.0
OUTPUT = 2.0
"""An output token costs about twice a prompt token's time (the paper's weights)."""


@dataclass(slots=True)
class Fairness:
    weights: Mapping[str, float] = field(default_factory=dict)
    _counters: dict[str, float] = field(default_factory=dict)

    def counter(self, source: str) -> float:
        return self._counters.get(source, 0.0)

    def arrive(self, source: str, active: Collection[str]) -> None:
        """`source` asks, while the sources `active` wait or are served already."""
        if source not in active and active:
            lowest = min(self.counter(other) for other in active)
            self._counters[source] = max(self.counter(source), lowest)

    def charge(self, source: str, prompt: float, output: float) -> None:
        """Tokens served. A prompt is charged when it is sent, as estimated, and put right by a second charge."""
        counters, cost = self._counters, PROMPT * prompt + OUTPUT * output
        counters[source] = counters.get(source, 0.0) + cost / self.weights.get(source, 1.0)
