"""A process tree: who belongs to it, when its leader exits, and how all of it ends.

No signal leaves this module but through a pidfd, and no pidfd is used before what it names has been proven
ours *after* it was opened: process ids are reused, even with the same start time, a pidfd never is.

What proves a process ours: it sits in the tree's cgroup; its parent is held; its session is the leader's (as
long as somebody held keeps that number from being reused) or was founded by a process that is held; or its
environment carries the incarnation's mark. Whoever is proven once is held from then on and stays ours when
its parent dies, it leaves the session or it writes over its environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from supervisor.host import cgroup, procfs
from supervisor.host.procfs import Stat
from supervisor.host.sharedmemory import SharedMemory

MARK = "LLMD_INCARNATION"
"""The variable in every engine's environment that names its incarnation."""

_ROUNDS = 16
"""Scans spent on stopping a tree that forks before it is struck as it stands."""


@dataclass(frozen=True, slots=True)
class Identity:
    """All that tells one process tree from any other, on this boot or another."""

    pid: int
    start_time: int
    """Clock ticks since boot, field 22 of /proc/PID/stat."""
    boot_id: str
    session: int
    cgroup: str | None
    """The directory of its cgroup."""
    incarnation: str


class Tree:
    """One engine's process tree, its leader and every member held by pidfd. Thread-safe; close after use."""

    def __init__(self, identity: Identity, leader: int | None, *, child: bool = False) -> None:
        self.identity = identity
        self._this_boot = identity.boot_id == procfs.boot_id()
        self._group = _own_group(identity) if self._this_boot else None
        self._leader = leader
        self._unreaped = child
        self._code: int | None = None
        self._held: dict[int, int] = {}
        self._missed = False
        self._memory = SharedMemory()
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        state = "alive" if self.leader_alive else "gone"
        return (
            f"<Tree {self.identity.incarnation} leader {self.identity.pid} {state}, {len(self._held)} held>"
        )

    @property
    def leader_alive(self) -> bool:
        return self._leader is not None and alive(self._leader)

    def members(self, seen: Iterable[Stat] | None = None) -> frozenset[int]:
        """Live processes proven ours. Reads all of /proc: milliseconds, so call it in a thread. `seen`: what somebody
        has just read there."""
        with self._lock:
            self._survey(procfs.processes() if seen is None else seen)
            live = self._live()
            # Again and again: when the tree is to be killed, whoever mapped a file may be dead already.
            self._memory.note(live)
            return live

    def terminate(self) -> None:
        """SIGTERM to the leader; nothing where it is gone."""
        if self._leader is not None:
            _send(self._leader, signal.SIGTERM)

    async def exited(self) -> int | None:
        """Return when the leader has exited: its code (-N: signal N) if it was our child, None if adopted."""
        if self._leader is None:
            return None
        await _readable(self._leader)
        if self._unreaped:
            # Until it is reaped the session's number cannot be reused: the moment to take hold of the rest.
            await asyncio.to_thread(self.members)
            self._reap()
        return self._code

    async def kill(self, deadline: float = 5.0) -> frozenset[int]:
        """SIGKILL the tree until nobody is left; remove its cgroup and the shared memory it leaves behind.

        Returns the pids that are still there after `deadline` seconds: processes stuck in a driver.
        """
        return await asyncio.to_thread(self._kill, time.monotonic() + deadline)

    def close(self) -> None:
        """Let go of the tree without touching it."""
        with self._lock:
            if self._unreaped and not self.leader_alive:
                self._reap()
            for pidfd in (self._leader, *self._held.values()):
                if pidfd is not None:
                    os.close(pidfd)
            self._leader, self._unreaped = None, False
            self._held.clear()

    def _reap(self) -> None:
        with self._lock:
            if not self._unreaped or self._leader is None:
                return
            self._unreaped = False
            with contextlib.suppress(ChildProcessError):
                result = os.waitid(os.P_PIDFD, self._leader, os.WEXITED)
                if result is not None:
                    exited = result.si_code == os.CLD_EXITED
                    self._code = result.si_status if exited else -result.si_status

    def _live(self) -> frozenset[int]:
        leader = {self.identity.pid} if self.leader_alive else set()
        return frozenset(leader | {pid for pid, pidfd in self._held.items() if alive(pidfd)})

    def _survey(self, seen: Iterable[Stat]) -> None:
        """Hold everybody who can be proven ours: first by any proof, then kin of those just found."""
        self._let_go_of_dead()
        self._missed = False
        if not self._this_boot:
            return
        known = {os.getpid(), self.identity.pid} if self.leader_alive else {os.getpid()}
        strangers = [found for found in seen if found.pid not in known | self._held.keys()]
        fenced = self._fenced()
        fresh = {s.pid for s in strangers if s.pid in fenced or self._is_kin(s) or self._is_marked(s)}
        proof: Callable[[Stat], bool] = self._is_ours
        while fresh:
            for pid in fresh:
                self._hold(pid, proof)
            strangers = [s for s in strangers if s.pid not in fresh]
            fresh = {s.pid for s in strangers if self._is_kin(s)}
            proof = self._is_kin

    def _hold(self, pid: int, proof: Callable[[Stat], bool]) -> None:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:  # gone, or out of descriptors: either way somebody was there and is not held
            self._missed = True
            return
        now = procfs.stat(pid)
        # Alive after the proof, so the proof was about the process that the pidfd names.
        if now is not None and now.alive and proof(now) and alive(pidfd):
            self._held[pid] = pidfd
        else:
            self._missed = True
            os.close(pidfd)

    def _let_go_of_dead(self) -> None:
        for pid in [pid for pid, pidfd in self._held.items() if not alive(pidfd)]:
            os.close(self._held.pop(pid))

    def _is_ours(self, found: Stat) -> bool:
        return self._is_kin(found) or self._is_marked(found) or found.pid in self._fenced()

    def _is_kin(self, found: Stat) -> bool:
        if self._holds(found.parent) or self._holds(found.session):
            return True
        return found.session == self.identity.session and self._session_is_pinned()

    def _is_marked(self, found: Stat) -> bool:
        if found.start_time < self.identity.start_time:
            return False
        return (procfs.environ(found.pid) or {}).get(MARK) == self.identity.incarnation

    def _fenced(self) -> frozenset[int]:
        return frozenset() if self._group is None else cgroup.members(self._group)

    def _holds(self, pid: int) -> bool:
        """True while the number is that of a live member and thus nobody else's."""
        if pid == self.identity.pid and self.leader_alive:
            return True
        return pid in self._held and alive(self._held[pid])

    def _session_is_pinned(self) -> bool:
        """A session's number is not given out again while a member lives or its leader is unreaped."""
        if self.leader_alive or self._unreaped:
            return True
        seen = (procfs.stat(pid) for pid in self._held if self._holds(pid))
        return any(found is not None and found.session == self.identity.session for found in seen)

    def _kill(self, until: float) -> frozenset[int]:
        quiet, pause = 0, 0.005
        while quiet < 2 and time.monotonic() < until:
            quiet = 0 if self._strike() else quiet + 1
            time.sleep(pause)
            pause = min(2 * pause, 0.1)
        left = self.members()
        if not left:
            self._memory.sweep()
            if self._group is not None:
                cgroup.remove(self._group)
        return left

    def _strike(self) -> bool:
        """Kill all there are. False where nobody was found.

        Without a cgroup they are all stopped first: stopped processes do not fork, and a child is known by
        its parent only as long as the parent lives.
        """
        with self._lock:
            if self._group is not None:
                self._memory.note(self._fenced())
                cgroup.kill(self._group)
            stopped: set[int] = set()
            for _ in range(_ROUNDS):
                self._survey(procfs.processes())
                fresh = self._live() - stopped
                if not fresh:
                    break
                self._signal(fresh, signal.SIGSTOP)
                stopped |= fresh
            self._memory.note(stopped)
            self._signal(stopped, signal.SIGKILL)
            return bool(stopped) or self._missed

    def _signal(self, pids: set[int] | frozenset[int], number: signal.Signals) -> None:
        for pid in pids:
            pidfd = self._held.get(pid, self._leader if pid == self.identity.pid else None)
            if pidfd is not None:
                _send(pidfd, number)


def _own_group(identity: Identity) -> Path | None:
    """Only a group made for this incarnation is ever killed, whatever a record says."""
    path = None if identity.cgroup is None else Path(identity.cgroup)
    return path if path is not None and path.name == cgroup.name(identity.incarnation) else None


def alive(pidfd: int) -> bool:
    """A pidfd turns readable when the process has exited, reaped or not."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return not poll.poll(0)


def _send(pidfd: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)


async def _readable(pidfd: int) -> None:
    # A duplicate of its own: the loop keeps one reader a descriptor, and several tasks may wait.
    loop, own = asyncio.get_running_loop(), os.dup(pidfd)
    ready = asyncio.Event()
    loop.add_reader(own, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(own)
        os.close(own)
