"""Run a command, and fail it when a process that it started outlives it; such a process is named and killed.

usage: orphans.py COMMAND [ARGUMENT ...]

The exit code is the command's (128 + N where signal N ended it), or 1 where that is 0 and somebody was left.

Nobody escapes: this process is the subreaper of its descendants, so an orphan among them becomes its child,
whatever session, environment or title it gave itself. Ctrl-C goes to the command too, which ends as it likes;
SIGTERM and SIGHUP are passed on to it. Either way what it leaves is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time

import psutil

GRACE = 2.0
"""Seconds in which a process that was told to end with the command may still do so."""

STUCK = 10.0
"""Seconds after which one that SIGKILL did not end is left to the kernel."""


def main(command: list[str]) -> int:
    become_subreaper()
    # What runs in the background, or under nohup, has these ignored, and so would all of its children.
    pid = os.posix_spawnp(command[0], command, os.environ, setsigdef=[signal.SIGINT, signal.SIGHUP])
    pass_signals_on(pid)
    code = wait(pid)
    until_alone(GRACE)
    left = descendants()
    if left:
        print(f"\n{len(left)} processes outlived {command[0]}, now killed:", file=sys.stderr)
        print(*map(describe, left), sep="\n", file=sys.stderr)
        kill()
    return code or int(bool(left))


def become_subreaper() -> None:
    pr_set_child_subreaper = 36
    if ctypes.CDLL(None, use_errno=True).prctl(pr_set_child_subreaper, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no subreaper")


def pass_signals_on(pid: int) -> None:
    def pass_on(number: int, _frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGHUP, pass_on)
    signal.signal(signal.SIGINT, lambda *_: None)  # the terminal sends it to the command as well


def wait(pid: int) -> int:
    """Until the command ends, and reap the orphans that end before it."""
    while True:
        ended, status = os.wait()
        if ended == pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def until_alone(seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while descendants():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def descendants() -> list[psutil.Process]:
    """All that are alive."""
    reap()
    return [process for process in psutil.Process().children(recursive=True) if lives(process)]


def reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def describe(process: psutil.Process) -> str:
    """`  pid 42, sleep 60, of tests/test_x.py::test_y`; pytest tells every child which test it runs."""
    with contextlib.suppress(psutil.Error):
        words = " ".join(process.cmdline())[:120] or process.name()
        with contextlib.suppress(psutil.AccessDenied):
            words += f", of {process.environ().get('PYTEST_CURRENT_TEST', 'no known test')}"
        return f"  pid {process.pid}, {words}"
    return f"  pid {process.pid}, gone meanwhile"


def kill() -> None:
    """In rounds, as the children of a killed process come to us, and some fork while they are killed."""
    deadline = time.monotonic() + STUCK
    while (left := descendants()) and time.monotonic() < deadline:
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()  # psutil looks at the start time first: never at another one of this pid
        until_alone(0.2)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) if len(sys.argv) > 1 else __doc__)
