from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path

import pytest

from supervisor.host import systemd


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_notices_reach_the_service_manager(
    abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"@llmd-{secrets.token_hex(8)}" if abstract else str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name[1:] if abstract else name)
        assert systemd.ready("2 engines adopted")
        assert systemd.say("two\nlines")
        assert systemd.pat_watchdog()
        assert systemd.stopping("draining")
        assert [manager.recv(1000) for _ in range(4)] == [
            b"READY=1\nSTATUS=2 engines adopted",
            b"STATUS=two lines",
            b"WATCHDOG=1",
            b"STOPPING=1\nSTATUS=draining",
        ]


@pytest.mark.parametrize("name", [None, "", "/no/such/socket", "nonsense"])
def test_nobody_listens(name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if name is None:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    else:
        monkeypatch.setenv("NOTIFY_SOCKET", name)
    assert not systemd.ready("up")


def test_a_stuck_service_manager_does_not_stop_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        sent = [systemd.pat_watchdog() for _ in range(2000)]
    assert sent[0]
    assert not sent[-1]


@pytest.mark.parametrize(
    ("microseconds", "pid", "expected"),
    [
        ("30000000", None, 15.0),
        ("30000000", "own", 15.0),
        ("30000000", "1", None),
        ("0", None, None),
        ("soon", None, None),
        (None, None, None),
    ],
)
def test_watchdog_interval(
    microseconds: str | None, pid: str | None, expected: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("WATCHDOG_USEC", microseconds),
        ("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid),
    ):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert systemd.watchdog_interval() == expected
