"""Engines as processes: start one, take one back after a restart, find what is left of one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from supervisor.errors import EngineFailed, LlmdError
from supervisor.host import cgroup, enginelog, procfs
from supervisor.host.tree import MARK, Identity, Tree, alive

__all__ = [
    "MARK",
    "Identity",
    "Launch",
    "NotOurs",
    "SpawnFailed",
    "Tree",
    "adopt",
    "find",
    "leftovers",
    "remains",
    "spawn",
]

_JOIN = 'echo 0 >"$1/cgroup.procs" || exit 125; shift; exec "$@"'
"""Enter the group before exec: nothing the engine forks can then be outside."""


class SpawnFailed(EngineFailed):
    """The program could not be started at all; the message says why."""


class NotOurs(LlmdError):
    """A recorded process that is gone, or cannot be proven to be the one recorded."""


@dataclass(frozen=True, slots=True)
class Launch:
    incarnation: str
    """Eight random hex digits, never used twice."""
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    """The whole environment but for the mark, secrets included."""
    cwd: Path
    log: Path
    cgroup: Path | None = None


async def spawn(launch: Launch) -> Tree:
    """Start an engine in a session of its own, with its output in its log. Raises SpawnFailed."""
    starting = asyncio.ensure_future(asyncio.to_thread(_start, launch))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        # The thread cannot be called back. Nobody will know of the engine, so it must not stay.
        with contextlib.suppress(SpawnFailed), contextlib.closing(await starting) as tree:
            await tree.kill()
        raise


def adopt(identity: Identity) -> Tree:
    """Take back a tree that outlived the daemon which started it. Raises NotOurs. Reads all of /proc."""
    if identity.boot_id != procfs.boot_id():
        raise NotOurs(f"pid {identity.pid} was recorded before the last boot")
    try:
        pidfd = os.pidfd_open(identity.pid)
    except OSError as error:
        raise NotOurs(f"pid {identity.pid} is gone: {error.strerror}") from error
    reason = _mismatch(identity)
    if reason is None and not alive(pidfd):
        reason = "has exited"
    if reason is not None:
        os.close(pidfd)
        raise NotOurs(f"pid {identity.pid} {reason}")
    tree = Tree(identity, pidfd)
    tree.members()  # take hold of all of it while the leader pins the session's number
    return tree


def remains(identity: Identity) -> Tree:
    """What is left of a tree whose leader is gone, to be counted and killed; empty after another boot."""
    tree = Tree(identity, None)
    tree.members()
    return tree


def leftovers(identity: Identity) -> frozenset[int]:
    """Live processes of a tree whose leader went while no daemon was there to see it."""
    with contextlib.closing(remains(identity)) as tree:
        return tree.members()


def find(incarnation: str, group: Path | None = None) -> Identity | None:
    """The tree of an incarnation whose pid was never recorded: the daemon died right after starting it.

    Found by its mark or cgroup. The oldest process that leads a session is its leader; where there is none
    left the identity names a process that cannot be adopted, whose `remains` are the ones found.
    """
    fenced = cgroup.members(group) if group is not None else frozenset()
    found = [
        seen
        for seen in procfs.processes()
        if seen.pid in fenced or (procfs.environ(seen.pid) or {}).get(MARK) == incarnation
    ]
    if not found:
        return None
    first = min(found, key=lambda seen: (seen.pid != seen.session, seen.start_time, seen.pid))
    where = None if group is None else str(group)
    return Identity(first.session, first.start_time, procfs.boot_id(), first.session, where, incarnation)


def _start(launch: Launch) -> Tree:
    _find_program(launch)
    argv = launch.argv
    if launch.cgroup is not None:
        argv = ("/bin/sh", "-c", _JOIN, "sh", str(launch.cgroup), *argv)
    log = enginelog.open_append(launch.log)
    try:
        pid = _execute(argv, launch, log)
    except OSError as error:
        raise SpawnFailed(f"cannot start {launch.argv[0]}: {error.strerror}: {error.filename}") from error
    finally:
        os.close(log)
    # A child stays at least a zombie until it is reaped, so neither of these can miss or mistake it.
    pidfd, seen = os.pidfd_open(pid), procfs.stat(pid)
    start_time = 0 if seen is None else seen.start_time
    where = None if launch.cgroup is None else str(launch.cgroup)
    identity = Identity(pid, start_time, procfs.boot_id(), pid, where, launch.incarnation)
    return Tree(identity, pidfd, child=True)


def _execute(argv: tuple[str, ...], launch: Launch, log: int) -> int:
    child = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        cwd=launch.cwd,
        env={**launch.env, MARK: launch.incarnation},
        start_new_session=True,
    )
    child.returncode = 0  # it is waited for through its pidfd; Popen must neither wait nor warn
    return child.pid


def _find_program(launch: Launch) -> None:
    """Say here what is missing: behind the shell that joins the cgroup it would be an exit code."""
    program = launch.argv[0]
    local = str(launch.cwd / program) if "/" in program else program
    if shutil.which(local, path=launch.env.get("PATH", os.defpath)) is None:
        raise SpawnFailed(f"cannot start {program}: no such program, or not executable")


def _mismatch(identity: Identity) -> str | None:
    """What speaks against the process with this pid being the recorded one."""
    found = procfs.stat(identity.pid)
    if found is None or not found.alive:
        return "has exited"
    if found.start_time != identity.start_time:
        return "was reused: it started at another time"
    if found.session != identity.session:
        return "was reused: it is in another session"
    if identity.cgroup is not None and identity.pid not in cgroup.members(Path(identity.cgroup)):
        return "was reused: it is not in the engine's cgroup"
    environ = procfs.environ(identity.pid)
    if environ is not None and environ.get(MARK) != identity.incarnation:
        return "was reused: it does not carry the incarnation's mark"
    return None
