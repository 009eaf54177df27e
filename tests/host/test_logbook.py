"""One JSON object a line, times in UTC, whatever the fields are."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

from supervisor.host.logbook import log


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
