"""Every verdict of `llmd doctor`, in tables: what is seen -> how grave it is, and words of what is said."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from supervisor.cli.doctor import cards, doors, ground
from supervisor.cli.doctor.finding import Finding
from supervisor.cli.doctor.ground import Access
from supervisor.core.devices import GIB, HOST, MIB, Holder, Reading, Survey
from supervisor.errors import LlmdError, NoDaemon, OperatorError, Problem
from supervisor.host.nvml import Health
from supervisor.host.ports import Door
from supervisor.host.vllm import Installed


def judged(finding: Finding | None, grade: str, *words: str) -> None:
    assert finding is not None
    assert finding.grade == grade, finding
    assert bool(finding.instead) == (grade != "pass"), finding
    said = f"{finding.what} -> {finding.instead}"
    assert [word for word in words if word not in said] == [], said


def card(**fields: Any) -> Reading:
    usual: dict[str, Any] = {"total": 24 * GIB, "used": 0, "free": 24 * GIB, "name": "RTX 3090", "index": 0}
    return Reading("GPU-0", at=1.0, **{**usual, **fields})


HOST_READING = Reading(HOST, 64 * GIB, 14 * GIB, 50 * GIB, 1.0)


# --- Driver and cards ---


@pytest.mark.parametrize(
    ("survey", "needed", "grade", "words"),
    [
        (Survey((card(), HOST_READING), 1.0, driver="580.0"), True, "pass", ("NVIDIA 580.0, 1 GPU",)),
        (Survey((card(), card(index=1)), 1.0, driver="580.0"), True, "pass", ("2 GPUs",)),
        (Survey((HOST_READING,), 1.0, driver="580.0"), True, "fail", ("0 GPUs", "nvidia-smi -L")),
        (Survey(trouble="no NVIDIA driver: libnvidia-ml.so.1 was not found"), True, "fail", ("install",)),
        (Survey(trouble="no NVIDIA driver: libnvidia-ml.so.1 was not found"), False, "pass", ("no profile needs",)),
        (Survey(trouble="NVIDIA driver/library version mismatch"), True, "fail", ("reboot",)),
        (Survey(trouble="the NVIDIA driver is not loaded"), True, "fail", ("modprobe",)),
        (Survey(trouble="no permission to use the NVIDIA driver"), True, "fail", ("/dev/nvidiactl",)),
        (Survey(trouble="the NVIDIA driver does not answer"), True, "fail", ("Xid",)),
    ],
)  # fmt: skip
def test_driver(survey: Survey, needed: bool, grade: str, words: tuple[str, ...]) -> None:
    judged(cards.driver(survey, needed), grade, *words)


@pytest.mark.parametrize(
    ("reading", "health", "grade", "words"),
    [
        (card(temperature=50.0), Health(0, uncorrected=0, persistent=True), "pass", ("50 °C", "no memory errors")),
        (card(), Health(0), "pass", ("RTX 3090",)),
        (card(), None, "pass", ("RTX 3090",)),
        (card(trouble="GPU is lost"), None, "fail", ("GPU is lost", "Xid")),
        (card(), Health(0, uncorrected=3), "fail", ("3 uncorrected", "nvidia-smi -r")),
        (card(), Health(0, worn=True), "fail", ("exchanged",)),
        (card(), Health(0, pending=True), "warn", ("wait to be replaced",)),
        (card(), Health(0, slowed=("heat",)), "warn", ("slowed down by heat", "cooling")),
        (card(temperature=90.0), Health(0, slows_at=93), "warn", ("90 °C",)),
        (card(temperature=88.0), Health(0, slows_at=93), "pass", ()),
        (card(temperature=88.0), Health(0), "warn", ("88 °C",)),
        (card(), Health(0, persistent=False), "warn", ("nvidia-persistenced",)),
    ],
)  # fmt: skip
def test_cards(reading: Reading, health: Health | None, grade: str, words: tuple[str, ...]) -> None:
    found = [*cards.cards(Survey((reading, HOST_READING), 1.0), [health] if health else [], ())]
    judged(found[0], grade, *words)
    assert len(found) == (1 if reading.trouble else 2)


def test_all_that_ails_a_card_is_told() -> None:
    health = Health(0, uncorrected=1, pending=True, worn=True, slowed=("heat",), persistent=False)
    found = [*cards.cards(Survey((card(),), 1.0), [health], ())]
    assert [finding.grade for finding in found] == ["fail", "fail", "warn", "warn", "pass"]


ANN = Holder(99, 3 * GIB, "python", "ann")


@pytest.mark.parametrize(
    ("reading", "ours", "grade", "words"),
    [
        (card(), (), "pass", ("24.00 GiB of 24.00 GiB free",)),
        (card(holders=(ANN,), used=3 * GIB, free=21 * GIB), (), "warn", ("python 99 (ann) 3.00 GiB", "vram")),
        (card(holders=(ANN,), used=3 * GIB, free=21 * GIB), (99,), "pass", ("21.00 GiB",)),
        (card(holders=(Holder(1, 500 * MIB, "Xorg"),), used=500 * MIB), (), "pass", ()),
        (card(used=8 * GIB, free=16 * GIB), (), "warn", ("processes that the driver does not name",)),
        (card(used=8 * GIB, holders=(Holder(7, None, "vllm"),)), (7,), "pass", ()),
        (card(unified=True, total=0, free=0), (), "pass", ("shared with the host",)),
    ],
)  # fmt: skip
def test_who_holds_a_card(
    reading: Reading, ours: tuple[int, ...], grade: str, words: tuple[str, ...]
) -> None:
    judged(cards.memory(reading, ours), grade, *words)


# --- What engines stand on ---


@pytest.mark.parametrize(
    ("found", "grade", "words"),
    [
        (Installed("/v/vllm", "0.33.0"), "pass", ("vLLM 0.33.0 (/v/vllm)",)),
        (Installed("/v/vllm", "0.22.1"), "pass", ()),
        (Installed("/v/vllm", "0.32.0+cpu"), "pass", ()),
        (Installed("/v/vllm", "1.0.0rc1"), "pass", ()),
        (Installed("/v/vllm", "0.22.0"), "fail", ("0.22.1 or newer", "past the API key")),
        (Installed("/v/vllm", "0.9.2"), "fail", ()),
        (Installed("/v/vllm", None, "no answer within 15 s"), "warn", ("no answer within", "0.22.1")),
        (Installed(), "fail", ("there is no program vllm", "full path")),
    ],
)
def test_vllm(found: Installed, grade: str, words: tuple[str, ...]) -> None:
    judged(ground.vllm(("vllm", "serve"), found), grade, *words)


@pytest.mark.parametrize(
    ("free", "grade"), [(10 * GIB, "pass"), (1 * GIB, "warn"), (100 * MIB, "fail")]
)  # fmt: skip
def test_room_for_the_state(free: int, grade: str) -> None:
    judged(ground.state_disk(Path("/var/lib/llmd"), free, 2 * GIB), grade, "free for /var/lib/llmd")


@pytest.mark.parametrize(
    ("free", "missing", "grade"),
    [
        (100 * GIB, ("a_0",), "pass"),
        (10 * GIB, ("a_0",), "warn"),
        (100 * MIB, ("a_0",), "fail"),
        (0, (), "pass"),
    ],
)
def test_room_for_weights(free: int, missing: tuple[str, ...], grade: str) -> None:
    judged(ground.weights_disk(Path("/hub"), free, missing), grade, *missing)


@pytest.mark.parametrize(
    ("needs", "grade", "words"),
    [
        ({}, "pass", ("50.00 GiB of 64.00 GiB free",)),
        ({"a_0": 15 * GIB}, "pass", ("a_0, asleep: 15.00 GiB of it",)),
        (
            {"a_0": 30 * GIB, "b_0": 30 * GIB},
            "warn",
            ("a_0, b_0, asleep: 60.00 GiB of it", "stopped instead"),
        ),
        ({"a_0": 70 * GIB}, "warn", ("a_0 cannot sleep",)),
    ],
)
def test_memory_for_sleepers(needs: dict[str, int], grade: str, words: tuple[str, ...]) -> None:
    judged(ground.sleepers(HOST_READING, needs), grade, *words)


@pytest.mark.parametrize(("synchronised", "grade"), [(True, "pass"), (False, "warn"), (None, "warn")])
def test_clock(synchronised: bool | None, grade: str) -> None:
    judged(ground.clock(synchronised), grade)


@pytest.mark.parametrize(
    ("here", "known", "calendars", "grade", "words"),
    [
        ("CET", True, ("day",), "pass", ()),
        ("UTC", True, (), "pass", ()),
        ("UTC", True, ("day",), "warn", ("begin by UTC", "day")),
        ("CET", False, (), "warn", ("tzdata",)),
    ],
)
def test_zone(here: str, known: bool, calendars: tuple[str, ...], grade: str, words: tuple[str, ...]) -> None:
    judged(ground.zone(here, known, calendars), grade, *words)


@pytest.mark.parametrize(
    ("mode", "secret", "grade"),
    [
        (None, True, None),
        (0o644, False, None),
        (0o640, True, None),
        (0o644, True, "fail"),
        (0o666, False, "fail"),
        (0o660, False, None),
    ],
)
def test_rights_of_files(mode: int | None, secret: bool, grade: str | None) -> None:
    found = ground.access(Access(Path("/etc/llmd/llmd.toml"), mode, secret))
    if grade is None:
        assert found is None
    else:
        judged(found, grade, "chmod", "/etc/llmd/llmd.toml")


@pytest.mark.parametrize(
    ("mode", "writable", "grade", "words"),
    [
        (0o700, True, "pass", ("closed to others",)),
        (0o755, True, "warn", ("chmod 700",)),
        (0o710, True, "warn", ("chmod 700",)),
        (None, True, "pass", ("will be made",)),
        (None, False, "warn", ("may not make it in /var", "StateDirectory")),
    ],
)
def test_rights_of_the_state(mode: int | None, writable: bool, grade: str, words: tuple[str, ...]) -> None:
    judged(ground.state(Path("/var/lib/llmd"), mode, writable, Path("/var")), grade, *words)


@pytest.mark.parametrize(
    ("mounted", "delegated", "grade"),
    [(True, True, "pass"), (True, None, "pass"), (True, False, "warn"), (False, None, "warn")],
)
def test_groups(mounted: bool, delegated: bool | None, grade: str) -> None:
    judged(ground.groups(mounted, delegated), grade)


PROBLEM = Problem(Path("/llmd.toml"), "unknown key sever", "write server", ("sever",), 2)
UNSET = Problem(Path("/llmd.toml"), "webui cannot get in: X is not set in the environment", "set it")
PROGRAM = Problem(Path("/llmd.toml"), "there is no program vllm", "write its path", ("engine", "command"))


def test_configuration() -> None:
    [bad, odd] = ground.configuration(Path("/llmd.toml"), [PROBLEM], [UNSET])
    judged(bad, "fail", "/llmd.toml:2: unknown key sever", "write server")
    judged(odd, "warn", "/llmd.toml: webui cannot get in")
    [well] = ground.configuration(Path("/llmd.toml"), [], [])
    judged(well, "pass", "/llmd.toml is good")


@pytest.mark.parametrize(
    ("told", "heard"), [(None, [PROBLEM, UNSET]), ((), [PROBLEM]), ((str(UNSET),), [PROBLEM, UNSET])]
)
def test_a_variable_that_the_daemon_has_is_not_missed(told: Any, heard: list[Problem]) -> None:
    assert ground.heard([PROBLEM, UNSET, PROGRAM], told) == heard


# --- How it is reached ---

DAEMON = {"pid": 7, "listening": ["http://127.0.0.1:8000"]}


@pytest.mark.parametrize(
    ("door", "daemon", "grade", "words"),
    [
        (Door(), None, "pass", ("127.0.0.1:8000 is free",)),
        (Door(errno.EADDRINUSE, 9, "nginx"), None, "fail", ("taken by nginx 9", "another port")),
        (Door(errno.EADDRINUSE, 9, "nginx"), {"pid": 7, "listening": []}, "fail", ("nginx 9",)),
        (Door(errno.EADDRINUSE, 7, "llmd"), {"pid": 7, "listening": []}, "pass", ("llmd itself",)),
        (Door(errno.EADDRINUSE), DAEMON, "pass", ("llmd itself",)),
        (Door(errno.EADDRINUSE), None, "fail", ("of another user",)),
        (Door(errno.EADDRNOTAVAIL), None, "fail", ("has no address 127.0.0.1",)),
        (Door(errno.EACCES), None, "fail", ("1024",)),
        (Door(errno.EAFNOSUPPORT), None, "fail", ("Address family",)),
    ],
)
def test_ports(door: Door, daemon: dict[str, Any] | None, grade: str, words: tuple[str, ...]) -> None:
    judged(doors.port("127.0.0.1:8000", ("127.0.0.1", 8000), door, daemon), grade, *words)


def test_a_port_in_the_tailnet() -> None:
    judged(
        doors.port("tailscale:8000", None, Door(), None),
        "warn",
        "no address in a tailnet yet",
        "tailscale up",
    )
    judged(
        doors.port("tailscale:8000", ("100.64.0.1", 8000), Door(), None), "pass", "100.64.0.1:8000 is free"
    )


@pytest.mark.parametrize(
    ("address", "listens", "grade", "words"),
    [
        (None, ("127.0.0.1:8000",), "pass", ("not used",)),
        ("100.64.0.1", ("127.0.0.1:8000",), "pass", ("100.64.0.1, not listened on",)),
        ("100.64.0.1", ("tailscale:8000",), "pass", ("100.64.0.1",)),
        (None, ("tailscale:8000",), "warn", ("tailscale up",)),
    ],
)
def test_tailnet(address: str | None, listens: tuple[str, ...], grade: str, words: tuple[str, ...]) -> None:
    judged(doors.tailnet(address, listens), grade, *words)


@pytest.mark.parametrize(
    ("trouble", "grade", "word"),
    [
        (None, "pass", "none is running"),
        (NoDaemon("nobody answers"), "pass", "none is running"),
        (OperatorError("you may not open /s"), "warn", "you may not open /s"),
    ],
)
def test_no_daemon(trouble: LlmdError | None, grade: str, word: str) -> None:
    [found] = doors.daemon(None, trouble)
    judged(found, grade, word)


def test_a_daemon_with_an_engine_that_fails_and_one_left_behind() -> None:
    status = {
        "daemon": {"version": "0.1.0", "pid": 7},
        "engines": [{"profile": "a_0", "failure": "out of\nmemory"}, {"profile": "b_0", "failure": None}],
        "strays": [{"profile": "old", "pid": 5, "reason": "no key"}],
    }
    running, failing, stray = doors.daemon(status, None)
    judged(running, "pass", "llmd 0.1.0, pid 7")
    judged(failing, "warn", "a_0: out of memory", "llmd logs a_0")
    judged(stray, "warn", "pid 5 of old", "no key")
