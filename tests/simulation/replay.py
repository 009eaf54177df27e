"""Play seeds of the chaos simulation again.

usage: python -m tests.simulation.replay SEED [--tail N]     one seed, with its history where it fails
       python -m tests.simulation.replay --soak N [--from M]     the seeds M to M + N on all cores
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import get_args

from supervisor.core import events, orders
from tests.simulation.scenario import Scenario

ORDERS = get_args(orders.Order)

MUST_HAPPEN = (
    *(event.__name__ for event in get_args(events.Event)),
    *(order.__name__ for order in ORDERS),
    *(
        "lent", "loan_ended", "a borrower took its memory", "a borrower kept it past its time", "died with a loan",
        "engine_eased", "died with an eased engine", "engine_asleep", "sleep_failed", "engine_waking",
        "a person put one to sleep", "died with a sleeper", "died while one fell asleep",
        "died while one was waking", "found asleep", "found waking", "adoption_failed", "engine_pinned", "a mode was forced",
        "a mode was released", "mode_ready", "mode_rolled_back", "peer_up", "peer_down",
        "a peer was granted a request", "a peer broke off a request", "gpu_xid", "device_quarantined",
        "device_released", "evict", "swap_limit", "start_refused", "engine_restart_policy", "foreign_grew",
    ),
)  # fmt: skip
"""What takes part: every event, every order, and what neither tells. Chaos in which one is missing proves nothing of
it."""


@dataclass(frozen=True, slots=True)
class Played:
    """`fault`: what a seed breaks, in words with the way to see it again; None where all holds."""

    fault: str | None
    happened: Counter[str]


def play(seed: int) -> Played:
    scenario = Scenario(seed)
    try:
        scenario.play()
    except Exception as error:  # noqa: BLE001 - whatever the core raises is a finding
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {error} ({place.name}, {place.filename}:{place.lineno})"
        words = f"seed {seed} at {scenario.now:.1f} s: {what}\n  python -m tests.simulation.replay {seed}"
        return Played(words, scenario.happened)
    return Played(None, scenario.happened)


def replay(seed: int, tail: int) -> None:
    """Raises what the seed breaks, after the last `tail` lines of its history."""
    scenario = Scenario(seed)
    try:
        scenario.play()
    except Exception:
        for when, what in scenario.history[-tail:]:
            print(f"{when:9.1f}  {'-> ' if isinstance(what, ORDERS) else ''}{what!r:.400}")
        raise
    print(f"seed {seed}: {len(scenario.history)} lines of history, {scenario.lives} daemons, all holds")


def soak(seeds: range) -> Iterator[Played]:
    with ProcessPoolExecutor() as pool:
        yield from pool.map(play, seeds, chunksize=8)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("seed", nargs="?", type=int)
    parser.add_argument("--tail", type=int, default=60, help="lines of history to print")
    parser.add_argument("--soak", type=int, metavar="N", help="play so many seeds")
    parser.add_argument("--from", dest="first", type=int, default=0, help="the first of them")
    asked = parser.parse_args()
    if asked.soak is None:
        replay(asked.seed or 0, asked.tail)
        return 0
    failed, happened = 0, Counter[str]()
    for played in soak(range(asked.first, asked.first + asked.soak)):
        happened += played.happened
        if played.fault:
            failed += 1
            print(played.fault, flush=True)
    print(", ".join(f"{what} {happened[what]}" for what in MUST_HAPPEN))
    print(f"{asked.soak} seeds, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
