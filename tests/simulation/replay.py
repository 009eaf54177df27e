"""Play seeds of the chaos simulation again.

usage: python -m tests.simulation.replay SEED [--tail N]     one seed, with its history where it fails
       python -m tests.simulation.replay --soak N [--from M]     the seeds M to M + N on all cores
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import get_args

from supervisor.core import orders
from tests.simulation.scenario import Scenario

ORDERS = get_args(orders.Order)


def fault(seed: int) -> str | None:
    """What a seed breaks, in words with the way to see it again; None where all holds."""
    scenario = Scenario(seed)
    try:
        scenario.play()
    except Exception as error:  # noqa: BLE001 - whatever the core raises is a finding
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {error} ({place.name}, {place.filename}:{place.lineno})"
        return f"seed {seed} at {scenario.now:.1f} s: {what}\n  python -m tests.simulation.replay {seed}"
    return None


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


def soak(seeds: range) -> Iterator[str]:
    with ProcessPoolExecutor() as pool:
        yield from filter(None, pool.map(fault, seeds, chunksize=8))


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
    failed = 0
    for found in soak(range(asked.first, asked.first + asked.soak)):
        failed += 1
        print(found, flush=True)
    print(f"{asked.soak} seeds, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
