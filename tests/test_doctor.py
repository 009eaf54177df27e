"""`llmd doctor` on this host, on imaginary cards, beside a daemon, and where something hangs."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from supervisor.cli.doctor.finding import Finding, Grade, good
from supervisor.cli.doctor.rounds import side_by_side
from supervisor.config import load
from supervisor.core.devices import GIB
from tests.daemon import QUICK, Llmd, profile
from tests.standin.nvml import FakeGpus, build

CARD = {"model": "llama", "weights": "org/llama", "gpus": [0], "vram": "18 GiB", "max_model_len": 8192}

needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="the stand-in NVML needs a C compiler (cc)")


@pytest.fixture
def vllm(tmp_path: Path) -> Path:
    """A vllm of a version of our choice, in an environment of its own: a script, its Python, and that one's answer."""
    python = tmp_path / "bin" / "python3"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\nread -r version < "$0.version"\necho "$version"\n')
    python.chmod(0o755)
    script = tmp_path / "bin" / "vllm"
    script.write_text(f"#!{python}\n")
    script.chmod(0o755)
    version(script, "0.33.0")
    return script


def version(vllm: Path, text: str) -> None:
    vllm.with_name("python3.version").write_text(f"{text}\n")


@pytest.fixture
def gpus(tmp_path: Path) -> FakeGpus:
    cards = FakeGpus(tmp_path / "cards", count=1)
    cards.card(0, temperature=50, persistence=1, threshold=90, ecc=0, throttle=0, remap=0)
    return cards


@pytest.fixture
def here(gpus: FakeGpus, vllm: Path, tmp_path: Path) -> Iterator[Llmd]:
    """A host on which all is well, but for what nobody here can know: its clock and its cgroups."""
    engine = QUICK["engine"] | {"command": [str(vllm), "serve"]}
    llmd = Llmd({"llama_0": CARD}, env=gpus.env(build(tmp_path)), engine=engine)
    yield llmd
    llmd.close()


def examined(llmd: Llmd) -> tuple[int, dict[str, list[dict[str, str]]]]:
    """(exit code, check -> its lines)."""
    done = llmd.run("doctor", "--json")
    assert done.stderr == ""
    told = json.loads(done.stdout)
    assert told["ok"] is (done.returncode == 0)
    checks: dict[str, list[dict[str, str]]] = {}
    for line in told["checks"]:
        checks.setdefault(line["check"], []).append(line)
    return done.returncode, checks


@needs_cc
def test_a_host_on_which_all_is_well(here: Llmd, vllm: Path) -> None:
    code, checks = examined(here)
    assert code == 0
    unknown = {"clock", "time zone", "cgroups", "weights"}
    assert {name for name, lines in checks.items() if lines[0]["grade"] != "pass"} <= unknown
    assert checks["driver"][0]["what"] == "NVIDIA 580.0, 1 GPU"
    assert checks["GPU 0"][0]["what"] == "NVIDIA GeForce RTX 4090, 50 °C, no memory errors"
    assert checks["GPU 0 memory"][0]["what"] == "24.00 GiB of 24.00 GiB free"
    assert checks["vllm"][0]["what"] == f"vLLM 0.33.0 ({vllm})"
    assert checks["daemon"][0]["what"] == "none is running"


@needs_cc
@pytest.mark.parametrize(
    ("keys", "grade", "word"),
    [
        ({"ecc": 2}, "fail", "2 uncorrected memory errors"),
        ({"remap": 2}, "fail", "cannot be replaced"),
        ({"remap": 1}, "warn", "wait to be replaced"),
        ({"throttle": 0x40}, "warn", "slowed down by heat"),
        ({"throttle": 0x4}, "pass", "50 °C"),  # held to its power limit: as it should be
        ({"temperature": 88}, "warn", "88 °C"),
        ({"persistence": 0}, "warn", "persistence mode is off"),
        ({"memory": "lost"}, "fail", "GPU is lost"),
    ],
)
def test_a_card_that_ails(here: Llmd, gpus: FakeGpus, keys: dict[str, Any], grade: str, word: str) -> None:
    gpus.card(0, **keys)
    code, checks = examined(here)
    [line] = checks["GPU 0"]
    assert (line["grade"], code) == (grade, int(grade == "fail"))
    assert word in line["what"]


@needs_cc
def test_who_holds_a_card_is_named(here: Llmd, gpus: FakeGpus) -> None:
    process = psutil.Process()
    gpus.foreign(process.pid, 0, 6 * GIB)
    [line] = examined(here)[1]["GPU 0 memory"]
    assert line["grade"] == "warn"
    held = f"{process.name()} {process.pid} ({process.username()}) 6.00 GiB"
    assert line["what"] == f"18.00 GiB of 24.00 GiB free; held by {held}"


@needs_cc
@pytest.mark.parametrize(("state", "word"), [("not_loaded", "not loaded"), ("driver_mismatch", "mismatch")])
def test_a_driver_that_will_not_do(here: Llmd, gpus: FakeGpus, state: str, word: str) -> None:
    gpus.host(init=state)
    code, checks = examined(here)
    assert (code, checks["driver"][0]["grade"]) == (1, "fail")
    assert word in checks["driver"][0]["what"]


