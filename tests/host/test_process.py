"""Process trees made of real processes: nothing here is faked but the boot id."""

# ruff: noqa: ASYNC240 - a test may wait for its disk
from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from supervisor.core.devices import Survey
from supervisor.host import cgroup, procfs
from supervisor.host.process import (
    MARK,
    Identity,
    Launch,
    NotOurs,
    SpawnFailed,
    Tree,
    adopt,
    find,
    leftovers,
    remains,
    spawn,
)
from supervisor.host.usage import measure
from tests.standin.launch import until

SLEEP = "import time; time.sleep(600)"

ESCAPE = """
import os, time
for _ in range(5):
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        break
time.sleep(600)
"""
"""Children that leave the session and whose parents die: a leader and five escaped grandchildren."""

STORM = """
import os, signal, time
def fork(*_):
    for _ in range(30):
        if os.fork() == 0:
            os.setsid()
            if os.fork():
                os._exit(0)
            time.sleep(600)
signal.signal(signal.SIGTERM, fork)
print("armed", flush=True)
while True:
    time.sleep(1)
"""

CHILDREN = """
import subprocess, sys, time
for _ in range(2):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
time.sleep(600)
"""


@pytest.fixture
def place() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="llmd-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


class Nursery:
    """Starts trees and leaves nothing of them behind, whatever the test did."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.trees: list[Tree] = []

    def launch(self, code: str, group: Path | None = None) -> Launch:
        argv = (sys.executable, "-c", code)
        incarnation = secrets.token_hex(4) if group is None else group.name.removeprefix("llmd-")
        return Launch(incarnation, argv, dict(os.environ), self.place, self.place / "log", group)

    async def start(self, code: str, group: Path | None = None) -> Tree:
        tree = await spawn(self.launch(code, group))
        self.trees.append(tree)
        return tree


@pytest.fixture
async def nursery(place: Path) -> AsyncIterator[Nursery]:
    made = Nursery(place)
    yield made
    for tree in made.trees:
        assert await tree.kill() == frozenset()
        tree.close()


def living(pids: frozenset[int]) -> set[int]:
    return {pid for pid in pids if (found := procfs.stat(pid)) is not None and found.alive}


async def grown(tree: Tree, count: int) -> frozenset[int]:
    await until(lambda: len(tree.members()) == count)
    return tree.members()


def sessions(tree: Tree) -> set[int]:
    return {found.session for pid in tree.members() if (found := procfs.stat(pid))}


async def end_leader(tree: Tree) -> None:
    os.kill(tree.identity.pid, signal.SIGKILL)
    await tree.exited()


async def test_a_child_has_its_own_session_log_and_mark(nursery: Nursery) -> None:
    code = (
        "import os; print(os.getsid(0) == os.getpid(), os.environ['LLMD_INCARNATION']); os.write(2, b'err')"
    )
    launch = nursery.launch(code)
    tree = await spawn(launch)
    nursery.trees.append(tree)
    assert await tree.exited() == 0
    assert launch.log.read_text() == f"True {launch.incarnation}\nerr"
    assert launch.log.stat().st_mode & 0o777 == 0o640


async def test_the_child_inherits_no_descriptor(nursery: Nursery) -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    code = "import os; print(sorted(os.listdir('/proc/self/fd')))"
    tree = await nursery.start(code)
    await tree.exited()
    os.close(reader)
    os.close(writer)
    # One more is that of the listing itself.
    assert (nursery.place / "log").read_text() == "['0', '1', '2', '3']\n"


async def test_exit_code_and_signal(nursery: Nursery) -> None:
    assert await (await nursery.start("raise SystemExit(3)")).exited() == 3
    tree = await nursery.start(SLEEP)
    os.kill(tree.identity.pid, signal.SIGTERM)
    assert await tree.exited() == -signal.SIGTERM
    assert not tree.leader_alive
    tree.terminate()  # gone: nothing to signal, nothing to raise


async def test_several_may_wait_and_one_may_give_up(nursery: Nursery) -> None:
    tree = await nursery.start(SLEEP)
    first, second = asyncio.create_task(tree.exited()), asyncio.create_task(tree.exited())
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    tree.terminate()
    assert await asyncio.wait_for(second, 5) == -signal.SIGTERM
    assert await tree.exited() == -signal.SIGTERM


async def test_what_cannot_be_started_says_why(nursery: Nursery) -> None:
    missing = replace(nursery.launch(SLEEP), argv=("no-such-vllm", "serve"))
    with pytest.raises(SpawnFailed, match="cannot start no-such-vllm: no such program"):
        await spawn(missing)
    nowhere = replace(nursery.launch(SLEEP), cwd=Path("/nowhere"))
    with pytest.raises(SpawnFailed, match=r"No such file or directory: .*/nowhere"):
        await spawn(nowhere)
    script = nursery.place / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    with pytest.raises(SpawnFailed, match="No such file or directory"):
        await spawn(replace(nursery.launch(SLEEP), argv=(str(script),)))


async def test_a_cancelled_spawn_leaves_nothing(nursery: Nursery) -> None:
    launch = nursery.launch(SLEEP)
    spawning = asyncio.create_task(spawn(launch))
    await asyncio.sleep(0)  # its thread is off, and has not been heard of
    spawning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await spawning
    assert launch.log.exists()
    assert find(launch.incarnation) is None


async def test_secrets_are_not_in_the_launch_as_printed(nursery: Nursery) -> None:
    launch = replace(nursery.launch(SLEEP), env={"VLLM_API_KEY": "canary"})
    assert "canary" not in repr(launch)


@pytest.mark.parametrize("fenced", [False, True], ids=["bare", "cgroup"])
async def test_escaped_processes_are_members_and_are_killed(
    nursery: Nursery, fenced: bool, request: pytest.FixtureRequest
) -> None:
    tree = await nursery.start(ESCAPE, request.getfixturevalue("group") if fenced else None)
    await until(lambda: len(sessions(tree)) == 6)
    members = await grown(tree, 6)
    began = time.monotonic()
    assert await tree.kill() == frozenset()
    assert living(members) == set()
    assert time.monotonic() - began < 2


async def test_an_escape_without_the_mark_is_known_by_its_parent(nursery: Nursery) -> None:
    """Environment cleared, own session, parent dead: it is known because it was held before."""
    code = """
