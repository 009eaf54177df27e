"""One JSON object a line, times in UTC, whatever the fields are; kept, thinned out, and in words for people."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from supervisor.host import logbook
from supervisor.host.logbook import Recent, log, tell
from supervisor.host.rollover import Rollover


def test_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    log("request", model="llama", path=Path("/x"), text="two\nlines")
    out = capsys.readouterr().err
    assert out.count("\n") == 1
    line = json.loads(out)
    assert list(line) == ["timestamp", "level", "event", "model", "path", "text"]
    assert (line["level"], line["event"], line["path"]) == ("INFO", "request", "/x")


def test_times_are_rfc_3339_in_utc(capsys: pytest.CaptureFixture[str]) -> None:
    log("started", "WARNING")
    line = json.loads(capsys.readouterr().err)
    assert line["timestamp"].endswith("Z")
    assert datetime.fromisoformat(line["timestamp"]).utcoffset() is not None
    assert line["level"] == "WARNING"


@dataclass
class Told:
    """Something that ended."""

    number: object

    def line(self) -> dict[str, object]:
        return {"timestamp": logbook.now(), "level": "INFO", "event": "told", "number": self.number}


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Path]:
    logbook.keep(tmp_path / "llmd.log")
    yield tmp_path / "llmd.log"
    logbook.close()


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_daemon_keeps_its_lines_as_stderr_has_them(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(10):
        log("tick", number=number)
        tell(Told(number))
    logbook.close()
    assert kept.read_text() == capsys.readouterr().err
    assert [line["number"] for line in events(kept.read_text())] == [n for n in range(10) for _ in range(2)]
    assert kept.stat().st_mode & 0o777 == 0o640


def written(kept: Path, last: str) -> list[dict[str, Any]]:
    """All lines, once one of event `last` is among them: a thread writes them."""
    log(last)
    for _ in range(1000):
        found = events(kept.read_text()) if kept.exists() else []
        if found and found[-1]["event"] == last:
            return found[:-1]
        threading.Event().wait(0.01)
    raise AssertionError(f"{last} was never written")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the thinner takes for the time; threads wait by the real one."""
    at = [100.0]
    monkeypatch.setattr(logbook, "time", SimpleNamespace(**vars(time) | {"monotonic": lambda: at[0]}))
    return at


def test_what_repeats_itself_is_thinned_out_by_class_and_counted(kept: Path, clock: list[float]) -> None:
    for _ in range(1000):
        log("request", "INFO", source=None, error="invalid_api_key", code="invalid_api_key", status=401)
        tell(Told(200))
    log("request", "WARNING", source="webui", error="engine_failed", code="engine_failed")
    told = [(line.get("source"), line.get("code")) for line in written(kept, "first")]
    assert told.count((None, "invalid_api_key")) == 1
    assert told.count((None, None)) == 1000
    assert told.count(("webui", "engine_failed")) == 1
    assert logbook.suppressed() == 999
    clock[0] += 1.5
    log("request", "INFO", source=None, error="invalid_api_key", code="invalid_api_key", status=401)
    assert written(kept, "second")[-1]["suppressed"] == 999


def test_a_class_has_its_burst_and_then_one_line_a_second(kept: Path, clock: list[float]) -> None:
    for _ in range(1000):
        log("flaps", profile="llama_0")
        clock[0] += 0.01
    assert logbook.BURST + 9 <= len(written(kept, "last")) <= logbook.BURST + 10


def test_lines_wait_for_each_other_and_not_for_long(kept: Path) -> None:
    began = time.monotonic()
    for number in range(logbook.BURST):
        log("tick", number=number)
    assert [line["number"] for line in written(kept, "last")] == list(range(logbook.BURST))
    assert time.monotonic() - began < 20 * logbook.PAUSE


def test_what_json_cannot_hold_is_written_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    log("odd", surrogate="\ud800", large=1 << 70, path=Path("/x"))
    line = json.loads(capsys.readouterr().err)
    assert (line["surrogate"], line["large"], line["path"]) == ("\ud800", 1 << 70, "/x")