@needs_cc
def test_a_driver_that_hangs_does_not_hang_the_doctor(here: Llmd, gpus: FakeGpus) -> None:
    gpus.card(0, hang=600)
    begun = time.monotonic()
    code, checks = examined(here)
    assert time.monotonic() - begun < 60
    assert (code, checks["driver"][0]["what"]) == (1, "the NVIDIA driver does not answer")
    assert checks["vllm"][0]["grade"] == "pass"


@needs_cc
def test_a_vllm_below_the_floor(here: Llmd, vllm: Path) -> None:
    version(vllm, "0.22.0")
    code, checks = examined(here)
    assert (code, checks["vllm"][0]["grade"]) == (1, "fail")
    assert "0.22.1 or newer" in checks["vllm"][0]["instead"]


@needs_cc
def test_files_that_others_may_read_or_write(here: Llmd) -> None:
    (here.home / "profiles" / "llama_0.toml").chmod(0o666)
    (here.home / "keys.env").write_text("WEBUI_API_KEY=x\n")
    (here.home / "keys.env").chmod(0o644)
    (here.home / "state").mkdir(mode=0o755)
    code, checks = examined(here)
    said = [(line["grade"], line["instead"]) for line in checks["rights"]]
    assert (code, said) == (
        1,
        [
            ("warn", f"run chmod 700 {here.home}/state"),
            ("fail", f"run chmod o-w {here.home}/profiles/llama_0.toml"),
            ("fail", f"run chmod o= {here.home}/keys.env"),
        ],
    )


@needs_cc
def test_a_file_that_holds_a_secret_is_not_for_everybody_to_read(here: Llmd) -> None:
    (here.home / "state").mkdir(mode=0o700)
    file = here.home / "profiles" / "llama_0.toml"
    stated = file.read_text()
    file.chmod(0o644)
    for name, said in (("TOKENIZERS_PARALLELISM", []), ("HF_TOKEN", [f"run chmod o= {file}"])):
        file.write_text(f'{stated}\n[env]\n{name} = "x"\n')
        code, checks = examined(here)
        assert [line["instead"] for line in checks["rights"] if line["grade"] == "fail"] == said
        assert code == len(said)


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


@pytest.fixture
def there() -> Iterator[Llmd]:
    """An installation on the CPU that listens on a port of its own."""
    port = free_port()
    server = {"listen": [f"127.0.0.1:{port}"]}
    llmd = Llmd({"tiny_0": profile("tiny")}, server=server, **QUICK)
    yield llmd
    llmd.close()


def test_beside_a_daemon_its_own_port_and_its_own_keys_are_fine(there: Llmd) -> None:
    there.start()
    del there.env["LLMD_TEST_KEY"]  # the daemon has it
    code, checks = examined(there)
    assert code == 0, checks
    assert checks["daemon"][0]["what"].startswith("llmd ")
    assert checks["listen"][0]["what"].endswith(": llmd itself")
    assert [line["grade"] for line in checks["config"]] == ["pass"]
    assert [line["grade"] for line in checks["rights"]] == ["pass"]
    there.stop()
    missed = examined(there)[1]["config"]
    assert any("LLMD_TEST_KEY is not set" in line["what"] for line in missed)


def test_a_port_that_another_program_has(there: Llmd) -> None:
    host, _, port = load(there.config).server.listen[0].rpartition(":")
    with socket.create_server((host, int(port))):
        code, checks = examined(there)
    assert (code, checks["listen"][0]["grade"]) == (1, "fail")
    assert f"taken by {psutil.Process().name()} {psutil.Process().pid}" in checks["listen"][0]["what"]


def test_a_broken_configuration_is_told_and_the_rest_still_looked_at(there: Llmd) -> None:
    there.config.write_text("[sever]\n")
    code, checks = examined(there)
    assert (code, checks["config"][0]["grade"]) == (1, "fail")
    assert checks["config"][0]["what"].endswith(":1: unknown key sever")
    assert checks["config"][0]["instead"] == "write server"
    assert {"memory", "clock", "rights", "disk"} <= checks.keys()


def test_for_people_it_fits_80_columns(there: Llmd) -> None:
    done = there.run("doctor")
    assert done.stderr == ""
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert done.stdout.splitlines()[0].rstrip() == "pass  daemon: none is running"
    assert done.stdout.splitlines()[-1].endswith(" 0 failed")


# --- Side by side ---


def test_a_check_that_hangs_is_told_of_and_the_others_are_not_lost() -> None:
    forever = threading.Event()

    def hang() -> Iterator[Finding]:
        forever.wait()
        yield good("b", "late")

    found = side_by_side({"a": lambda: [good("a", "well")], "b": hang, "c": list}, 0.2)
    assert [(each.check, each.grade) for each in found] == [("a", Grade.PASS), ("b", Grade.FAIL)]
    forever.set()


def test_checks_run_side_by_side() -> None:
    """Each waits for the other, so that one after the other they would never end."""
    meeting = threading.Barrier(2, timeout=30)

    def meet(name: str) -> Iterator[Finding]:
        meeting.wait()
        yield good(name, "met")

    found = side_by_side({"a": lambda: meet("a"), "b": lambda: meet("b")}, 60)
    assert [(each.check, each.what) for each in found] == [("a", "met"), ("b", "met")]


def test_what_may_not_be_looked_at_is_a_warning() -> None:
    def refused() -> Iterator[Finding]:
        raise PermissionError(13, "Permission denied", "/root")
        yield

    [found] = side_by_side({"a": refused}, 60)
    assert (found.grade, "Permission denied" in found.what) == (Grade.WARN, True)
