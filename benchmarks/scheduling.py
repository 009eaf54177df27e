"""llmd's scheduling against the policies people use today: six traces, one simulator, the core that serves.

usage: python -m benchmarks.scheduling [--json] [--seed N] [TRACE ...]
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from supervisor.cli.replay import changes
from supervisor.config import Config, Key, Mode, Profile
from supervisor.simulation.peers import POLICIES
from supervisor.simulation.report import report
from supervisor.simulation.trace import Request
from supervisor.simulation.world import GIB, Card, World

HOURS = 3600.0
BEGINS = datetime(2026, 1, 1, 16, tzinfo=UTC)
KEYS = {
    "webui": Key(env="A"),
    "alice": Key(env="B"),
    "bob": Key(env="C"),
    "n8n": Key(env="D", priority="batch"),
    "agent": Key(env="E"),
}


@dataclass(frozen=True)
class Case:
    """What is asked of which cards."""

    profiles: tuple[Profile, ...]
    cards: tuple[Card, ...]
    trace: list[Request]
    modes: Mapping[str, Mode] = field(default_factory=dict)
    """By the clock; a trace begins at BEGINS."""


def profile(name: str, *gpus: int, gib: float = 20.0, **fields: Any) -> Profile:
    fields = {"max_concurrent": 8, "max_queue": 512} | fields
    return Profile(
        name=name, model=name.rsplit("_", 1)[0], weights="w", gpus=gpus, vram=int(gib * GIB), **fields
    )


def chat(
    rng: random.Random, key: str, model: str, since: float, until: float, think: float = 40
) -> Iterator[Request]:
    """A person: asks, reads, asks again."""
    now = since
    while now < until:
        output = rng.randint(40, 400)
        yield Request(now, key, model, rng.randint(100, 3000), output)
        now += output / 40 + rng.expovariate(1 / think)


def loop(
    rng: random.Random, key: str, model: str, since: float, until: float, every: float
) -> Iterator[Request]:
    """A program: asks at a steady pace, whether or not it was answered."""
    now = since
    while now < until:
        yield Request(now, key, model, rng.randint(500, 2000), rng.randint(100, 300))
        now += rng.expovariate(1 / every)


def two_chats(rng: random.Random) -> Case:
    trace = [*chat(rng, "alice", "llama", 0, 2 * HOURS), *chat(rng, "bob", "coder", 7, 2 * HOURS)]
    return Case((profile("llama_0", 0), profile("coder_0", 0)), (Card(),), trace)


def chat_and_batch(rng: random.Random) -> Case:
    trace = [*chat(rng, "alice", "llama", 0, 2 * HOURS), *loop(rng, "n8n", "coder", 60, 2 * HOURS, every=4)]
    return Case((profile("llama_0", 0), profile("coder_0", 0)), (Card(),), trace)


def fan_out(rng: random.Random) -> Case:
    bursts = [
        Request(at + rng.uniform(0, 2), "agent", "coder", rng.randint(1000, 4000), rng.randint(100, 500))
        for at in range(300, 7200, 900)
        for _ in range(40)
    ]
    trace = [*chat(rng, "alice", "llama", 0, 2 * HOURS), *bursts]
    return Case((profile("llama_0", 0), profile("coder_0", 0)), (Card(),), trace)


def embedding_bursts(rng: random.Random) -> Case:
    bursts = [
        Request(at + rng.uniform(0, 3), "webui", "bge", rng.randint(100, 500), 0)
        for at in range(200, 7200, 400)
        for _ in range(100)
    ]
    models = (profile("llama_0", 0), profile("bge_0", 0, gib=3, task="embed"), profile("coder_0", 0))
    others = [
        *chat(rng, "alice", "llama", 0, 2 * HOURS),
        *chat(rng, "bob", "coder", 30, 2 * HOURS, think=300),
    ]
    return Case(models, (Card(),), [*others, *bursts])


def day_and_night(rng: random.Random) -> Case:
    models = (
        profile("llama_0", 0), profile("llama_1", 1), profile("coder_0", 0), profile("coder_1", 1),
        profile("deepseek_0", 0), profile("bge_1", 1, gib=2.5, task="embed"), profile("72b_dual", 0, 1, gib=22),
    )  # fmt: skip
    trace = [
        *chat(rng, "alice", "llama", 0, 6 * HOURS, think=90),
        *chat(rng, "bob", "coder", 1 * HOURS, 5 * HOURS, think=120),
        *chat(rng, "webui", "deepseek", 2 * HOURS, 3 * HOURS, think=200),
        *loop(rng, "n8n", "bge", 0, 8 * HOURS, every=60),
        *loop(rng, "n8n", "72b", 6.5 * HOURS, 9 * HOURS, every=30),
        *chat(rng, "alice", "llama", 7 * HOURS, 7.5 * HOURS, think=300),
    ]
    day = tuple(model.name for model in models if model.name != "72b_dual")
    night = ("72b_dual", "llama_0", "bge_1")
    modes = {
        "day": Mode(start=time(6), timezone="UTC", profiles=day),
        "night": Mode(start=time(22, 30), timezone="UTC", profiles=night, warm=("72b_dual",)),
    }
    return Case(models, (Card(), Card()), trace, modes)


def noisy_neighbour(rng: random.Random) -> Case:
    steps: list[tuple[float, int]] = []
    now = 0.0
    while now < 2 * HOURS:
        now += rng.expovariate(1 / 900)
        steps += [(now, 6 * GIB), (now + rng.uniform(60, 400), 0)]
        now = steps[-1][0]
    trace = [*chat(rng, "alice", "llama", 0, 2 * HOURS), *chat(rng, "bob", "coder", 20, 2 * HOURS, think=120)]
    models = (profile("llama_0", 0), profile("llama_1", 1), profile("coder_0", 0), profile("coder_1", 1))
    return Case(models, (Card(others=tuple(steps)), Card()), trace)


TRACES: dict[str, Callable[[random.Random], Case]] = {
    "two chats, one card": two_chats,
    "chat and a batch loop": chat_and_batch,
    "an agent's fan-out of 40": fan_out,
    "embedding bursts during chat": embedding_bursts,
    "the day and its night run": day_and_night,
    "a noisy neighbour": noisy_neighbour,
}


def play(case: Case, policy: str, seed: int, *, sleep: bool = False) -> dict[str, Any]:
    profiles = {p.name: p.model_copy(update={"sleep": sleep}) for p in case.profiles}
    config = Config(path=Path("llmd.toml"), profiles=profiles, keys=KEYS, modes=case.modes)
    world = World(config, case.cards, POLICIES[policy](), seed=seed)
    trace = sorted(case.trace, key=lambda request: request.time)
    for at, change in changes(case.modes, BEGINS, trace[-1].time):
        world.expect(at, change)
    world.run(trace)
    return report(world)


def compare(case: Case, seed: int) -> dict[str, dict[str, Any]]:
    """Every policy on engines that cannot sleep; and llmd's own on engines that can."""
    return {"llmd, with sleep": play(case, "llmd", seed, sleep=True)} | {
        policy: play(case, policy, seed) for policy in POLICIES
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("traces", nargs="*", choices=[*TRACES, []], metavar="TRACE", help=", ".join(TRACES))
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    results: dict[str, Any] = {}
    for name in asked.traces or TRACES:
        case = TRACES[name](random.Random(asked.seed))
        results[name] = compare(case, asked.seed)
    if asked.json:
        json.dump(results, sys.stdout, indent=2)
    else:
        show(results)


def show(results: dict[str, Any]) -> None:
    console = Console(width=130)
    for name, by_policy in results.items():
        table = Table("policy", title=name, title_justify="left")
        for column in (
            "p50",
            "p95",
            "max",
            "refused",
            "batch p95",
            "batch max",
            "refused",
            "swaps",
            "evictions",
            "loading s",
        ):
            table.add_column(column, justify="right")
        for policy, found in by_policy.items():
            chat, batch = found["interactive"], found["batch"]
            cells = [chat["p50_s"], chat["p95_s"], chat["max_s"], chat["refused"]]
            cells += [batch["p95_s"], batch["max_s"], batch["refused"]]
            cells += [found["swaps"], found["evictions"], found["loading_s"]]
            table.add_row(policy, *("-" if cell is None else f"{cell:g}" for cell in cells))
        console.print(table)


if __name__ == "__main__":
    main()
