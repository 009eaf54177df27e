"""Verdicts on what engines stand on: vLLM, disks, host memory, clock, rights. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from supervisor.cli.doctor.finding import Finding, fail, good, warn
from supervisor.core.devices import GIB, MIB, Reading, gib
from supervisor.errors import Problem
from supervisor.host.vllm import Installed

FLOOR = (0, 22, 1)
"""Of vLLM: older ones let requests past the API key (CVE-2026-48746), among other holes."""

SCANT = 256 * MIB
"""Free on the state's disk; with less, logs and records are soon lost."""

DOWNLOAD = 50 * GIB
"""Free where weights still have to be downloaded: a 72B model in 4 bits takes 39."""

_GROUP, _WORLD, _WRITE = 0o070, 0o007, 0o002


@dataclass(frozen=True, slots=True)
class Access:
    """A path as it may be opened. `mode` is None where it is not there, or may not be looked at."""

    path: Path
    mode: int | None = None
    secret: bool = False
    """Whether what it holds opens something."""


def vllm(command: Sequence[str], found: Installed) -> Finding:
    said = shlex.join(command)
    if found.program is None:
        instead = 'write its full path in llmd.toml, such as command = ["/opt/vllm/bin/vllm", "serve"]'
        return fail("vllm", f"there is no program {command[0]}", instead)
    if found.version is None:
        instead = f"see that `{said}` runs vLLM {_dotted(FLOOR)} or newer"
        return warn("vllm", f"{found.program} does not tell its version: {found.trouble}", instead)
    told = f"vLLM {found.version} ({found.program})"
    if _numbers(found.version) < FLOOR:
        instead = f"install {_dotted(FLOOR)} or newer; older ones let requests past the API key"
        return fail("vllm", told, instead)
    return good("vllm", told)


def state_disk(path: Path, free: int, wanted: int) -> Finding:
    """`wanted`: bytes that logs and records may grow to."""
    what = f"{gib(free)} free for {path}"
    if free < SCANT:
        return fail("disk", what, "make room: without it logs and records are lost")
    if free < wanted:
        return warn(
            "disk", f"{what}, logs and records may take {gib(wanted)}", "make room, or lower engine.log_size"
        )
    return good("disk", what)


def weights_disk(path: Path, free: int, missing: Sequence[str]) -> Finding:
    """`missing`: profiles whose weights are still to be downloaded to `path`."""
    what = f"{gib(free)} free for weights in {path}"
    if not missing:
        return good("weights", what)
    what += f", to be downloaded: {', '.join(missing)}"
    if free < GIB:
        return fail("weights", what, "make room, or set HF_HOME in engine.env to a larger disk")
    if free < DOWNLOAD:
        return warn("weights", what, "see that they fit, or set HF_HOME in engine.env to a larger disk")
    return good("weights", what)


def sleepers(host: Reading, needs: dict[str, int]) -> Finding:
    """`needs`: profiles that may sleep -> bytes that their weights take of host memory meanwhile (level 1)."""
    room = f"{gib(host.free)} of {gib(host.total)} free"
    if not needs:
        return good("memory", room)
    total = sum(needs.values())
    asked = f"{', '.join(needs)}, asleep: {gib(total)} of it"
    large = [name for name, size in needs.items() if size > host.total]
    if large:
        return warn(
            "memory", f"{room}; {asked}", f"{', '.join(large)} cannot sleep with its weights: leave sleep out"
        )
    if total > host.free:
        return warn(
            "memory",
            f"{room}; {asked}",
            "those that do not fit are stopped instead; add memory, or let fewer sleep",
        )
    return good("memory", f"{room}; {asked}")


def clock(synchronised: bool | None) -> Finding:
    if synchronised is None:
        return warn("clock", "whether it is right cannot be told", "see `timedatectl`")
    if not synchronised:
        return warn(
            "clock",
            "nobody keeps it right",
            "run timedatectl set-ntp true: modes, logs and keys depend on it",
        )
    return good("clock", "synchronised")


def zone(here: str, known: bool, calendars: Sequence[str]) -> Finding:
    """`here`: the host's zone. `known`: whether it has data on zones. `calendars`: modes that name no zone."""
    if not known:
        return warn("time zone", "this host has no data on time zones", "install tzdata")
    if calendars and here in {"UTC", "Etc/UTC"}:
        what = f"modes begin by UTC, the host's zone: {', '.join(calendars)}"
        return warn("time zone", what, 'write timezone = "Europe/Berlin" in them, if UTC is not meant')
    return good("time zone", here)


def access(found: Access) -> Finding | None:
    """None where there is nothing to judge."""
    if found.mode is None:
        return None
    if found.mode & _WRITE:
        return fail("rights", f"everyone may write {found.path}", f"run chmod o-w {found.path}")
    if found.secret and found.mode & _WORLD:
        return fail(
            "rights", f"everyone may read {found.path}, which holds secrets", f"run chmod o= {found.path}"
        )
    return None


def state(path: Path, mode: int | None, writable: bool, above: Path) -> Finding:
    """`above`: the nearest directory that is there. `writable`: whether this user may write that."""
    if mode is None:
        if writable:
            return good("rights", f"{path} will be made")
        return warn(
            "rights",
            f"{path} is not there, and you may not make it in {above}",
            "run it as the user of llmd, or see that systemd makes it (StateDirectory=llmd)",
        )
    if mode & (_GROUP | _WORLD):
        return warn(
            "rights", f"others may look into {path}, where engines' keys are", f"run chmod 700 {path}"
        )
    return good("rights", f"{path} is closed to others")


def groups(mounted: bool, delegated: bool | None) -> Finding:
    """`delegated`: to the daemon that runs; None where none does."""
    if not mounted:
        return warn(
            "cgroups",
            "this host has no cgroups of version 2",
            "engines are told apart by session and ancestry; nothing to do",
        )
    if delegated is False:
        return warn(
            "cgroups",
            "the daemon has no group of its own, so forks of engines may escape it",
            "run it under systemd with Delegate=yes, as packaging/systemd has it",
        )
    return good(
        "cgroups",
        "given to the daemon" if delegated else "version 2; systemd gives the daemon its own (Delegate=yes)",
    )


def heard(warnings: Sequence[Problem], told: Collection[str] | None) -> list[Problem]:
    """Those that are news here: `vllm` tells of the command, and the daemon may have variables that this shell lacks.

    `told`: the daemon's own warnings; None without one.
    """

    def is_news(warning: Problem) -> bool:
        ours = told is not None and "not set in the environment" in warning.what and str(warning) not in told
        return not ours and warning.key != ("engine", "command")

    return list(filter(is_news, warnings))


def configuration(path: Path, problems: Sequence[Problem], warnings: Sequence[Problem]) -> Iterator[Finding]:
    yield from (fail("config", _where(problem), problem.instead) for problem in problems)
    yield from (warn("config", _where(problem), problem.instead) for problem in warnings)
    if not problems and not warnings:
        yield good("config", f"{path} is good")


def _where(problem: Problem) -> str:
    return f"{problem.file}{f':{problem.line}' if problem.line else ''}: {problem.what}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", re.split(r"[^\d.]", version)[0])))


def _dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))
