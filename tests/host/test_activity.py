"""What is kept of requests: found again by who and what, summed by day, bounded, and never in anybody's way."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest

from supervisor.config.models import Activity as Limits
from supervisor.host import activity as module
from supervisor.host import database
from supervisor.host.activity import Activity, Register, Wanted
from supervisor.host.scribe import Scribe

NOON = "2026-01-02T12:00:00.000Z"


@dataclass(frozen=True)
class Ended:
    at: str
    request_id: str
    source: str | None
    model: str | None
    profile: str | None
    path: str
    status: int
    code: str | None
    hit: str | None
    prompt: int | None
    completion: int | None
    latency_ms: int
    ttft_ms: int | None
    queue_ms: int | None


CHAT = Ended(
    NOON,
    "r0",
    "webui",
    "llama",
    "llama_0",
    "/v1/chat/completions",
    200,
    None,
    "warm",
    100,
    20,
    3000,
    500,
    1000,
)
FAILED = replace(CHAT, request_id="r1", source="n8n", model="coder", profile=None, status=503, code="overloaded",
                 hit=None, prompt=None, completion=None, latency_ms=40, ttft_ms=None, queue_ms=None)  # fmt: skip


@pytest.fixture
def activity(tmp_path: Path) -> Iterator[Activity]:
    made = Activity(tmp_path / "activity.db", Limits(keep=1e9))
    yield made
    made.close()


@pytest.fixture
async def scribe(activity: Activity) -> AsyncIterator[Scribe]:
    """Closes the file, too, which belongs to its thread."""
    made = Scribe()
    yield made
    await made.ask(activity.close)
    await made.close()


def ids(activity: Activity, limit: int = 100, **wanted: Any) -> list[str]:
    return [found["request_id"] for found in activity.requests(Wanted(**wanted), limit)]


def test_requests_are_found_by_who_what_when_and_how_they_ended(activity: Activity) -> None:
    activity.write([CHAT, replace(FAILED, at="2026-01-03T12:00:00.000Z")])
    assert ids(activity) == ["r0", "r1"]
    assert ids(activity, limit=1) == ["r1"]
    assert ids(activity, model="llama") == ids(activity, model="llama_0") == ["r0"]
    assert ids(activity, source="n8n") == ids(activity, failed=True) == ["r1"]
    assert ids(activity, since="2026-01-03") == ["r1"]
    assert ids(activity, source="n8n", model="llama") == []
    first = activity.requests(Wanted(), 2)[0]
    assert (first["at"], first["ttft_ms"], first["hit"]) == (NOON, 500, "warm")


def test_totals_are_by_day_key_and_model(activity: Activity) -> None:
    days = [replace(CHAT, at=f"2026-01-0{day}T12:00:00.000Z") for day in (2, 2, 3)]
    activity.write([*days, FAILED])
    first, second, third = activity.totals(Wanted())
    assert (first["day"], first["source"], first["model"], first["failed"]) == (
        "2026-01-02",
        "n8n",
        "coder",
        1,
    )
    assert (second["requests"], second["prompt"], second["completion"]) == (2, 200, 40)
    assert (second["engine_s"], second["queue_s"]) == (4.0, 2.0)
    assert (third["day"], third["requests"]) == ("2026-01-03", 1)


def test_no_more_pages_are_held_than_said(activity: Activity) -> None:
    activity.write([CHAT])
    held = activity._database.connection().execute("PRAGMA cache_size").fetchone()[0]
    assert held == -database.CACHE


def test_what_nobody_wrote_is_empty(activity: Activity) -> None:
    assert activity.requests(Wanted(), 5) == activity.totals(Wanted()) == []


def test_what_is_too_old_goes(tmp_path: Path) -> None:
    activity = Activity(tmp_path / "a", Limits(keep=86400.0))
    activity.write(
        [replace(CHAT, at="2020-01-01T00:00:00.000Z"), replace(FAILED, at="2999-01-01T00:00:00.000Z")]
    )
    assert ids(activity) == ["r1"]
    activity.close()


def test_the_file_keeps_its_size_and_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PRUNE_EVERY", 0.0)
    activity = Activity(tmp_path / "a", Limits(keep=1e9, max_size=1 << 20))
    for batch in range(40):
        activity.write([replace(CHAT, request_id=f"{batch}-{n}", path="x" * 200) for n in range(256)])
    kept = ids(activity, limit=100_000)
    assert (tmp_path / "a").stat().st_size <= (1 << 20) + (256 << 10)
    assert 500 < len(kept) < 40 * 256
    assert kept[-1] == "39-255"
    activity.close()


def test_a_full_disk_costs_rows_that_are_counted_and_nothing_else(activity: Activity) -> None:
    activity.write([CHAT])
    connection = activity._database.connection()
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count={pages}")
    activity.write([replace(CHAT, path="x" * 100_000)])
    assert activity.lost == 1
    assert activity.trouble
    activity.write([FAILED])
    assert (activity.trouble, ids(activity)) == (None, ["r0", "r1"])


@pytest.mark.parametrize("odd", [replace(CHAT, prompt=1 << 63), replace(CHAT, model="\ud800")])
async def test_what_no_column_can_hold_costs_its_batch_and_no_other(
    activity: Activity, scribe: Scribe, odd: Ended
) -> None:
    register = Register(activity, scribe)
    for request in (odd, CHAT):
        register.note(request)
        register.flush()
    assert len(await register.ask(lambda activity: activity.requests(Wanted(), 9))) == 1
    assert register.lost == 1
    assert register._written == register._handed


def test_a_damaged_file_is_set_aside(activity: Activity, capsys: pytest.CaptureFixture[str]) -> None:
    activity._database.path.write_bytes(b"this is no database at all, but long enough\n" * 100)
    activity.write([CHAT])
    assert ids(activity) == ["r0"]
    assert "activity_set_aside" in capsys.readouterr().err


async def test_rows_are_written_in_batches_and_when_somebody_asks(activity: Activity, scribe: Scribe) -> None:
    register = Register(activity, scribe)
    for number in range(module.BATCH):
        register.note(replace(CHAT, request_id=f"r{number}"))
    await scribe.ask(lambda: None)
    assert len(ids(activity, limit=2 * module.BATCH)) == module.BATCH
    register.note(FAILED)
    found = await register.ask(lambda activity: activity.requests(Wanted(failed=True), 5))
    assert [request["code"] for request in found] == ["overloaded"]


async def test_a_few_are_written_after_a_while(
    activity: Activity, scribe: Scribe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    Register(activity, scribe).note(CHAT)
    async with asyncio.timeout(10):
        while not ids(activity):  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.01)


async def test_a_disk_that_hangs_blocks_nobody_and_what_is_lost_is_counted(
    activity: Activity, scribe: Scribe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BACKLOG", 300)
    go = threading.Event()
    scribe.write(lambda: go.wait(30) and None)
    register = Register(activity, scribe)
    for _ in range(1000):
        register.note(CHAT)  # would stand still here if it waited
    assert register.lost == 700
    go.set()
    found = await register.ask(lambda activity: activity.requests(Wanted(), 1000))
    assert len(found) == 300
    register.note(CHAT)
    assert register.lost == 700


def test_no_column_could_hold_what_was_written(activity: Activity) -> None:
    activity.write([CHAT])
    columns = [c[1] for c in sqlite3.connect(activity._database.path).execute("PRAGMA table_info(requests)")]
    assert set(columns) == {"id", *(field.name for field in fields(Ended))}
    assert not {"body", "messages", "text", "key"} & set(columns)
