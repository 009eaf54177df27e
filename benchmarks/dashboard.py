"""What people who look on cost those who ask: 64 streams through one daemon, with four browsers at its dashboard and
with none, in turns.

    python -m benchmarks.dashboard [--rounds 6] [--seconds 4]

The engine, the load and the browsers share the first CPU, the router has the second and is kept busy: each chunk that
it does not pass on is one that the dashboard cost. On a host that does other things, too, its CPU time a chunk tells
the same with less noise. A figure is the median of the rounds' ratios, with their spread.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

import psutil

from benchmarks.router.__main__ import ENGINE_CPU, HERE, KEY, LLMD, PROFILE, cpu, free_port, serving

BROWSERS, STREAMS, TOKENS = 4, 64, 4000
ALLOWED = 0.02


class Figure(NamedTuple):
    """`rate`: chunks a second; `cpu`: the router's seconds for each."""

    rate: float
    cpu: float


def main() -> int:
    parser = argparse.ArgumentParser(description="What the dashboard costs the router.")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=4.0)
    given = parser.parse_args()
    if len(os.sched_getaffinity(0)) < 2 or not (compiler := shutil.which("cc")):
        print("left out: the dashboard's benchmark needs two CPUs and a C compiler")
        return 0
    os.sched_setaffinity(0, {int(ENGINE_CPU)})  # the browsers are threads of this process
    with tempfile.TemporaryDirectory(prefix="llmd-", dir="/tmp") as folder:
        for program in ("engine", "load"):
            subprocess.run([compiler, "-O2", "-o", f"{folder}/{program}", HERE / f"{program}.c"], check=True)
        report(run(Path(folder), given.rounds, given.seconds))
    return 0


def run(folder: Path, rounds: int, seconds: float) -> list[tuple[Figure, Figure]]:
    """(With browsers, without), one pair a round."""
    figures = []
    with router(folder) as (port, process):
        measure(folder, port, process, seconds)  # the first one warms up
        for number in range(rounds):
            told = {}
            for watched in random.Random(number).sample((True, False), 2):
                with looking(port) if watched else ExitStack():
                    told[watched] = measure(folder, port, process, seconds)
            figures.append((told[True], told[False]))
            print(
                f"round {number + 1}: {told[True].rate:.0f} chunks/s, {told[False].rate:.0f} unwatched",
                flush=True,
            )
    return figures


@contextmanager
def router(folder: Path) -> Iterator[tuple[int, psutil.Process]]:
    port, path = free_port(), folder / "llmd.toml"
    (folder / "profiles").mkdir()
    (folder / "profiles" / "m_0.toml").write_text(PROFILE)
    config = LLMD.format(port=port, home=folder, cpu=ENGINE_CPU, engine=folder / "engine")
    path.write_text(config + 'scope = "read"\n')  # the key's table is the last one
    llmd = Path(sys.executable).with_name("llmd")
    with serving([str(llmd), "--config", str(path), "serve"], port) as process:
        yield port, process


def measure(folder: Path, port: int, process: psutil.Process, seconds: float) -> Figure:
    words = [
        "taskset",
        "-c",
        ENGINE_CPU,
        folder / "load",
        f"127.0.0.1:{port}",
        STREAMS,
        seconds,
        TOKENS,
        0,
        0,
    ]
    before = cpu(process)
    told = json.loads(subprocess.run(map(str, words), capture_output=True, check=True).stdout)
    return Figure(told["chunks"], (cpu(process) - before) / (told["chunks"] * seconds))


@contextmanager
def looking(port: int) -> Iterator[None]:
    """Browsers that take what they are sent."""
    cookie = sign_in(port)
    with ExitStack() as stack:
        for _ in range(BROWSERS):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            stack.callback(connection.close)
            connection.request("GET", "/ui/events", headers={"Cookie": cookie})
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            while not answer.readline().startswith(b"data: "):
                continue
            threading.Thread(target=drain, args=(answer,), daemon=True).start()
        yield


def sign_in(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Origin": f"http://127.0.0.1:{port}", "Content-Type": "application/x-www-form-urlencoded"}
    connection.request("POST", "/ui/signin", urlencode({"key": KEY}), headers)
    answer = connection.getresponse()
    assert answer.status == 303, answer.read()
    connection.close()
    return str(answer.headers["Set-Cookie"]).partition(";")[0]


def drain(answer: http.client.HTTPResponse) -> None:
    try:
        while answer.read1(1 << 20):
            continue
    except (OSError, ValueError, AttributeError):  # closed under it
        return


def report(figures: list[tuple[Figure, Figure]]) -> None:
    print(f"\n{BROWSERS} browsers cost {STREAMS} streams, where {ALLOWED:.0%} are allowed:")
    for what, costs in (
        ("chunks a second", [1 - watched.rate / alone.rate for watched, alone in figures]),
        ("CPU a chunk", [watched.cpu / alone.cpu - 1 for watched, alone in figures]),
    ):
        print(f"{what}: {statistics.median(costs):.1%} ±{(max(costs) - min(costs)) / 2:.1%}")


if __name__ == "__main__":
    sys.exit(main())
