"""The command line on a real daemon with stand-in engines: progress, Ctrl-C, logs, exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor import cli
from supervisor.core.devices import GIB
from tests.daemon import QUICK, Llmd, profile, until
from tests.host.test_weights import MODEL, ONE, write_header
from tests.standin.nvml import FakeGpus, build

PATIENCE = 60
"""Seconds for what must happen, on a host that does much else."""

COMMANDS = sorted(cli.main.commands)


@pytest.fixture(scope="module")
def llmd() -> Iterator[Llmd]:
    slow = {"STANDIN_LOAD_SECONDS": "2"}
    llmd = Llmd({"tiny_0": profile("tiny"), "slow_0": profile("slow", env=slow)}, **QUICK)
    try:
        yield llmd.start()
    finally:
        llmd.close()


def popen(llmd: Llmd, *words: str) -> subprocess.Popen[bytes]:
    """As a shell would start it: Ctrl-C is heard, even where this test run was told to ignore it."""
    heard = ["env", "--default-signal=INT", *llmd.command(*words)]
    return subprocess.Popen(heard, env=llmd.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def stop(llmd: Llmd, profile: str) -> None:
    assert llmd.run("stop", profile).returncode == 0


def test_a_start_into_a_pipe_tells_each_stage_once(llmd: Llmd) -> None:
    done = llmd.run("start", "slow_0")
    stop(llmd, "slow_0")
    assert (done.returncode, done.stdout) == (0, "slow_0 is ready\n")
    lines = done.stderr.splitlines()
    assert len(lines) == len(set(lines)) > 1
    assert all(re.fullmatch(r"slow_0: (\d+ % )?[a-zA-Z ]+", line) for line in lines), lines
    assert any(re.fullmatch(r"slow_0: \d+ % loading weights", line) for line in lines), lines


def test_a_start_on_a_terminal_shows_a_bar_and_takes_it_away(llmd: Llmd) -> None:
    terminal, theirs = os.openpty()
    env = {"TERM": "xterm", "COLUMNS": "80"}
    process = subprocess.Popen(
        llmd.command("start", "slow_0"), env=llmd.env | env, stdout=subprocess.PIPE, stderr=theirs
    )
    os.close(theirs)
    shown = read_all(terminal)
    out, _ = process.communicate(timeout=PATIENCE)
    stop(llmd, "slow_0")
    assert (process.returncode, out) == (0, b"slow_0 is ready\n")
    assert re.search(r"slow_0: loading weights.*━.*\d+%", shown)
    assert shown.rstrip().endswith("\x1b[2K")  # the last thing done is to erase the line


def read_all(terminal: int) -> str:
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the other end was closed
        while piece := os.read(terminal, 65536):
            shown += piece
    os.close(terminal)
    return shown.decode()


def test_a_start_for_scripts_is_json_alone(llmd: Llmd) -> None:
    done = llmd.run("start", "tiny_0", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {"message": "tiny_0 is ready"}
    again = llmd.run("start", "tiny_0", "--json")
    assert json.loads(again.stdout) == {"message": "tiny_0 is ready already"}


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_ctrl_c_ends_the_waiting_and_not_the_start(llmd: Llmd, flags: tuple[str, ...]) -> None:
    process = popen(llmd, "start", "slow_0", *flags)
    until(lambda: llmd.engine("slow_0")["state"] == "starting", PATIENCE, llmd.text)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    said = json.loads(out)["error"]["message"] if flags else err.decode().splitlines()[-1]
    assert said == "interrupted: the daemon goes on starting slow_0; `llmd stop slow_0` ends that"
    assert b"Traceback" not in err
    until(lambda: llmd.engine("slow_0")["state"] == "ready", PATIENCE, llmd.text)
    stop(llmd, "slow_0")


def test_a_pin_is_shown_and_ends_with_the_stop(llmd: Llmd) -> None:
    assert llmd.run("start", "tiny_0", "--pin").returncode == 0
    assert llmd.engine("tiny_0")["pinned"] is True
    assert "pinned" in llmd.run("status").stdout
    llmd.run("start", "tiny_0", "--no-pin")
    assert llmd.engine("tiny_0")["pinned"] is False
    llmd.run("start", "tiny_0", "--pin")
    llmd.run("stop", "tiny_0")
    assert llmd.engine("tiny_0")["pinned"] is False


def test_logs_gives_the_last_lines(llmd: Llmd) -> None:
    llmd.run("start", "tiny_0")
    written = Path(llmd.engine("tiny_0")["log"]).read_bytes().splitlines(keepends=True)
    for count in (0, 1, 3):
        last = b"".join(written[len(written) - count :])
        out, _ = popen(llmd, "logs", "tiny_0", "-n", str(count)).communicate(timeout=PATIENCE)
        assert out == last
    everything, _ = popen(llmd, "logs", "tiny_0", "-n", "100000").communicate(timeout=PATIENCE)
    assert everything == b"".join(written)


def test_logs_follows_until_ctrl_c(llmd: Llmd) -> None:
    llmd.run("start", "tiny_0")
    log = Path(llmd.engine("tiny_0")["log"])
    process = popen(llmd, "logs", "tiny_0", "-f", "-n", "1")
    assert process.stdout
    assert process.stdout.readline() == log.read_bytes().splitlines(keepends=True)[-1]
    with log.open("ab") as more:
        more.write(b"the engine says something\n")
    assert process.stdout.readline() == b"the engine says something\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (0, b"")


def test_logs_into_a_reader_that_has_seen_enough(llmd: Llmd) -> None:
    llmd.run("start", "tiny_0")
    process = popen(llmd, "logs", "tiny_0", "-f", "-n", "1")
    assert process.stdout
    process.stdout.readline()
    process.stdout.close()
    with Path(llmd.engine("tiny_0")["log"]).open("ab") as more:
        more.write(b"unread\n")
    assert process.stderr
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait(PATIENCE) == 1


BAD = "[sever]\n"
NO_DAEMON = ("--socket", "/nowhere/llmd.sock")

CODES = [
    (0, ("status",)),
    (0, ("start", "tiny_0")),
    (0, ("start", "tiny")),
    (0, ("stop", "tiny_0")),
    (0, ("stop", "tiny_0", "--now")),
    (0, ("logs", "tiny_0")),
    (0, ("check",)),
    (0, ("reload",)),
    (0, ("reload", "--plan")),
    (0, ("logs", "--since", "1h", "--grep", "serving", "--json")),
    (0, ("activity",)),
    (0, ("activity", "--totals", "--csv")),
    (0, ("why", "tiny")),
    (0, ("why", "--history")),
    (0, ("mode",)),
    (0, ("plan", "--gpus", "2x24GiB")),
    (0, ("doctor",)),
    (0, ("add", "MODEL", "--cpu", "--dry-run")),
    (0, ("keys",)),
    (0, ("keys", "new", "n8n")),
    (0, ("completion", "bash")),
    (1, ("--config", "BAD", "status")),
    (1, ("start", "gone")),
    (1, ("stop", "gone")),
    (1, ("release", "0")),
    (1, ("--config", "BAD", "reload")),
    (1, ("logs", "gone")),
    (1, ("why", "gone")),
    (1, ("top",)),  # no terminal here
    (1, ("--config", "BAD", "activity")),
    (1, ("why", "gone", "--history")),
    (1, ("mode", "dusk")),
    (1, ("plan", "gone")),
    (1, ("--config", "BAD", "doctor")),
    (1, ("add", "/nowhere")),
    (1, ("keys", "new", "webui")),  # there is one
    (1, ("keys", "hash")),  # nothing on stdin
    (1, ("lease", "1GiB")),  # no card here
    (1, ("simulate", "gone.csv")),
    (1, ("--config", "BAD", "check")),
    (1, ("--config", "BAD", "serve")),
    (1, ("serve",)),  # a second one
    *((2, (command, "--gone")) for command in COMMANDS),
    *((2, (command,)) for command in ("start", "stop", "gone")),
    (2, ("add", "/nowhere", "--json")),  # nobody is there to be asked
    (2, ("completion", "csh")),
    (2, ("keys", "new")),
    (2, ("keys", "--json", "hash")),
    (2, ("logs", "--grep", "(")),
    (2, ("logs", "--since", "soon")),
    (2, ("logs", "tiny_0", "-n", "-1")),
    (2, ("why",)),
    (2, ("activity", "--csv", "--json")),
    (2, ("activity", "--since", "soon")),
    (2, ("why", "tiny", "--since", "1h")),
    (2, ("why", "--history", "--since", "soon")),
    (2, ("why", "--history", "-n", "0")),
    (3, (*NO_DAEMON, "status")),
    (3, (*NO_DAEMON, "start", "tiny_0")),
    (3, (*NO_DAEMON, "stop", "tiny_0")),
    (3, (*NO_DAEMON, "logs", "tiny_0")),
    (3, (*NO_DAEMON, "why", "tiny_0")),
    (3, (*NO_DAEMON, "mode")),
    (3, (*NO_DAEMON, "logs")),
    (3, (*NO_DAEMON, "activity")),
    (3, (*NO_DAEMON, "lease", "1GiB")),
]


def tiny_model(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MODEL | {"architectures": ["LlamaForCausalLM"]}))
    write_header(folder / "model.safetensors", ONE)
    return folder


@pytest.mark.parametrize(("code", "words"), CODES, ids=lambda value: " ".join(value) if type(value) is tuple else value)  # fmt: skip
def test_exit_codes(llmd: Llmd, tmp_path: Path, code: int, words: tuple[str, ...]) -> None:
    bad = tmp_path / "llmd.toml"
    bad.write_text(BAD)
    named = {"BAD": str(bad), "MODEL": str(tiny_model(tmp_path / "tiny"))}
    done = llmd.run(*(named.get(word, word) for word in words))
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    if code:
        assert done.stderr


def test_every_command_has_a_row_for_done_and_for_refused() -> None:
    """But `serve`, which ends well only when told to, `lease` and `release`, which need a card, `top`, which needs a
    terminal, and `simulate`, whose profiles need cards: they are done elsewhere. `completion` has nothing to
    refuse."""
    for code, elsewhere in (
        (0, {"serve", "lease", "release", "top", "simulate"}),
        (1, {"serve", "completion"}),
    ):
        rows = {word for row, words in CODES if row == code for word in words if word in COMMANDS}
        assert rows | elsewhere == set(COMMANDS)


def test_version(llmd: Llmd) -> None:
    done = llmd.run("--version")
    assert (done.returncode, done.stdout) == (0, f"llmd, version {llmd.status()['daemon']['version']}\n")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_of_each_command(llmd: Llmd, command: str, flag: str) -> None:
    done = llmd.run(command, flag)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"llmd {command} [OPTIONS]" in done.stdout
    about = cli.main.commands[command].help
    assert about
    assert " ".join(about.split()) in " ".join(done.stdout.split())


def test_help_names_every_command(llmd: Llmd) -> None:
    done = llmd.run("--help")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.partition("Commands:\n")[2].splitlines()] == COMMANDS


def on_a_card(gpus: FakeGpus, library: Path) -> Llmd:
    card = {"model": "llama", "weights": "tiny", "gpus": [0], "vram": "18 GiB", "max_model_len": 512}
    return Llmd({"llama_0": card}, env=gpus.env(library))


@pytest.fixture
def gpus(tmp_path: Path) -> FakeGpus:
    return FakeGpus(tmp_path / "nvml", count=1, total=24 * GIB)


def checked(gpus: FakeGpus, directory: Path) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """`llmd check` for people, and the warnings it gives to scripts."""
    llmd = on_a_card(gpus, build(directory))
    try:
        answer = json.loads(llmd.run("check", "--json").stdout)
        assert answer["ok"] is True
        return llmd.run("check"), [warning["what"] for warning in answer["warnings"]]
    finally:
        llmd.close()


def test_check_says_that_it_could_not_see_the_cards(gpus: FakeGpus, tmp_path: Path) -> None:
    gpus.host(init="driver_mismatch")
    done, warnings = checked(gpus, tmp_path)
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    said = "GPU profiles could not be checked against the cards: NVIDIA driver/library version mismatch"
    assert said in line
    assert line.endswith("(warning)")
    assert [what.startswith(said) for what in warnings] == [True]


def test_check_says_that_it_could_not_see_one_card(gpus: FakeGpus, tmp_path: Path) -> None:
    gpus.card(0, memory="lost")
    done, warnings = checked(gpus, tmp_path)
    assert done.returncode == 0
    assert warnings == ["profiles could not be checked against GPU 0: GPU is lost"]


def test_check_does_not_wait_for_a_driver_that_hangs(gpus: FakeGpus, tmp_path: Path) -> None:
    gpus.card(0, hang=60)
    done, warnings = checked(gpus, tmp_path)
    assert done.returncode == 0
    assert warnings == ["GPU profiles could not be checked against the cards: the NVIDIA driver does not answer"]  # fmt: skip


def test_check_is_silent_about_cards_it_has_seen(gpus: FakeGpus, tmp_path: Path) -> None:
    done, warnings = checked(gpus, tmp_path)
    assert (done.returncode, done.stderr, warnings) == (0, "", [])
