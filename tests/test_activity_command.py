"""`llmd activity` on a daemon that has served, for people, for scripts and for spreadsheets."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from rich.console import Console

from supervisor.cli import requests
from tests.daemon import KEY, QUICK, Llmd, profile

SECRET = "what nobody may read later"


@pytest.fixture(scope="module")
def llmd() -> Iterator[Llmd]:
    llmd = Llmd({"tiny_0": profile("tiny")}, **QUICK)
    try:
        llmd.start()
        for model in ("tiny", "tiny_0", "gone"):
            ask(llmd, model)
        yield llmd
    finally:
        llmd.close()


def ask(llmd: Llmd, model: str) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": SECRET}], "max_tokens": 8}
    head = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    request = urllib.request.Request(
        f"{llmd.url}/v1/chat/completions", json.dumps(body).encode(), headers=head
    )
    try:
        urllib.request.urlopen(request, timeout=60).read()
    except urllib.error.HTTPError as error:
        error.close()


def told(llmd: Llmd, *words: str) -> str:
    done = llmd.run("activity", *words)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_every_request_is_a_line_at_80_columns(llmd: Llmd) -> None:
    lines = told(llmd).splitlines()
    assert lines[0].split() == ["TIME", "KEY", "MODEL", "IN", "OUT", "WAIT", "TOOK", "END"]
    assert len(lines) == 4
    assert all(len(line) <= 80 for line in lines)
    assert lines[3].split()[-2:] == ["404", "model_not_found"]


def test_a_model_that_is_called_like_a_command_to_the_terminal_is_not_obeyed() -> None:
    counts = dict.fromkeys(("prompt", "completion", "queue_ms", "latency_ms"), 1)
    row = {
        "at": "2026-11-23T10:00:00+00:00",
        "source": "webui",
        "model": "m\x1b[2J",
        "status": 404,
        "code": None,
    }
    console = Console(width=80, color_system=None)
    with console.capture() as shown:
        requests.show([row | counts], console, totals=False)
    assert "m?[2J" in shown.get()
    assert "\x1b" not in shown.get()


def test_filters(llmd: Llmd) -> None:
    def models(*words: str) -> list[str]:
        return [request["model"] for request in json.loads(told(llmd, "--json", *words))["requests"]]

    assert models() == ["tiny", "tiny_0", "gone"]
    assert models("tiny_0") == ["tiny", "tiny_0"]
    assert models("--failed") == models("-n", "1") == ["gone"]
    assert models("--key", "webui", "--since", "1h") == ["tiny", "tiny_0", "gone"]
    assert models("--key", "n8n") == []


def test_totals_and_csv(llmd: Llmd) -> None:
    rows = list(csv.DictReader(io.StringIO(told(llmd, "--totals", "--csv"))))
    found = {row["model"]: (row["source"], row["requests"], row["failed"], row["completion"]) for row in rows}
    assert found["tiny"] == ("webui", "1", "0", "8")
    assert found["gone"] == ("webui", "1", "1", "0")
    assert "ENGINE" in told(llmd, "--totals").splitlines()[0]
    assert len(list(csv.DictReader(io.StringIO(told(llmd, "--csv"))))) == 3


def test_nothing_that_was_written_is_kept(llmd: Llmd) -> None:
    told(llmd)  # all is in the file now
    path = llmd.home / "state" / "activity.db"
    held = b"".join(file.read_bytes() for file in path.parent.glob("activity.db*"))
    assert path.stat().st_mode & 0o777 == 0o600
    assert SECRET.encode() not in held
    assert KEY.encode() not in held


def test_it_outlives_the_daemon(llmd: Llmd) -> None:
    assert llmd.stop() == 0
    connection = sqlite3.connect(llmd.home / "state" / "activity.db")
    assert connection.execute("SELECT count(*) FROM requests").fetchone() == (3,)
    connection.close()
    llmd.start()
    assert len(json.loads(told(llmd, "--json"))["requests"]) == 3