def test_what_was_told_is_put_into_words_later_and_in_its_order(kept: Path) -> None:
    """Whatever is in it: neither what looks like a line's end nor what JSON cannot hold mixes it up."""
    odd = ['}, {"timestamp": 1', "two\nlines", "\ud800", [{"a": 1}, {"b": 2}]]
    for number in odd:
        tell(Told(number))
        log("between", number=number)
    assert [line["number"] for line in written(kept, "last")] == [n for n in odd for _ in range(2)]
    assert logbook.RECENT.since(0)[0][-1].endswith('"event": "last"}')


def test_lines_that_nobody_looks_at_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    recent = Recent(most=5)
    for number in range(3 * logbook.UNWORDED):
        recent.add(Told(number))
    assert len(recent._told) + len(recent._lines) < logbook.UNWORDED + 5
    lines, count = recent.since(0)
    assert (len(lines), count) == (5, 3 * logbook.UNWORDED)


def test_a_disk_that_hangs_costs_lines_that_are_counted_and_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, began = threading.Event(), threading.Event()

    def hang(self: Rollover, lines: bytes) -> None:
        began.set()
        go.wait(30)

    monkeypatch.setattr(Rollover, "append", hang)
    monkeypatch.setattr(logbook, "RECENT", Recent(most=5))
    logbook.keep(tmp_path / "llmd.log")
    log("first")
    assert began.wait(10)
    for number in range(10):
        tell(Told(number))
    assert logbook.dropped() == 5
    go.set()
    logbook.close()


def test_a_disk_that_takes_nothing_costs_lines_that_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logbook.keep(tmp_path / "none" / "llmd.log")
    log("said")
    keeper = logbook._kept.keeper
    logbook.close()
    assert keeper is not None
    assert keeper.dropped == 1
    assert '"said"' in capsys.readouterr().err


def test_a_log_that_is_closed_in_the_middle_of_a_pause_is_closed(tmp_path: Path) -> None:
    """Just as its threads have seen that it goes on."""

    class Closed(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            seen = super().wait(0)
            self.set()
            stirred.set()
            return seen

    logbook.keep(tmp_path / "llmd.log")
    keeper = logbook._kept.keeper
    assert keeper is not None
    keeper._ends, stirred = Closed(), keeper.stirred
    log("last")
    keeper._thread.join(10)
    assert not keeper._thread.is_alive()
    logbook.close()
    assert events((tmp_path / "llmd.log").read_text())[-1]["event"] == "last"


def test_on_a_terminal_it_is_words(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    log("engine_failed", "ERROR", profile="llama_0", message="out of memory", tail=[], code=None)
    log("serving")
    failed, serving = terminal.getvalue().splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d ERROR engine_failed: out of memory profile=llama_0", failed)
    assert re.fullmatch(r"\d\d:\d\d:\d\d serving", serving)


def test_where_the_journal_takes_no_fields_each_line_bears_its_priority(tmp_path: Path) -> None:
    """Where stderr is the journal, and not where a child only inherited the variable."""
    program = (
        "from supervisor.host import journald; journald.SOCKET = '/nowhere';"
        "from supervisor.host.logbook import log; log('bad', 'ERROR'); log('odd', 'WARNING'); log('good')"
    )
    with (tmp_path / "journal").open("w+") as journal:
        found = os.fstat(journal.fileno())
        env = os.environ | {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        subprocess.run([sys.executable, "-c", program], stderr=journal, env=env, check=True)
    told = (tmp_path / "journal").read_text().splitlines()
    assert [line[:3] for line in told] == ["<3>", "<4>", "<6>"]
    assert [json.loads(line[3:])["event"] for line in told] == ["bad", "odd", "good"]
    piped = subprocess.run([sys.executable, "-c", program], capture_output=True, env=env, check=True)
    assert piped.stderr.startswith(b"{")
