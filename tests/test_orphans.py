"""The guard around `make test`: it names and kills what a run of tests leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests import orphans

CLEAN = """
import subprocess

def test_it() -> None:
    subprocess.run(["true"], check=True)
"""

FORGETFUL = """
import subprocess

def test_it() -> None:
    print("pid", subprocess.Popen(["sleep", "600"]).pid, flush=True)
"""

ENDLESS = """
import subprocess, sys, time

ESCAPE = '''
import os, subprocess
os.setsid()
print("pid", subprocess.Popen(["sleep", "600"], env={}, start_new_session=True).pid, flush=True)
'''

def test_it() -> None:
    subprocess.run([sys.executable, "-c", ESCAPE], check=True)
    time.sleep(600)
"""
"""Its orphan has no parent, a session of its own and an empty environment."""


def guard(test: str, directory: Path) -> list[str]:
    """The command that runs tests of this text under the guard."""
    (directory / "test_it.py").write_text(test)
    alone = ["-p", "no:cacheprovider", "-p", "no:asyncio"]
    return [sys.executable, orphans.__file__, sys.executable, "-m", "pytest", "-qs", *alone, str(directory)]


def guarded(test: str, directory: Path) -> subprocess.CompletedProcess[str]:
    command = guard(test, directory)
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def pid_in(text: str) -> int:
    return int(text.split("pid ")[1].split()[0])


RUNS = {"passed": (CLEAN, 0), "failed": (CLEAN + "    assert False", 1), "empty": ("", 5)}


@pytest.mark.parametrize(("test", "code"), RUNS.values(), ids=RUNS)
def test_a_clean_run_keeps_its_exit_code(tmp_path: Path, test: str, code: int) -> None:
    run = guarded(test, tmp_path)
    assert (run.returncode, run.stderr) == (code, "")


def test_who_is_left_fails_the_run_is_named_with_its_test_and_killed(tmp_path: Path) -> None:
    run = guarded(FORGETFUL, tmp_path)
    pid = pid_in(run.stdout)
    assert "1 passed" in run.stdout
    assert run.returncode == 1
    assert f"pid {pid}, sleep 600, of " in run.stderr
    assert "test_it.py::test_it" in run.stderr
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_heard_even_where_the_shell_had_it_ignored(number: signal.Signals) -> None:
    heard = f"import signal; print(signal.getsignal({number:d}) is signal.SIG_IGN)"
    command = ["sh", "-c", f'trap "" {number:d}; exec "$@"', "sh", sys.executable, orphans.__file__]
    run = subprocess.run([*command, sys.executable, "-c", heard], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_leaves_nobody_either(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C reaches the whole process group, the others the guard alone."""
    command = guard(ENDLESS, tmp_path)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as run:
        assert run.stdout
        pid = pid_in(next(line for line in run.stdout if "pid " in line))
        assert psutil.pid_exists(pid)
        (os.killpg if number is signal.SIGINT else os.kill)(run.pid, number)
        run.stdout.read()
        assert run.wait(30) == (2 if number is signal.SIGINT else 128 + number)
    assert not psutil.pid_exists(pid)
