"""What llmd's router costs, as ratios to nginx, taken in turns in one run: `make bench`, or

    python benchmarks/router [--rounds 3] [--seconds 3] [--only WORDS] [--nginx PROGRAM] [--llmd NAME=COMMAND ...]

The engine and the load share the first CPU, the router under test has the second. Each round measures every router
in every case, in another order; a figure is the median of the rounds, with its spread. nginx does nothing but pass
bytes on; llmd does all that it does for people: keys, leases, accounting, metrics, log lines. --llmd adds another
llmd to compare with, such as one before a change. What is not installed is left out, with words.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

HERE = Path(__file__).parent
Figures = dict[tuple[str, str], list[float]]
"""(case, router) -> one figure a round."""

ENGINE_CPU, ROUTER_CPU = "0", "1"
KEY = "sk-bench"

NGINX = """{user} daemon off; worker_processes 1; pid nginx.pid; error_log nginx.err error;
events {{ worker_connections 8192; }}
http {{ access_log off; client_max_body_size 0; client_body_buffer_size 4m; keepalive_requests 100000000;
  client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
  map $http_authorization $ok {{ default 0; "Bearer sk-bench" 1; }}
  upstream engine {{ server unix:{socket}; keepalive 1024; keepalive_requests 100000000; }}
  server {{ listen 127.0.0.1:{port} backlog=4096; if ($ok = 0) {{ return 401; }}
    location / {{ proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; }} }} }}
"""

LLMD = """[server]
listen = ["127.0.0.1:{port}"]
admin_socket = "{home}/admin"
state_dir = "{home}/state"
[engine]
command = ["taskset", "-c", "{cpu}", "{engine}", "serve"]
health_interval = "60s"
[memory]
host_floor = "64 MiB"
[keys.bench]
env = "BENCH_KEY"
"""

PROFILE = """model = "m"
weights = "m"
device = "cpu"
memory = "32 MiB"
max_model_len = 8388608
max_concurrent = 1024
max_queue = 1024
"""


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
    parser = argparse.ArgumentParser(description="What a hop through llmd costs, next to nginx.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--only", default="", metavar="WORDS", help="cases whose name has these words in it")
    parser.add_argument("--nginx", default=shutil.which("nginx") or "/usr/sbin/nginx")
    parser.add_argument("--llmd", action="append", default=[], metavar="NAME=COMMAND")
    given = parser.parse_args()
    if len(os.sched_getaffinity(0)) < 2 or not (compiler := shutil.which("cc")):
        print("left out: the router's benchmark needs two CPUs and a C compiler")
        return 0
    with tempfile.TemporaryDirectory(prefix="llmd-", dir="/tmp") as home:
        for program in ("engine", "load"):
            subprocess.run([compiler, "-O2", "-o", f"{home}/{program}", HERE / f"{program}.c"], check=True)
        cases = [case for case in CASES if given.only in case.name]
        bench = Bench(Path(home), given.seconds, cases)
        report(bench.run(given.rounds, *targets(given)), cases)
    return 0


def targets(given: argparse.Namespace) -> tuple[str | None, dict[str, list[str]]]:
    nginx = given.nginx if Path(given.nginx).exists() else None
    if nginx is None:
        print("left out: nginx is not installed, so there are figures and no ratios")
    llmd = {"llmd": [str(Path(sys.executable).with_name("llmd"))]}
    return nginx, llmd | {
        name: shlex.split(command) for name, _, command in (x.partition("=") for x in given.llmd)
    }


class Bench:
    def __init__(self, home: Path, seconds: float, cases: list[Case]) -> None:
        self.home, self.seconds, self.cases = home, seconds, cases

    def run(self, rounds: int, nginx: str | None, llmds: dict[str, list[str]]) -> Figures:
        figures: Figures = defaultdict(list)
        for number in range(rounds):
            names = [*(["nginx"] if nginx else []), *llmds]
            random.Random(number).shuffle(names)
            for name in names:
                opened = self.nginx(nginx) if nginx and name == "nginx" else self.llmd(llmds[name])
                with opened as (port, process):
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

    @contextmanager
    def nginx(self, program: str) -> Iterator[tuple[int, psutil.Process]]:
        with tempfile.TemporaryDirectory(dir=self.home) as folder, contextlib.ExitStack() as stack:
            port, sock = free_port(), f"{folder}/e"
            user = "" if os.getuid() else "user root;"  # else its worker may not open the socket
            engine = [str(self.home / "engine"), "serve", "m", "--uds", sock]
            stack.enter_context(running(["taskset", "-c", ENGINE_CPU, *engine]))
            Path(folder, "nginx.conf").write_text(NGINX.format(socket=sock, port=port, user=user))
            words = [program, "-p", folder, "-c", f"{folder}/nginx.conf", "-e", f"{folder}/nginx.err"]
            yield port, stack.enter_context(serving(words, port))

    @contextmanager
    def llmd(self, command: list[str]) -> Iterator[tuple[int, psutil.Process]]:
        with tempfile.TemporaryDirectory(dir=self.home) as folder:
            port, path = free_port(), Path(folder, "llmd.toml")
            Path(folder, "profiles").mkdir()
            Path(folder, "profiles", "m_0.toml").write_text(PROFILE)
            path.write_text(LLMD.format(port=port, home=folder, cpu=ENGINE_CPU, engine=self.home / "engine"))
            with serving([*command, "--config", str(path), "serve"], port) as process:
                yield port, process


@contextmanager
def running(words: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"BENCH_KEY": KEY}
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


@contextmanager
def serving(words: list[str], port: int) -> Iterator[psutil.Process]:
    """A router on its CPU, once it answers."""
    with running(["taskset", "-c", ROUTER_CPU, *words]) as process:
        deadline = time.monotonic() + 60
        while not answers(port):
            if time.monotonic() > deadline or process.poll() is not None:
                raise SystemExit(f"{shlex.join(words)} does not serve")
            time.sleep(0.2)
        yield psutil.Process(process.pid)


def answers(port: int) -> bool:
    body = b'{"model":"m","messages":[]}'
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", body, headers)
    try:
        with urllib.request.urlopen(asked, timeout=30) as reply:
            return bool(reply.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def family(process: psutil.Process) -> list[psutil.Process]:
    """The router and its workers, but no engine: that one is on its own CPU."""
    return [process, *(c for c in process.children(recursive=True) if c.name() not in ("engine", "taskset"))]


def cpu(process: psutil.Process) -> float:
    """Seconds used so far, to the nanosecond."""
    tasks = [Path(f"/proc/{one.pid}/task").iterdir() for one in family(process)]
    return sum(int((task / "schedstat").read_text().split()[0]) for found in tasks for task in found) / 1e9


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


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
    text = f"{middle:.4g} ±{(max(found) - min(found)) / 2 / middle:.0%}"
    if base and name != "nginx":
        ratios = [mine / other for mine, other in zip(found, base, strict=True)]
        text += f" ({statistics.median(ratios):.2f}x)"
    return text


if __name__ == "__main__":
    sys.exit(main())
