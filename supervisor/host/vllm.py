"""Which vLLM an engine's command would run, asked of its interpreter and of nothing of ours.

Importing vLLM takes many seconds, its metadata none: so the Python that the command's script names is asked for the
version that is installed. A command that is no Python script is asked `--version`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_ASK = "import importlib.metadata as m; print(m.version('vllm'))"
_PYTHON = re.compile(r"python[\d.]*")


@dataclass(frozen=True, slots=True)
class Installed:
    """`program` is None where there is none; `version` where it could not be told, and `trouble` says why."""

    program: str | None = None
    version: str | None = None
    trouble: str | None = None


def installed(command: Sequence[str], environ: Mapping[str, str], timeout: float) -> Installed:
    """What `command`, such as ("vllm", "serve"), would run; every program asked gets `timeout` seconds at most."""
    program = shutil.which(command[0], path=environ.get("PATH"))
    if program is None:
        return Installed()
    python = program if _PYTHON.fullmatch(Path(program).name) else interpreter(Path(program))
    said, trouble = (
        _run([python, "-c", _ASK], environ, timeout) if python else (None, "it is no Python script")
    )
    if said is None and not python and command[-1] == "serve":
        said, trouble = _run([program, *command[1:-1], "--version"], environ, timeout)
    found = re.search(r"\d+\.\d+(\.\d+)?\S*", said or "")
    return Installed(
        program, found[0] if found else None, None if found else trouble or "it names no version"
    )


def interpreter(script: Path) -> str | None:
    """The Python of a script's first line; installers write `#!/bin/sh` and an `exec` where a path is too long."""
    try:
        with script.open("rb") as opened:
            head = opened.read(4096).decode(errors="replace").splitlines()
    except OSError:
        return None
    if not head or not head[0].startswith("#!"):
        return None
    words = head[0][2:].split() if "python" in head[0] else " ".join(head[1:2]).replace("'''", "").split()[1:]
    return next((word for word in words if _PYTHON.fullmatch(Path(word).name)), None)


def _run(words: Sequence[str], environ: Mapping[str, str], timeout: float) -> tuple[str | None, str | None]:
    """(what it prints, or why it does not). In a session of its own, which goes as a whole when its time is over."""
    try:
        process = subprocess.Popen(
            words,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        return None, f"{words[0]}: {error.strerror}"
    with process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            return None, f"no answer within {timeout:g} s"
    last = (err.strip().splitlines() or ["it failed"])[-1]
    return (out, None) if process.returncode == 0 else (None, last)
