"""What people who look on cost those who ask: 64 streams through one daemon, in turns with four browsers at its
dashboard and with none.

    python -m benchmarks.dashboard [--pairs 40] [--seconds 1]

The figure is the share of the router's CPU that the browsers take: where it has none to spare, that is the share of
chunks which it does not pass on. Chunks a second of a router kept busy would tell the same, but a CPU that others
share doubles and halves its speed within seconds. So the streams keep one pace for the whole run, a turn is short,
and each is compared with its neighbour alone. Told are the median of the pairs and where it lies for nine runs in ten.

The engine, the load and the browsers share the first CPU, the router has the second. One browser is a Chromium, where
there is one; the others take what it takes: the stream, and the log beside it.
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
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from math import sqrt
from pathlib import Path
from urllib.parse import urlencode

import psutil
from playwright.sync_api import Page, expect, sync_playwright

from benchmarks.router.__main__ import ENGINE_CPU, HERE, KEY, LLMD, PROFILE, cpu, free_port, serving

BROWSERS, STREAMS, ALLOWED = 4, 64, 0.02
PAUSE = 10_000
"""Microseconds between two chunks of a stream."""

DUE = STREAMS * 1e6 / PAUSE

WARMING = 5.0
"""Seconds at the beginning that nothing is made of."""

Looking = Callable[[bool], None]
"""Brings the browsers to the dashboard, or lets them rest."""


def main() -> int:
    parser = argparse.ArgumentParser(description="What the dashboard costs the router.")
    parser.add_argument("--pairs", type=int, default=40, help="of turns, with browsers and without")
    parser.add_argument("--seconds", type=float, default=1.0, help="that a turn lasts")
    given = parser.parse_args()
    if len(os.sched_getaffinity(0)) < 2 or not (compiler := shutil.which("cc")):
        print("left out: the dashboard's benchmark needs two CPUs and a C compiler")
        return 0
    os.sched_setaffinity(0, {int(ENGINE_CPU)})  # the browsers are children and threads of this process
    with tempfile.TemporaryDirectory(prefix="llmd-", dir="/tmp") as folder:
        for program in ("engine", "load"):
            subprocess.run([compiler, "-O2", "-o", f"{folder}/{program}", HERE / f"{program}.c"], check=True)
        report(run(Path(folder), given.pairs, given.seconds))
    return 0


def run(folder: Path, pairs: int, seconds: float) -> list[tuple[float, float]]:
    """(With browsers, without), the shares of a CPU that the router takes, one pair a time."""
    with router(folder) as (port, process), browsers(port) as looking:
        asked(folder, port, 1, 5, 1000).communicate()  # the list of those that ended is full
        whole = WARMING + 2 * pairs * (seconds + 1.5)
        load = asked(folder, port, whole, 10_000_000, PAUSE)
        time.sleep(WARMING)
        found = [pair(number, looking, process, seconds) for number in range(pairs)]
        rate = json.loads(load.communicate()[0])["chunks"]
    print(f"{STREAMS} streams, {rate:.0f} chunks a second of the {DUE:.0f} that were due", flush=True)
    if rate < 0.8 * DUE:
        raise SystemExit("this host is too busy to tell")
    return found


def asked(folder: Path, port: int, seconds: float, tokens: int, pause: int) -> subprocess.Popen[bytes]:
    words = [folder / "load", f"127.0.0.1:{port}", STREAMS, seconds, tokens, pause, 0]
    return subprocess.Popen(["taskset", "-c", ENGINE_CPU, *map(str, words)], stdout=subprocess.PIPE)


def pair(number: int, looking: Looking, process: psutil.Process, seconds: float) -> tuple[float, float]:
    shares = {}
    for watched in random.Random(number).sample((True, False), 2):
        looking(watched)
        shares[watched] = share(process, seconds)
    return shares[True], shares[False]


def share(process: psutil.Process, seconds: float) -> float:
    """Of one CPU."""
    before, began = cpu(process), time.monotonic()
    time.sleep(seconds)
    return (cpu(process) - before) / (time.monotonic() - began)


@contextmanager
def router(folder: Path) -> Iterator[tuple[int, psutil.Process]]:
    port, path = free_port(), folder / "llmd.toml"
    (folder / "profiles").mkdir()
    (folder / "profiles" / "m_0.toml").write_text(PROFILE.replace("8388608", "16777216"))
    config = LLMD.format(port=port, home=folder, cpu=ENGINE_CPU, engine=folder / "engine")
    path.write_text(config + 'scope = "read"\n')  # the key's table is the last one
    llmd = Path(sys.executable).with_name("llmd")
    with serving([str(llmd), "--config", str(path), "serve"], port) as process:
        yield port, process


@contextmanager
def browsers(port: int) -> Iterator[Looking]:
    with ExitStack() as stack:
        real = stack.enter_context(chromium(port)) if shutil.which("chromium") else None
        light = Light(port, BROWSERS if real is None else BROWSERS - 1)
        stack.callback(light.rest)
        print(
            f"browsers: {'a Chromium' if real else 'none real'}, {light.many} that only take what it takes",
            flush=True,
        )

        def looking(now: bool) -> None:
            light.look() if now else light.rest()
            if real is not None:
                see(real, now)
            time.sleep(0.5)  # what the change itself costs is no part of looking on

        yield looking


@contextmanager
def chromium(port: int) -> Iterator[Page]:
    flags = ["--no-sandbox"] if os.getuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        page = browser.new_page(viewport={"width": 1440, "height": 1000})
        page.goto(f"http://127.0.0.1:{port}/ui/signin")
        page.get_by_label("API key").fill(KEY)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_selector("#decisions li")
        yield page
        browser.close()


def see(page: Page, seen: bool) -> None:
    """As when its tab comes to the front, or goes behind another; returns once it is so."""
    hidden = f"{{value: {str(not seen).lower()}, configurable: true}}"
    page.evaluate(
        f"Object.defineProperty(document, 'hidden', {hidden}); document.dispatchEvent(new Event('visibilitychange'))"
    )
    expect(page.locator("#line")).to_have_text("live" if seen else "resting")


class Light:
    """Browsers that draw nothing."""

    def __init__(self, port: int, many: int) -> None:
        self.many, self._port, self._cookie = many, port, sign_in(port)
        self._open: list[http.client.HTTPConnection] = []

    def look(self) -> None:
        for _ in range(self.many):
            for path in ("/ui/events", "/ui/logs/daemon:"):
                self._follow(path)

    def _follow(self, path: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        self._open.append(connection)
        connection.request("GET", path, headers={"Cookie": self._cookie})
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        while not answer.readline().startswith(b"data: "):
            continue
        threading.Thread(target=drain, args=(answer,), daemon=True).start()

    def rest(self) -> None:
        for connection in self._open:
            if connection.sock:
                connection.sock.shutdown(2)
            connection.close()
        self._open.clear()


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
    except (OSError, ValueError, AttributeError, http.client.HTTPException):  # closed under it
        return


def report(found: list[tuple[float, float]]) -> None:
    costs = sorted(watched - alone for watched, alone in found)
    away = round(0.82 * sqrt(len(costs)))  # ranks from the middle
    middle = len(costs) // 2
    low, high = costs[max(0, middle - away)], costs[min(len(costs) - 1, middle + away)]
    alone = statistics.median(alone for _, alone in found)
    taken = statistics.median(costs)
    print(
        f"Of the router's CPU the streams take {alone:.1%}; {BROWSERS} browsers {taken:.2%} ({low:.2%} to {high:.2%}), "
        f"where {ALLOWED:.0%} are allowed"
    )


if __name__ == "__main__":
    sys.exit(main())
