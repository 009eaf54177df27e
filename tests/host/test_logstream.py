"""Several logs as one: in the order of time, dated as each says, before and after now."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from supervisor.host.logstream import Logs, date


def theirs(at: datetime, text: str) -> str:
    """As vLLM writes it."""
    local = at.astimezone().strftime("%m-%d %H:%M:%S")
    return f"(EngineCore pid=7) INFO {local} [core.py:1] {text}\n"


def ours(at: datetime, event: str) -> str:
    stamp = at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps({"timestamp": stamp, "level": "INFO", "event": event}) + "\n"


NOW = datetime.now(UTC).replace(microsecond=0)


def ago(minutes: float) -> datetime:
    return NOW - timedelta(minutes=minutes)


@pytest.fixture
def logs(tmp_path: Path) -> dict[str, Path]:
    engine, daemon = tmp_path / "llama_0.log", tmp_path / "llmd.log"
    trace = "Traceback (most recent call last):\n  boom\n"
    engine.write_text("no date yet\n" + theirs(ago(9), "one") + trace + theirs(ago(5), "two"))
    daemon.write_text(ours(ago(10), "a") + ours(ago(7), "b") + ours(ago(1), "c"))
    return {"llama_0": engine, "llmd": daemon, "coder_0": tmp_path / "not there"}


def told(logs: Logs, lines: int = 100, since: str | None = None) -> list[str]:
    """What each line says, by its last word."""
    return [entry.line.split()[-1].strip('"}') for entry in logs.past(lines, since)]


def test_lines_come_in_the_order_of_time_and_tracebacks_stay_whole(logs: dict[str, Path]) -> None:
    assert told(Logs(logs)) == ["a", "yet", "one", "last):", "boom", "b", "two", "c"]
    assert [entry.origin for entry in Logs(logs).past(2)] == ["llama_0", "llmd"]


def test_the_newest_of_all_and_those_since(logs: dict[str, Path]) -> None:
    assert told(Logs(logs), 3) == ["b", "two", "c"]
    since = ago(6).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    assert told(Logs(logs), since=since) == ["two", "c"]


async def test_what_is_written_after_now_comes_once(logs: dict[str, Path]) -> None:
    stream = Logs(logs)
    with logs["llama_0"].open("a") as log:
        log.write(theirs(NOW, "three"))
    logs["coder_0"].write_text("its first line\n")
    assert told(stream)[-1] == "c"
    async with asyncio.timeout(10), aclosing(stream.coming()) as coming:
        found = {(await anext(coming)).origin, (await anext(coming)).origin}
    assert found == {"llama_0", "coder_0"}


@pytest.mark.parametrize(
    "line",
    ["", "no date", "INFO 02-30 10:00:00 no such day", "x" * 90 + " 11-23 10:00:00", '{"timestamp": "no"}'],
)
def test_what_is_no_date(line: str) -> None:
    assert date(line) is None


def test_a_line_of_december_read_in_january_is_of_last_year() -> None:
    ahead = datetime.now().astimezone() + timedelta(days=5)
    found = date(f"INFO {ahead:%m-%d %H:%M:%S} [x.py:1] y")
    assert found is not None
    assert datetime.fromisoformat(found) < datetime.now(UTC)
