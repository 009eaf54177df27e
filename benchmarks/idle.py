"""What an idle daemon costs: nine profiles, one engine ready, nobody asks.

usage: python -m benchmarks.idle [SECONDS]
"""

from __future__ import annotations

import sys
import time

import psutil

from tests.daemon import Llmd, profile


def main(seconds: float) -> None:
    llmd = Llmd({f"model{n}_0": profile(f"model{n}") for n in range(9)})
    try:
        llmd.start()
        llmd.run("start", "model0_0")
        assert llmd.process
        daemon = psutil.Process(llmd.process.pid)
        before, began = daemon.cpu_times(), time.monotonic()
        time.sleep(seconds)
        after, took = daemon.cpu_times(), time.monotonic() - began
        spent = after.user + after.system - before.user - before.system
        rss = daemon.memory_info().rss / 1e6
        print(f"{100 * spent / took:.2f} % of a core over {took:.0f} s, {rss:.0f} MB resident")
    finally:
        llmd.close()


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 30.0)
