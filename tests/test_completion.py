"""What bash, zsh and fish offer, each asked itself; the names come from the configuration that the line means."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

BIN = str(Path(sys.executable).parent)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "profiles").mkdir()
    for name, model in (("llama_0", "llama"), ("llama_1", "llama"), ("bge_0", "bge")):
        (tmp_path / "profiles" / f"{name}.toml").write_text(f'model = "{model}"\nweights = "w"\ngpus = [0]\n')
    (tmp_path / "llmd.toml").write_text('[keys.webui]\nenv = "X"\n[modes.night]\nstart = "02:00"\n')
    return tmp_path


def env(home: Path) -> dict[str, str]:
    return os.environ | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "LLMD_CONFIG": str(home / "llmd.toml"),
        "HOME": str(home),
        "TERM": "dumb",
    }


def ask(home: Path, program: str, *words: str) -> list[str]:
    found = subprocess.run(words, env=env(home), capture_output=True, text=True, timeout=60, check=False)
    assert (found.returncode, found.stderr) == (0, ""), program
    return found.stdout.split()


def in_bash(home: Path, *line: str) -> list[str]:
    """As bash calls it: the function that `complete` has registered, with the words so far."""
    words = " ".join(f"'{word}'" for word in ("llmd", *line))
    program = f'eval "$(llmd completion bash)"; COMP_WORDS=({words}); COMP_CWORD={len(line)}\n'
    program += 'complete -p llmd >/dev/null && _llmd_completion llmd; echo "${COMPREPLY[@]}"'
    return ask(home, "bash", "bash", "--norc", "-c", program)


def in_fish(home: Path, *line: str) -> list[str]:
    """fish tells a description after a tab."""
    program = f"llmd completion fish | source; complete -C '{' '.join(('llmd', *line))}' | string split -f1 \\t; true"
    return ask(home, "fish", "fish", "--no-config", "-c", program)


LINES = [
    (("co",), ["completion"]),
    (("start", ""), ["bge_0", "llama_0", "llama_1"]),
    (("start", "lla"), ["llama_0", "llama_1"]),
    (("why", "l"), ["llama", "llama_0", "llama_1"]),
    (("mode", ""), ["auto", "night"]),
    (("activity", "--key", ""), ["webui"]),
    (("completion", ""), ["bash", "fish", "zsh"]),
    (("keys", "n"), ["new"]),
    (("stop", "--n"), ["--now"]),
]


@pytest.mark.parametrize(("line", "offered"), LINES, ids=" ".join)
def test_bash(home: Path, line: tuple[str, ...], offered: list[str]) -> None:
    assert sorted(in_bash(home, *line)) == offered


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
@pytest.mark.parametrize(("line", "offered"), LINES, ids=" ".join)
def test_fish(home: Path, line: tuple[str, ...], offered: list[str]) -> None:
    assert sorted(in_fish(home, *line)) == offered


def test_the_configuration_that_the_line_names(home: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "profiles").mkdir(parents=True)
    (other / "profiles" / "qwen_0.toml").write_text('model = "qwen"\nweights = "w"\ngpus = [0]\n')
    (other / "llmd.toml").write_text("")
    assert in_bash(home, "--config", str(other / "llmd.toml"), "start", "") == ["qwen_0"]


def test_a_broken_configuration_offers_nothing_and_says_nothing(home: Path) -> None:
    (home / "llmd.toml").write_text("[sever]\n")
    assert in_bash(home, "start", "") == []


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_at_its_prompt(home: Path) -> None:
    """Only zsh's line editor can complete, so it is given a terminal and a Tab."""
    (home / "_llmd").write_text(ask_script(home, "zsh"))
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe("zsh", ["zsh", "-f", "-i"], env(home))
    try:
        os.write(terminal, b"fpath=($HOME $fpath); autoload -Uz compinit; compinit -u; echo re''ady\n")
        read_until(terminal, "ready")
        os.write(terminal, b"llmd start bg\t")
        assert "llmd start bge_0" in read_until(terminal, "bge_0")
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)


def ask_script(home: Path, shell: str) -> str:
    return subprocess.run(
        ["llmd", "completion", shell], env=env(home), capture_output=True, text=True, check=True
    ).stdout


def read_until(terminal: int, word: str) -> str:
    shown, deadline = "", time.monotonic() + 60
    while word not in shown:
        ready, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"{word!r} was not shown: {shown!r}"
        shown += os.read(terminal, 65536).decode(errors="replace")
    return shown
