"""Lines with fields, as systemd's journal gets them: a datagram socket stands in for it, a file for its stderr."""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.host import journald
from supervisor.host.logbook import log


class Journal:
    """Its socket, and the stderr that it says it listens to; a test calls `begin`, as pytest sets stderr before it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(folder / "s"))
        self.socket.settimeout(5)
        self.stderr = folder / "stderr"
        self.file = self.stderr.open("w")
        self.monkeypatch = monkeypatch

    def begin(self) -> None:
        found = os.fstat(self.file.fileno())
        self.monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        self.monkeypatch.setattr(journald, "SOCKET", self.socket.getsockname())
        self.monkeypatch.setattr(sys, "stderr", self.file)

    def received(self) -> dict[str, str]:
        """The next entry, read as journald reads it."""
        rest, fields = self.socket.recv(1 << 20), {}
        while rest:
            name, rest = rest.split(b"\n", 1)
            name, plain, value = name.partition(b"=")
            if not plain:
                (length,) = struct.unpack("<Q", rest[:8])
                value, rest = rest[8 : 8 + length], rest[9 + length :]
            fields[name.decode()] = value.decode()
        return fields


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Journal]:
    made = Journal(tmp_path, monkeypatch)
    yield made
    journald._sender().close()
    journald._sender.cache_clear()
    made.socket.close()
    made.file.close()


def test_a_line_has_fields_to_search_by(journal: Journal) -> None:
    journal.begin()
    log("request", "WARNING", request_id="r1", profile="llama_0", status=502, error=None, of=["x"])
    fields = journal.received()
    line = json.loads(fields.pop("MESSAGE"))
    assert (line["event"], line["of"]) == ("request", ["x"])
    assert fields == {
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "llmd",
        "LLMD_EVENT": "request",
        "LLMD_REQUEST_ID": "r1",
        "LLMD_PROFILE": "llama_0",
        "LLMD_STATUS": "502",
    }
    assert journal.stderr.read_text() == ""  # or each line would be there twice


def test_a_value_cannot_make_up_fields(journal: Journal) -> None:
    journal.begin()
    log("engine_failed", "ERROR", why="one\nLLMD_PROFILE=other\n")
    fields = journal.received()
    assert fields["LLMD_WHY"] == "one\nLLMD_PROFILE=other\n"
    assert "LLMD_PROFILE" not in fields


def test_a_line_that_the_journal_does_not_take_is_told_on_stderr(journal: Journal) -> None:
    journal.begin()
    log("long", "ERROR", text="x" * (4 << 20))
    assert journal.stderr.read_text().startswith('<3>{"timestamp"')
    journal.socket.close()
    log("gone")
    assert journal.stderr.read_text().splitlines()[-1].startswith('<6>{"timestamp"')


def test_what_only_inherited_the_variable_says_it_on_its_own_stderr(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.begin()
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    log("here")
    assert journal.stderr.read_text().startswith('{"timestamp"')


def test_what_is_no_text_is_replaced(journal: Journal) -> None:
    """A lone surrogate, which a client can put into a model's name."""
    journal.begin()
    log("odd", model="\ud800", why="\ud800\n", large=1 << 70)
    fields = journal.received()
    assert (fields["LLMD_MODEL"], fields["LLMD_WHY"], fields["LLMD_LARGE"]) == ("?", "?\n", str(1 << 70))
    assert json.loads(fields["MESSAGE"])["model"] == "\ud800"
