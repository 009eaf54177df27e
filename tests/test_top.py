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
from typing import Any

import openai
import pytest
from rich.cells import cell_len
from rich.console import Console

from supervisor.cli.screen import Screen
from supervisor.core.devices import GIB
from tests.daemon import KEY, QUICK, Llmd, profile, until

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


def device(name: str, **fields: Any) -> dict[str, Any]:
    used = {"total": 24 * GIB, "free": 9 * GIB, "ours": {"c_0": 14 * GIB}, "others": GIB}
    return {"device": f"GPU-{name}", "index": name, "name": "RTX 3090"} | used | fields


def request(number: int, **fields: Any) -> dict[str, Any]:
    """The older, the lower its number."""
    counts = {"prompt": 1200, "output": 34, "ttft_s": 0.4, "age_s": 100.0 - number}
    names = {"id": f"r{number}", "source": f"key{number}", "model": "m", "profile": "c_0"}
    return {"number": str(number)} | names | counts | fields


def under_way(*requests: dict[str, Any], **status: Any) -> Screen:
    screen = Screen(STATUS | status)
    screen.note(list(requests))
    return screen


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


def test_requests_in_flight_are_told_with_tokens_and_times() -> None:
    screen = under_way(request(1), request(2, profile=None, output=None, ttft_s=None, prompt=7))
    text = "\n".join(drawn(screen))
    assert re.search(r"key1 +m +c_0 +1200 +34 +0.40s +1m39s", text)
    assert re.search(r"key2 +m +waiting +7 +- +- +1m38s", text)


def test_tokens_a_second_stand_beside_their_profile() -> None:
    engines = [engine | {"tokens_per_s": 42.0 * (engine["profile"] == "c_0")} for engine in STATUS["engines"]]
    lines = drawn(under_way(engines=engines))
    assert next(line for line in lines if line.startswith("c_0")).split()[-1] == "42.0"
    assert next(line for line in lines if line.startswith("a_0")).split()[-1] == "-"


def test_what_a_client_wrote_does_not_reach_the_terminal_as_a_command() -> None:
    screen = under_way(request(1, model="m\x1b[2J\n"))
    screen.switch()
    screen.doubt_cancel()
    assert "\x1b" not in "".join(drawn(screen))


def test_the_cursor_goes_to_the_requests_and_back() -> None:
    screen = under_way(request(1), request(2))
    assert "tab requests" in drawn(screen)[-1]
    screen.switch()
    assert "c cancel" in drawn(screen)[-1]
    screen.move(1)
    assert (screen.chosen_request, screen.chosen) == ("2", "a_0")
    screen.doubt_stop()
    assert screen.doubt is None
    screen.doubt_cancel()
    assert "cancel key2's request for m? y: yes" in drawn(screen)[-1]
    screen.switch()
    screen.move(1)
    assert (screen.chosen_request, screen.chosen) == ("2", "b_0")


def test_where_nothing_is_in_flight_the_keys_are_for_models() -> None:
    screen = under_way()
    screen.switch()
    screen.doubt_cancel()
    assert (screen.at_requests, screen.doubt, screen.chosen_request) == (False, None, None)
    assert "tab" not in drawn(screen)[-1]


def test_a_request_that_ends_leaves_the_cursor_to_the_next_one() -> None:
    screen = under_way(*map(request, range(4)))
    screen.switch()
    screen.move(1)
    screen.note([request(0), request(3), request(4)])
    assert screen.chosen_request == "3"
    screen.note([])
    assert screen.chosen_request is None


def test_requests_have_orders_of_their_own_and_the_cursor_stays_with_its_one() -> None:
    counts = {"1": (5, "n8n", "m"), "2": (900, "webui", "a"), "3": (None, "n8n", "b")}
    told = [request(int(n), output=out, source=key, model=m) for n, (out, key, m) in counts.items()]
    screen = under_way(*told)
    screen.switch()
    screen.move(1)
    orders = []
    for _ in range(4):
        screen.reorder()
        orders.append((screen.request_order, [r["number"] for r in screen.requests]))
    assert orders == [
        ("tokens", ["2", "1", "3"]),
        ("key", ["1", "3", "2"]),
        ("model", ["2", "3", "1"]),
        ("age", ["1", "2", "3"]),
    ]
    assert (screen.chosen_request, screen.order) == ("2", "name")
    screen.reorder()
    screen.note(told[::-1])
    assert [r["number"] for r in screen.requests] == ["2", "1", "3"]
    assert drawn(screen)[-1].endswith("by tokens")


GPUS = {"devices": [device("0"), device("1")]}


