"""What a decision costs: 16 profiles on 8 GPUs, 500 requests always waiting, every event timed.

Each of the GPUs has room for one of two models, both are asked for all the time by four keys, so there is always
something to decide: who is next, who gives up its place, and when. Times are of the CPU, so that other work on the
machine does not count.

usage: python -m benchmarks.deciding [--events N] [--json]
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import sys
import time
from array import array
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from supervisor.config import Config, Key, Profile
from supervisor.core import decide, events, orders
from supervisor.core.devices import GIB, MIB
from supervisor.core.events import Event
from supervisor.core.routing import Ask
from supervisor.simulation.trace import Request
from supervisor.simulation.world import Card, Outcome, World

GPUS = 8
WAITING = 500
SLOTS = 4
KEYS = {
    "webui": Key(env="A"),
    "alice": Key(env="B"),
    "bob": Key(env="C"),
    "n8n": Key(env="D", priority="batch"),
}
MEDIAN_GOAL, P99_GOAL = 100.0, 1000.0
"""Microseconds."""


class Crowd(World):
    """As many clients as are served at a time and as many as wait; who was answered, or refused, asks again."""

    def __init__(self, config: Config) -> None:
        self.took: dict[str, array[float]] = defaultdict(lambda: array("f"))
        """Microseconds by kind of event."""
        self.told = self.asked = 0
        super().__init__(config, tuple(Card() for _ in range(GPUS)))
        self._keep_reading()
        for _ in range(WAITING + GPUS * SLOTS):
            self.ask()

    def play(self, count: int) -> None:
        """So many events more."""
        until = self.told + count
        while self.told < until:
            self._step()

    def ask(self) -> None:
        n = self.asked = self.asked + 1
        models, keys = list(self.config.profiles), list(KEYS)
        request = Request(self.now, keys[n % 7 % 4], models[n * 7 % 16], 500, 40 + n % 400)
        self.later(0.05 + n % 10 / 10, lambda: self._arrive(f"r{n}", request))

    def tell(self, event: Event) -> None:
        began = time.thread_time_ns()
        ordered = decide.handle(self.fleet, event, self.now)
        self.took[type(event).__name__].append((time.thread_time_ns() - began) / 1000)
        self.told += 1
        for order in ordered:
            self._obey(order)
            if isinstance(order, orders.Refuse):
                self._over(order.lease)
        if isinstance(event, events.Left):
            self._over(event.lease)

    def _arrive(self, lease: str, request: Request) -> None:
        self.outcomes[lease] = Outcome(request)
        self.tell(events.Arrived(lease, Ask(request.model, request.key, request.prompt), 290.0))

    def _over(self, lease: str) -> None:
        del self.outcomes[lease]
        self.ask()


def crowd() -> Crowd:
    profiles = [
        Profile(
            name=f"m{n}_{n % GPUS}", model=f"m{n}", weights="w", gpus=(n % GPUS,), vram=20 * GIB,
            max_concurrent=SLOTS, max_queue=WAITING, sleep=n % 3 == 0,
        )
        for n in range(2 * GPUS)
    ]  # fmt: skip
    named = {profile.name: profile for profile in profiles}
    return Crowd(Config(path=Path("llmd.toml"), profiles=named, keys=KEYS))


def measure(count: int) -> dict[str, Any]:
    """A tenth to warm up, then the rest; resident memory after each."""
    world = crowd()
    world.play(count // 10)
    early = resident()
    world.took.clear()
    world.play(count - count // 10)
    waiting = len(world.fleet.queues)
    grown = resident() - early - sum(map(sys.getsizeof, world.took.values()))
    return {
        "events": {kind: spread(took) for kind, took in sorted(world.took.items())},
        "all": spread([value for took in world.took.values() for value in took]),
        "waiting": waiting,
        "grown_mib": round(grown / MIB, 1),
        "hours": round(world.now / 3600, 1),
        "swaps": world.counts["swap"],
    }


def resident() -> int:
    """Bytes of this process."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def spread(took: Sequence[float]) -> dict[str, float]:
    ordered = sorted(took)
    return {
        "count": len(ordered),
        "median_us": round(ordered[len(ordered) // 2], 1),
        "p99_us": round(ordered[len(ordered) * 99 // 100], 1),
        "max_us": round(ordered[-1], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    asked = parser.parse_args()
    found = measure(asked.events)
    if asked.json:
        json.dump(found, sys.stdout, indent=2)
    else:
        show(found)


def show(found: dict[str, Any]) -> None:
    title = f"{found['waiting']} waiting, {found['hours']} virtual hours, {found['swaps']} swaps"
    table = Table("event", title=title, title_justify="left")
    for column in ("count", "median us", "p99 us", "max us"):
        table.add_column(column, justify="right")
    for kind, took in (found["events"] | {"all": found["all"]}).items():
        table.add_row(kind, *(f"{took[key]:g}" for key in ("count", "median_us", "p99_us", "max_us")))
    console = Console(width=100)
    console.print(table)
    console.print(
        f"memory grew by {found['grown_mib']} MiB; goals: median {MEDIAN_GOAL:g}, p99 {P99_GOAL:g} us"
    )


if __name__ == "__main__":
    main()
