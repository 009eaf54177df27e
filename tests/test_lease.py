"""Memory lent to other programs by a whole daemon on stand-in GPUs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import QUICK, Llmd, until
from tests.standin.nvml import GIB, FakeGpus, build


@pytest.fixture
def gpus(tmp_path: Path) -> FakeGpus:
    return FakeGpus(tmp_path / "nvml", count=1)


@pytest.fixture
def llmd(gpus: FakeGpus, tmp_path: Path) -> Iterator[Llmd]:
    card = {"model": "llama", "weights": "tiny", "max_model_len": 512, "gpus": [0], "vram": "20 GiB"}
    made = Llmd({"llama_0": card}, env=gpus.env(build(tmp_path)), **QUICK)
    try:
        yield made.start()
    finally:
        made.close()


def loans(llmd: Llmd) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = llmd.status()["loans"]
    return found


def test_an_idle_model_makes_room_until_the_loan_is_given_back(llmd: Llmd):
    assert llmd.run("start", "llama_0").returncode == 0
    done = llmd.run("lease", "12GiB", "--gpu", "0", "--ttl", "20m", "--as", "comfy", "--json")
    granted = json.loads(done.stdout)
    assert "12.00 GiB on GPU 0" in granted["message"]
    assert llmd.engine("llama_0")["state"] == "cold"
    assert "lent 12.00 GiB on GPU 0 to comfy" in llmd.run("status").stdout
    refused = llmd.run("start", "llama_0")
    assert refused.returncode == 1
    assert "loan to comfy 12.00 GiB" in refused.stderr
    assert llmd.run("lease", "--end", granted["name"]).returncode == 0
    assert loans(llmd) == []
    assert llmd.run("start", "llama_0").returncode == 0


def test_a_loan_lasts_as_long_as_its_command_and_passes_on_its_exit_code(llmd: Llmd):
    words = ["lease", "12GiB", "--", "sh", "-c", 'echo "on $CUDA_VISIBLE_DEVICES"; exit 7']
    done = llmd.run(*words)
    assert done.returncode == 7
    assert done.stdout == "on 0\n"
    assert "lent to sh for 7d\n" in done.stderr
    until(lambda: loans(llmd) == [], 5, llmd.text)


def test_a_loan_is_ended_by_its_borrowers_name_as_long_as_that_is_one(llmd: Llmd):
    words = ["lease", "2GiB", "--as", "comfy ui", "--json"]
    names = [json.loads(llmd.run(*words).stdout)["name"] for _ in range(2)]
    both = llmd.run("lease", "--end", "comfy ui")
    assert both.stderr == f"several loans are to 'comfy ui'; name one of {', '.join(names)}\n"
    assert llmd.run("lease", "--end", names[0]).returncode == 0
    until(lambda: len(loans(llmd)) == 1, 5, llmd.text)
    assert f"no loan 'x'; there are: {names[1]} (comfy ui)" in llmd.run("lease", "--end", "x").stderr
    assert f"to comfy ui ({names[1]})" in llmd.run("status").stdout
    assert llmd.run("lease", "--end", "comfy ui").stdout == f"the loan {names[1]} is over\n"


def test_ctrl_c_is_the_commands_to_answer_and_ends_the_loan(llmd: Llmd):
    with subprocess.Popen(
        llmd.command("lease", "12GiB", "--", "sleep", "600"), env=llmd.env, stderr=subprocess.PIPE
    ) as process:
        until(lambda: [loan["borrower"] for loan in loans(llmd)] == ["sleep"], 10, llmd.text)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 128 + signal.SIGINT
    until(lambda: loans(llmd) == [], 5, llmd.text)


def test_a_borrower_that_is_killed_gives_back(llmd: Llmd):
    with subprocess.Popen(
        llmd.command("lease", "12GiB", "--", "sleep", "600"), env=llmd.env, stderr=subprocess.PIPE
    ) as process:
        until(lambda: len(loans(llmd)) == 1, 10, llmd.text)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
        process.wait(10)
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    until(lambda: loans(llmd) == [], 5, llmd.text)


def test_foreign_memory_that_came_just_now_refuses_a_loan(llmd: Llmd, gpus: FakeGpus):
    gpus.foreign(os.getpid(), 0, 4 * GIB)
    refused = llmd.run("lease", "21GiB")
    assert refused.returncode == 1
    assert f"PID {os.getpid()}" in refused.stderr
    assert loans(llmd) == []


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["lease"], 2, "say how much, such as 12GiB"),
        (["lease", "lots"], 2, "'lots' is not a size"),
        (["lease", "12"], 2, "12 bytes is less than 1 MiB; write 12GiB"),
        (["lease", "0"], 2, "write 12GiB"),
        (["lease", "2GiB", "--ttl", "0"], 2, "no time is too short; write 20m"),
        (["lease", "99GiB"], 1, "has 24.00 GiB in all"),
        (["lease", "2GiB", "--gpu", "5"], 1, "wants GPU 5"),
        (["lease", "--end", "nothing"], 1, "no loan 'nothing'; there are: none"),
        (["lease", "2GiB", "--", "no-such-program"], 1, "cannot start no-such-program"),
    ],
)
def test_what_cannot_be_lent(llmd: Llmd, words: list[str], code: int, says: str):
    done = llmd.run(*words)
    assert (done.returncode, says in done.stderr) == (code, True), done.stderr