import os, subprocess, sys, time
middle = "import os, subprocess, sys, time; os.setsid(); subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True, env={}); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", middle], env={})
time.sleep(600)
"""
    tree = await nursery.start(code)
    members = await grown(tree, 3)
    middle = next(s.pid for pid in members if (s := procfs.stat(pid)) and s.parent == tree.identity.pid)
    os.kill(middle, signal.SIGKILL)
    await until(lambda: living(frozenset({middle})) == set())
    await end_leader(tree)
    assert tree.members() == members - {middle, tree.identity.pid}
    assert await tree.kill() == frozenset()
    assert living(members) == set()


async def test_what_was_read_of_processes_serves_all_trees(nursery: Nursery, monkeypatch: pytest.MonkeyPatch):
    code = "import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\ntime.sleep(600)"
    one, other = await nursery.start(code), await nursery.start(code)
    members = [await grown(tree, 2) for tree in (one, other)]
    read, seen = [], procfs.processes
    monkeypatch.setattr(procfs, "processes", lambda: read.append(1) or seen())
    measured, pids = measure({"one": one, "other": other}, Survey())
    assert len(read) == 1
    assert pids == members[0] | members[1]
    assert measured.keys() == {"one", "other"}


async def test_an_old_reading_of_processes_makes_nobody_ours(nursery: Nursery):
    tree, other = await nursery.start(SLEEP), await nursery.start(SLEEP)
    found = procfs.stat(other.identity.pid)
    assert found is not None
    stale = replace(found, parent=tree.identity.pid)
    assert tree.members([stale]) == {tree.identity.pid}


async def test_term_ignored_is_killed(nursery: Nursery) -> None:
    code = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True)\n{SLEEP}"
    tree = await nursery.start(code)
    await until(lambda: (nursery.place / "log").read_text() == "deaf\n")
    tree.terminate()
    assert tree.leader_alive
    began = time.monotonic()
    assert await tree.kill() == frozenset()
    assert await tree.exited() == -signal.SIGKILL
    assert time.monotonic() - began < 0.5


@pytest.mark.parametrize("fenced", [False, True], ids=["bare", "cgroup"])
async def test_fork_storm_during_the_kill(
    nursery: Nursery, fenced: bool, request: pytest.FixtureRequest
) -> None:
    tree = await nursery.start(STORM, request.getfixturevalue("group") if fenced else None)
    await until(lambda: "armed" in (nursery.place / "log").read_text())
    tree.terminate()
    await until(lambda: len(tree.members()) > 3)
    assert await tree.kill() == frozenset()
    assert leftovers(tree.identity) == frozenset()


async def test_leader_killed_while_children_live(nursery: Nursery) -> None:
    tree = await nursery.start(CHILDREN)
    children = await grown(tree, 3) - {tree.identity.pid}
    await end_leader(tree)
    assert not tree.leader_alive
    assert tree.members() == children == leftovers(tree.identity)
    began = time.monotonic()
    assert await tree.kill() == frozenset()
    assert time.monotonic() - began < 2
    assert living(children) == set()


async def test_a_group_is_entered_before_exec_and_gone_after_the_kill(nursery: Nursery, group: Path) -> None:
    tree = await nursery.start(CHILDREN, group)
    members = await grown(tree, 3)
    assert cgroup.members(group) == members
    assert await tree.kill() == frozenset()
    assert not group.exists()


async def test_a_group_that_is_not_the_incarnations_is_left_alone(nursery: Nursery, group: Path) -> None:
    inside = await nursery.start(SLEEP, group)
    tree = await nursery.start(SLEEP)
    # exec lets its caller go on a moment before the new environment can be read.
    await until(lambda: procfs.environ(tree.identity.pid) is not None)
    with contextlib.closing(remains(replace(tree.identity, cgroup=str(group)))) as wrong:
        assert wrong.members() == {tree.identity.pid}
        assert await wrong.kill() == frozenset()
    assert inside.leader_alive
    assert await inside.kill() == frozenset()


async def test_unrelated_processes_are_never_members(nursery: Nursery) -> None:
    """Same program, same parent, same marker variable with another value."""
    tree = await nursery.start(SLEEP)
    other = await nursery.start(SLEEP)
    assert tree.members() == {tree.identity.pid}
    assert await tree.kill() == frozenset()
    assert other.leader_alive
    assert other.members() == {other.identity.pid}


async def test_a_tree_is_adopted_after_its_spawner_died(nursery: Nursery) -> None:
    code = f"""
