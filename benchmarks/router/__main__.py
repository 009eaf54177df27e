"""What llmd's router costs, as ratios to nginx, taken in turns in one run: `make bench`, or

    python benchmarks/router [--rounds 3] [--seconds 3] [--only WORDS] [--nginx PROGRAM] [--llmd NAME=COMMAND ...]

The engine and the load share the first CPU, the router under test has the second. Each round measures every router
in every case, in another order; a figure is the median of the rounds, with its spread. --llmd adds another llmd to
compare with, such as one before a change; `make peers` installs vLLM's router and LiteLLM. What is not installed is
left out, with words.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import routers
from routers import ENGINE_CPU, Router

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
PEERS = {"vllm-router": routers.vllm_router, "litellm": routers.litellm}
"""In environments of these names, with a program that is called the same."""

Figures = dict[tuple[str, str], list[float]]
"""(case, router) -> one figure a round."""


@dataclass(frozen=True)
class Case:
    """What is asked, and which figure of it is told."""

    name: str
    clients: int
    tokens: int
    pause: int
    body: int
    figure: str


CASES = [
    Case("requests/s, 64 clients", 64, 0, 0, 0, "requests"),
    Case("CPU a request, 64 clients, us", 64, 0, 0, 0, "cpu_request"),
    Case("latency p50, 1 client, us", 1, 0, 0, 0, "p50"),
    Case("latency p99, 1 client, us", 1, 0, 0, 0, "p99"),
    Case("chunks/s, 64 streams", 64, 200, 0, 0, "chunks"),
    Case("CPU a chunk, 64 streams every 2.5 ms, us", 64, 4000, 2500, 0, "cpu_chunk"),
    Case("first chunk p50, 64 clients, us", 64, 5, 1000, 0, "first_p50"),
    Case("p99 delay of a chunk, 256 streams every 50 ms, us", 256, 4000, 50_000, 0, "delay_p99"),
    Case("2 MB body p50, us", 1, 0, 0, 2_000_000, "p50"),
    Case("resident MB, 256 streams", 256, 4000, 50_000, 0, "resident"),
]


def main() -> int:
    given = arguments()
    if len(os.sched_getaffinity(0)) < 2 or not (compiler := shutil.which("cc")):
        print("left out: the router's benchmark needs two CPUs and a C compiler")
        return 0
    with tempfile.TemporaryDirectory(prefix="llmd-", dir="/tmp") as home:
        for program in ("engine", "load"):
            subprocess.run([compiler, "-O2", "-o", f"{home}/{program}", HERE / f"{program}.c"], check=True)
        cases = [case for case in CASES if given.only in case.name]
        bench = Bench(Path(home), given.seconds, cases)
        report(bench.run(given.rounds, targets(given)), cases)
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="What a hop through llmd costs, next to nginx and to others."
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--only", default="", metavar="WORDS", help="cases whose name has these words in it")
    parser.add_argument("--nginx", default=shutil.which("nginx") or "/usr/sbin/nginx")
    parser.add_argument("--llmd", action="append", default=[], metavar="NAME=COMMAND")
    parser.add_argument(
        "--peers",
        type=Path,
        default=CACHE / "llmd" / "peers",
        metavar="FOLDER",
        help=f"has an environment each for {' and '.join(PEERS)}, as `make peers` builds them; default %(default)s",
    )
    return parser.parse_args()


def targets(given: argparse.Namespace) -> dict[str, Router]:
    found: dict[str, Router] = {}
    if Path(given.nginx).exists():
        found["nginx"] = routers.nginx(given.nginx)
    else:
        print("left out: nginx is not installed, so there are figures and no ratios")
    found["llmd"] = routers.llmd([str(Path(sys.executable).with_name("llmd"))])
    for name, _, command in (words.partition("=") for words in given.llmd):
        found[name] = routers.llmd(shlex.split(command))
    for name, router in PEERS.items():
        program = given.peers / name / "bin" / name
        if program.exists():
            found[name] = router(str(program))
        else:
            print(f"left out: {name} is not at {program}; `make peers` installs it")
    return found


class Bench:
    def __init__(self, home: Path, seconds: float, cases: list[Case]) -> None:
        self.home, self.seconds, self.cases = home, seconds, cases

    def run(self, rounds: int, found: Mapping[str, Router]) -> Figures:
        figures: Figures = defaultdict(list)
        for number in range(rounds):
            names = list(found)
            random.Random(number).shuffle(names)
            for name in names:
                with found[name](self.home / "engine") as (port, process):
                    for case in self.cases:
                        figures[case.name, name].append(self.measure(case, port, process))
            print(f"round {number + 1} of {rounds} done", flush=True)
        return figures

    def measure(self, case: Case, port: int, process: psutil.Process) -> float:
        words = (case.clients, self.seconds, case.tokens, case.pause, case.body)
        before, began = cpu(process), time.monotonic()
        load = subprocess.Popen(
            ["taskset", "-c", ENGINE_CPU, self.home / "load", f"127.0.0.1:{port}", *map(str, words)],
            stdout=subprocess.PIPE,
        )
        time.sleep(self.seconds * 0.8)
        resident = sum(one.memory_info().rss for one in family(process)) / 1e6
        told = json.loads(load.communicate()[0])
        if told["errors"]:
            print(f"{case.name}: {told['errors']} requests failed", flush=True)
        share = (cpu(process) - before) / (time.monotonic() - began)
        told |= {"resident": resident}
        told |= {f"cpu_{one}": share * 1e6 / max(1.0, told[f"{one}s"]) for one in ("chunk", "request")}
        return float(told[case.figure])


def family(process: psutil.Process) -> list[psutil.Process]:
    """The router and its workers, but no engine: that one is on its own CPU."""
    return [process, *(c for c in process.children(recursive=True) if c.name() not in ("engine", "taskset"))]


def cpu(process: psutil.Process) -> float:
    """Seconds used so far, to the nanosecond."""
    tasks = [Path(f"/proc/{one.pid}/task").iterdir() for one in family(process)]
    return sum(int((task / "schedstat").read_text().split()[0]) for found in tasks for task in found) / 1e9


def report(figures: Figures, cases: list[Case]) -> None:
    names = list(dict.fromkeys(name for _, name in figures))
    names.sort(key=lambda name: name != "nginx")
    print("\n| case | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    for case in cases:
        print(f"| {case.name} | " + " | ".join(cell(figures, case.name, name) for name in names) + " |")


def cell(figures: Figures, case: str, name: str) -> str:
    """The median, its spread over the rounds, and the median of the ratios to nginx in the same round."""
    found, base = figures[case, name], figures.get((case, "nginx"))
    middle = statistics.median(found)
    if not middle:
        return "none was answered"
    text = f"{middle:.4g} ±{(max(found) - min(found)) / 2 / middle:.0%}"
    if base and name != "nginx":
        ratios = [mine / other for mine, other in zip(found, base, strict=True)]
        text += f" ({statistics.median(ratios):.2f}x)"
    return text


if __name__ == "__main__":
    sys.exit(main())