def test_with_room_devices_are_shown_at_length() -> None:
    text = "\n".join(drawn(under_way(request(1), **GPUS), 80, 24))
    assert "RTX 3090" in text
    assert "others 1.00 GiB" in text
    assert "more" not in text


def test_what_is_reserved_and_not_used_yet_is_told() -> None:
    sizes = {"reserved": {"GPU-0": 14 * GIB}, "measured": {"GPU-0": 5 * GIB}}
    for state, said in (
        ("starting", "c_0 14.00 GiB, 9.00 GiB of it not used yet"),
        ("draining", "c_0 14.00 GiB"),
    ):
        engine = ENGINE | {"profile": "c_0", "state": state} | sizes
        lines = drawn(under_way(devices=[device("0")], engines=[engine]))
        assert next(line for line in lines if "c_0 14" in line).endswith(said)


def test_where_there_is_room_for_all_devices_stay_at_length_beside_the_cursor() -> None:
    for many, at_length in ((3, True), (30, False)):
        screen = under_way(*map(request, range(many)), **GPUS)
        screen.switch()
        assert ("others 1.00 GiB" in "\n".join(drawn(screen, 80, 30))) is at_length


def test_a_short_screen_has_models_then_gpus_in_a_line_each_then_requests() -> None:
    screen = under_way(*map(request, range(20)), **GPUS)
    lines = drawn(screen, 80, 17)
    starts = [
        "llmd",
        "PROFILE",
        "a_0",
        "b_0",
        "c_0",
        "GPU 0",
        "GPU 1",
        "KEY",
        *(f"key{n} " for n in range(7)),
    ]
    assert [line[: len(start)] for line, start in zip(lines, starts, strict=False)] == starts
    assert lines[5].endswith("9.00 GiB free")
    assert lines[-2:][0] == "13 more requests"


def test_how_busy_a_gpu_is_stands_on_a_short_screen_too() -> None:
    lines = drawn(under_way(devices=[device("0", utilization=0.914)]), 80, 12)
    assert next(line for line in lines if line.startswith("GPU 0")).endswith("9.00 GiB free, 91 %")


def test_what_is_wrong_with_a_gpu_is_told_on_a_short_screen_too() -> None:
    assert "  cannot be read" in drawn(under_way(devices=[device("0", trouble="cannot be read")]), 80, 12)


def test_a_very_short_screen_counts_what_it_leaves_out() -> None:
    screen = under_way(*map(request, range(12)), **GPUS)
    lines = drawn(screen, 80, 7)
    assert [line.split()[0] for line in lines[1:3]] == ["PROFILE", "a_0"]
    assert lines[3:-1] == ["2 more models", "2 more devices", "12 more requests"]


def test_the_section_of_the_cursor_comes_first_and_keeps_it_in_sight() -> None:
    screen = under_way(*map(request, range(300)), **GPUS)
    screen.switch()
    screen.move(150)
    lines = drawn(screen, 80, 12)
    assert len(lines) == 12
    assert lines[1:3] == ["3 more models", "2 more devices"]
    assert lines[-3].startswith("key150 ")
    assert lines[-2] == "294 more requests"


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
    writer = profile("writer", env={"STANDIN_TOKENS_PER_SECOND": "5"})
    llmd = Llmd({"tiny_0": profile("tiny"), "other_0": profile("other"), "writer_0": writer}, **QUICK)
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


def test_a_request_is_watched_chosen_and_cancelled(terminal: Terminal, llmd: Llmd) -> None:
    story: Any = [{"role": "user", "content": "Tell me a long story"}]
    with (
        openai.OpenAI(base_url=f"{llmd.url}/v1", api_key=KEY, max_retries=0) as api,
        api.chat.completions.create(model="writer", messages=story, max_tokens=450, stream=True) as answer,
    ):
        terminal.shows(r"webui +writer +writer_0 +\d+ +\d+ +[\d.]+s")
        terminal.shows(r"writer_0 +writer +ready .* [1-9][\d.]*\s*\n")
        assert re.search(r"(?m)^writer_0 +writer +ready .* [1-9][\d.]*\s*$", llmd.run("status").stdout)
        terminal.press("\t")
        terminal.shows("c cancel")
        terminal.press("c")
        terminal.shows(r"cancel webui's request for writer\? y: yes")
        terminal.press("n")
        terminal.shows("c cancel")
        terminal.press("w")
        terminal.shows("it is not over yet")
        terminal.press("x")
        terminal.shows("c cancel")
        terminal.press("cy")
        terminal.shows("request for writer: cancelled")
        with pytest.raises(openai.APIError, match="cancelled"):
            list(answer)
    terminal.press("j")
    terminal.shows("s stop")


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