import asyncio, dataclasses, json, os, pathlib, sys
from supervisor.host.process import Launch, spawn
async def main():
    tree = await spawn(Launch("{secrets.token_hex(4)}", (sys.executable, "-c", {CHILDREN!r}), dict(os.environ),
        pathlib.Path("/tmp"), pathlib.Path({str(nursery.place / "log")!r})))
    print(json.dumps(dataclasses.asdict(tree.identity)), flush=True)
    os.kill(os.getpid(), 9)
asyncio.run(main())
"""
    spawner = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=subprocess.PIPE)
    output, _ = await spawner.communicate()
    assert spawner.returncode == -signal.SIGKILL
    identity = Identity(**json.loads(output))
    tree = adopt(identity)
    nursery.trees.append(tree)
    assert find(identity.incarnation) == identity
    children = await grown(tree, 3) - {identity.pid}
    waiting = asyncio.create_task(tree.exited())
    os.kill(identity.pid, signal.SIGKILL)
    assert await asyncio.wait_for(waiting, 5) is None
    assert tree.members() == children
    assert await tree.kill() == frozenset()
    assert living(children) == set()


async def test_adoption_wants_every_mark_to_match(nursery: Nursery) -> None:
    tree = await nursery.start(SLEEP)
    identity = tree.identity
    adopt(identity).close()
    for other, reason in (
        (replace(identity, boot_id="another"), "before the last boot"),
        (replace(identity, start_time=identity.start_time - 1), "another time"),
        (replace(identity, session=1), "another session"),
        (replace(identity, cgroup="/nowhere"), "not in the engine's cgroup"),
        (replace(identity, incarnation="00000000"), "incarnation's mark"),
    ):
        with pytest.raises(NotOurs, match=reason):
            adopt(other)
    assert tree.leader_alive
    await end_leader(tree)
    with pytest.raises(NotOurs, match="gone"):
        adopt(identity)


async def test_a_zombie_is_not_adopted(nursery: Nursery) -> None:
    tree = await nursery.start("pass")
    await until(lambda: not tree.leader_alive)
    with pytest.raises(NotOurs, match="has exited"):
        adopt(tree.identity)


async def test_after_another_boot_nothing_is_left(nursery: Nursery) -> None:
    tree = await nursery.start(CHILDREN)
    await grown(tree, 3)
    await end_leader(tree)
    identity = replace(tree.identity, boot_id="another")
    assert leftovers(identity) == frozenset()
    with contextlib.closing(remains(identity)) as ghost:
        assert await ghost.kill() == frozenset()
    assert len(tree.members()) == 2


async def test_what_was_left_while_nobody_watched_is_killed(nursery: Nursery) -> None:
    tree = await nursery.start(CHILDREN)
    children = await grown(tree, 3) - {tree.identity.pid}
    await end_leader(tree)
    with contextlib.closing(remains(tree.identity)) as rest:
        assert await rest.exited() is None
        assert rest.members() == children
        assert await rest.kill() == frozenset()
    assert living(children) == set()


async def test_an_engine_whose_pid_was_never_written_down_is_found(nursery: Nursery) -> None:
    tree = await nursery.start(CHILDREN)
    members = await grown(tree, 3)
    assert find(tree.identity.incarnation) == tree.identity
    await end_leader(tree)
    left = find(tree.identity.incarnation)
    assert left is not None
    with pytest.raises(NotOurs):
        adopt(left)
    assert leftovers(left) == members - {tree.identity.pid}
    assert find("00000000") is None


async def test_a_reused_pid_is_never_signalled(nursery: Nursery) -> None:
    """The number comes back as a session leader, even in the same clock tick: still not ours."""
    tree = await nursery.start("pass")
    identity = tree.identity
    await tree.exited()
    impostor = _process_with_pid(identity.pid)
    try:
        assert procfs.stat(identity.pid) is not None
        assert tree.members() == frozenset() == leftovers(identity)
        tree.terminate()
        assert await tree.kill() == frozenset()
        with pytest.raises(NotOurs, match="reused"):
            adopt(identity)
        born = procfs.stat(identity.pid)
        assert born is not None
        # As if the ticks had been the same.
        collided = replace(identity, start_time=born.start_time)
        with pytest.raises(NotOurs, match="mark"):
            adopt(collided)
        assert leftovers(collided) == frozenset()
        with contextlib.closing(remains(collided)) as ghost:
            assert await ghost.kill(0.1) == frozenset()
        assert impostor.poll() is None
    finally:
        impostor.kill()
        impostor.wait()


def _process_with_pid(wanted: int) -> subprocess.Popen[bytes]:
    last = Path("/proc/sys/kernel/ns_last_pid")
    environ = {name: value for name, value in os.environ.items() if name != MARK}
    for _ in range(50):
        try:
            last.write_text(str(wanted - 1))
        except OSError:
            pytest.skip("choosing the next pid takes root in this pid namespace")
        made = subprocess.Popen(["sleep", "600"], start_new_session=True, env=environ)
        if made.pid == wanted:
            return made
        made.kill()
        made.wait()
    pytest.skip(f"pid {wanted} did not come back in 50 tries: other processes were faster")
