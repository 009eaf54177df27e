"""`llmd top` as somebody at a terminal of 80 columns sees it: a real daemon, a real pseudo-terminal, keys pressed."""

from __future__ import annotations

import fcntl
import os
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator

import pytest
from rich.cells import cell_len
from rich.console import Console

from supervisor.cli.screen import Screen
from tests.daemon import QUICK, Llmd, profile, until

PATIENCE = 60
ENGINE = {"model": "m", "state": "ready", "in_flight": 0, "queued": 0, "slots": 4, "measured": {}}
STATUS = {
    "daemon": {"version": "0.1.0", "pid": 7, "uptime_s": 90, "listening": ["http://127.0.0.1:8000"]},
    "devices": [],
    "engines": [
        ENGINE | {"profile": "a_0", "state": "cold"},
        ENGINE | {"profile": "b_0", "measured": {"GPU-1": 5}},
        ENGINE | {"profile": "c_0", "in_flight": 2, "measured": {"GPU-1": 3}},
    ],
}


def drawn(screen: Screen, width: int = 80, height: int = 24) -> list[str]:
    console = Console(width=width, height=height, color_system=None)
    with console.capture() as capture:
        console.print(screen, end="")
    return capture.get().split("\n")


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 6), (40, 10), (200, 50)])
def test_it_fits_whatever_the_size_and_the_keys_stay(width: int, height: int) -> None:
    lines = drawn(Screen(STATUS | {"strays": [{"reason": "x" * 300}] * 40}), width, height)
    assert len(lines) == height
    assert max(map(cell_len, lines)) <= width
    assert "q quit" in lines[-1]


def test_the_order_changes_and_the_cursor_stays_with_its_profile() -> None:
    screen = Screen(STATUS)
    assert [engine["profile"] for engine in screen.engines()] == ["a_0", "b_0", "c_0"]
    screen.move(1)
    orders = []
    for _ in range(3):
        screen.reorder()
        orders.append((screen.order, [engine["profile"][0] for engine in screen.engines()]))
    assert orders == [("state", ["b", "c", "a"]), ("busy", ["c", "a", "b"]), ("memory", ["b", "c", "a"])]
    assert screen.chosen == "b_0"
    screen.move(-99)
    assert screen.chosen == "b_0"
    screen.move(99)
    assert screen.chosen == "a_0"


def test_a_daemon_without_profiles_has_nothing_to_choose() -> None:
    screen = Screen(STATUS | {"engines": []})
    screen.move(1)
    assert screen.chosen is None


class Terminal:
    """What `llmd top` draws is kept from the last time that somebody looked."""

    def __init__(self, llmd: Llmd) -> None:
        self.ours, theirs = os.openpty()
        self.resize(80, 24)
        self.before = termios.tcgetattr(self.ours)
        env = llmd.env | {"TERM": "xterm", "COLUMNS": "", "LINES": ""}
        words = ["setsid", "--ctty", "--wait", *llmd.command("top")]
        self.process = subprocess.Popen(words, env=env, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        self.raw = ""

    def resize(self, width: int, height: int) -> None:
        """The kernel tells the program, as it does over SSH."""
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def press(self, keys: str) -> None:
        self.raw = ""
        os.write(self.ours, keys.encode())

    def shows(self, pattern: str) -> str:
        """All that was drawn since the last key, once `pattern` is in it."""
        deadline = time.monotonic() + PATIENCE
        while not re.search(pattern, self.text):
            assert select.select([self.ours], [], [], max(0, deadline - time.monotonic()))[0], self.text
            self.raw += os.read(self.ours, 65536).decode(errors="replace")
        return self.text

    @property
    def text(self) -> str:
        """Frames one after the other: each goes back to the top, and what it draws there is a line of its own."""
        framed = re.sub(r"\x1b\[[0-9;]*H", "\n", self.raw)
        return re.sub(r"\x1b(\[[0-9;?]*[A-Za-z]|.)", "", framed)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(30)
        os.close(self.ours)


@pytest.fixture(scope="module")
def llmd() -> Iterator[Llmd]:
    llmd = Llmd({"tiny_0": profile("tiny"), "other_0": profile("other")}, **QUICK)
    try:
        llmd.start()
        assert llmd.run("start", "tiny_0").returncode == 0
        yield llmd
    finally:
        llmd.close()


@pytest.fixture
def terminal(llmd: Llmd) -> Iterator[Terminal]:
    terminal = Terminal(llmd)
    try:
        terminal.shows("q quit")
        yield terminal
    finally:
        terminal.close()


def test_it_shows_devices_and_models_within_80_columns_and_then_in_more(terminal: Terminal) -> None:
    text = terminal.shows("tiny_0 .*ready")
    assert max(cell_len(line.strip("\r")) for line in text.split("\n")) <= 80
    assert "Host" in text
    terminal.raw = ""
    terminal.resize(120, 30)
    wide = terminal.shows("q quit.*" + " " * 60)
    assert max(cell_len(line.strip("\r")) for line in wide.split("\n")) > 80


def test_it_is_live(terminal: Terminal, llmd: Llmd) -> None:
    terminal.shows("other_0 .*cold")
    terminal.raw = ""
    llmd.run("start", "other_0")
    terminal.shows("other_0 .*ready")


def test_keys_sort_tell_why_and_stop(terminal: Terminal, llmd: Llmd) -> None:
    terminal.press("o")
    terminal.shows("by state")
    terminal.press("ooo")
    terminal.shows("by name")
    terminal.press("\x1b[B")
    terminal.press("w")
    terminal.shows("tiny_0 serves tiny: ready")
    terminal.press("x")
    terminal.press("s")
    terminal.shows(r"stop tiny_0\? y: yes")
    terminal.press("n")
    terminal.shows("q quit")
    assert llmd.engine("tiny_0")["state"] == "ready"
    terminal.press("sy")
    terminal.shows("tiny_0 stopped")
    until(lambda: llmd.engine("tiny_0")["state"] == "cold", PATIENCE)


def test_q_gives_the_terminal_back_as_it_was(terminal: Terminal) -> None:
    assert termios.tcgetattr(terminal.ours) != terminal.before
    os.write(terminal.ours, b"q")
    assert terminal.process.wait(PATIENCE) == 0
    assert termios.tcgetattr(terminal.ours) == terminal.before


def test_it_says_that_it_needs_a_terminal(llmd: Llmd) -> None:
    done = llmd.run("top")
    assert done.returncode == 1
    assert "llmd status --json" in done.stderr


def test_a_daemon_that_ends_meanwhile_is_said_and_the_screen_stays() -> None:
    llmd = Llmd({"tiny_0": profile("tiny")}, **QUICK)
    llmd.start()
    terminal = Terminal(llmd)
    try:
        terminal.shows("q quit")
        llmd.kill()
        terminal.shows("nobody answers")
    finally:
        terminal.close()
        llmd.close()
