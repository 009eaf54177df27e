"""What a simulated run was like for those who waited, and what it cost the cards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from supervisor.simulation.world import Outcome, World


def report(world: World) -> dict[str, Any]:
    """Waits by class in seconds, evictions, card-seconds spent loading, refusals, and the first one's words.

    `evictions` are all that made room, `swaps` those of them that cost an engine in use.
    """
    outcomes = list(world.outcomes.values())
    batch = [o for o in outcomes if world.fleet.is_batch(o.request.key)]
    interactive = [o for o in outcomes if not world.fleet.is_batch(o.request.key)]
    return {
        "interactive": waits(interactive),
        "batch": waits(batch),
        "swaps": world.counts["swap"],
        "evictions": world.counts["evict"],
        "loading_s": round(world.loading, 1),
        "refusal": next((o.refused for o in outcomes if o.refused is not None), None),
    }


def waits(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """A request that was refused waited until then, and counts as such a wait."""
    waited = sorted(o.waited for o in outcomes if o.waited is not None)
    return {
        "requests": len(outcomes),
        "p50_s": percentile(waited, 0.50),
        "p95_s": percentile(waited, 0.95),
        "max_s": percentile(waited, 1.0),
        "refused": sum(o.refused is not None for o in outcomes),
        "left": sum(o.left for o in outcomes),
    }


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """Nearest rank, the least value that `share` of all do not exceed; None of nothing."""
    if not ordered:
        return None
    rank = math.ceil(round(share * len(ordered), 9))  # 0.07 of 100 is a little more than 7 in floating point
    return round(ordered[max(0, rank - 1)], 2)
