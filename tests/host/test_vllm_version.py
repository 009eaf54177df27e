"""Which vLLM a command would run: through scripts of several kinds, and programs that never answer."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
import pytest

from supervisor.host.vllm import Installed, installed, interpreter
from tests.daemon import runs, until


def script(file: Path, text: str) -> Path:
    file.write_text(text)
    file.chmod(0o755)
    return file


def python(folder: Path, text: str = "echo 0.33.0") -> Path:
    return script(folder / "python3", f"#!/bin/sh\n{text}\n")


def asked(*command: object, timeout: float = 30.0) -> Installed:
    return installed([str(word) for word in command], os.environ, timeout)


@pytest.mark.parametrize("head", ["#!{python}\n", "#!/bin/sh\n'''exec' {python} \"$0\" \"$@\"\n' '''\n"])
def test_a_script_of_an_environment(tmp_path: Path, head: str) -> None:
    vllm = script(tmp_path / "vllm", head.format(python=python(tmp_path)) + "import sys\n")
    assert asked(vllm, "serve") == Installed(str(vllm), "0.33.0")


def test_a_python_with_a_module(tmp_path: Path) -> None:
    assert asked(python(tmp_path), "-m", "vllm.entrypoints.cli.main", "serve").version == "0.33.0"


def test_a_wrapper_is_asked_for_its_version(tmp_path: Path) -> None:
    wrapper = script(tmp_path / "wrap", '#!/bin/sh\n[ "$1 $2" = "vllm --version" ] && echo 0.32.0+cpu\n')
    assert asked(wrapper, "vllm", "serve") == Installed(str(wrapper), "0.32.0+cpu")


def test_no_such_program() -> None:
    assert asked("/nowhere/vllm", "serve") == Installed()


def test_an_environment_without_vllm(tmp_path: Path) -> None:
    failing = python(tmp_path, "echo 'No package metadata was found for vllm' >&2; exit 1")
    vllm = script(tmp_path / "vllm", f"#!{failing}\n")
    assert asked(vllm, "serve").trouble == "No package metadata was found for vllm"


def test_a_program_that_never_answers_is_ended_with_its_children(tmp_path: Path) -> None:
    hanging = python(tmp_path, f"sleep 600 & echo $! > {tmp_path}/child; wait")
    begun = time.monotonic()
    found = asked(script(tmp_path / "vllm", f"#!{hanging}\n"), "serve", timeout=1.0)
    assert (found.version, found.trouble) == (None, "no answer within 1 s")
    assert time.monotonic() - begun < 30
    child = int((tmp_path / "child").read_text())
    until(lambda: not (psutil.pid_exists(child) and runs(psutil.Process(child))), 30)


@pytest.mark.parametrize("text", ["", "\x7fELF", "#!/bin/sh\necho\n", "#!/usr/bin/perl\n"])
def test_what_is_no_python_script(tmp_path: Path, text: str) -> None:
    assert interpreter(script(tmp_path / "program", text)) is None


def test_what_env_finds(tmp_path: Path) -> None:
    assert interpreter(script(tmp_path / "vllm", "#!/usr/bin/env python3\n")) == "python3"
