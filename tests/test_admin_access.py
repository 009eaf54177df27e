"""Who reaches the admin socket of a real daemon: its mode and group, and peers under other users."""

from __future__ import annotations

import grp
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.daemon import Llmd, until

pytestmark = pytest.mark.skipif(
    os.getuid() != 0, reason="only root can give a socket away and become another user"
)

NOBODY = 65534
ASK = """
import os, socket, sys
path, primary, *others = sys.argv[1:]
os.setgroups([int(group) for group in others])
os.setgid(int(primary))
os.setuid(65534)
peer = socket.socket(socket.AF_UNIX)
try:
    peer.connect(path)
except PermissionError:
    sys.exit("the kernel said no")
peer.sendall(b"GET /status HTTP/1.1\\r\\nHost: llmd\\r\\nConnection: close\\r\\n\\r\\n")
with peer.makefile("rb") as answer:
    sys.stdout.buffer.write(answer.read())
"""


@pytest.fixture(scope="module")
def group() -> grp.struct_group:
    return next(group for group in grp.getgrall() if group.gr_gid not in (0, NOBODY))


@pytest.fixture(scope="module")
def llmd(group: grp.struct_group) -> Iterator[Llmd]:
    llmd = Llmd({}, server={"admin_group": group.gr_name})
    llmd.home.chmod(0o755)
    try:
        yield llmd.start()
    finally:
        llmd.close()


def ask(llmd: Llmd, groups: list[int]) -> subprocess.CompletedProcess[str]:
    """GET /status as nobody, in these groups, the first one primary."""
    command = [sys.executable, "-I", "-c", ASK, str(llmd.home / "admin.sock"), *map(str, groups)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_socket_is_for_owner_and_group_alone(llmd: Llmd, group: grp.struct_group) -> None:
    seen = (llmd.home / "admin.sock").stat()
    assert stat.S_IMODE(seen.st_mode) == 0o660
    assert (seen.st_uid, seen.st_gid) == (0, group.gr_gid)


def test_a_stranger_is_stopped_by_the_kernel(llmd: Llmd) -> None:
    assert ask(llmd, [NOBODY]).stderr.strip() == "the kernel said no"


def test_a_stranger_who_gets_past_the_mode_is_denied_and_logged(llmd: Llmd) -> None:
    path = llmd.home / "admin.sock"
    path.chmod(0o666)
    try:
        answer = ask(llmd, [NOBODY]).stdout
    finally:
        path.chmod(0o660)
    assert answer.startswith("HTTP/1.1 401")
    assert "may not administer" in json.loads(answer.partition("\n\n")[2])["error"]["message"]

    def denials() -> list[dict[str, Any]]:
        return [line for line in llmd.logged() if line["event"] == "admin_denied"]

    until(lambda: bool(denials()), 5, llmd.text)
    (denied,) = denials()
    assert (denied["uid"], denied["request"]) == (NOBODY, "GET /status")


@pytest.mark.parametrize("primary", [True, False])
def test_a_member_of_the_group_is_let_in(llmd: Llmd, group: grp.struct_group, primary: bool) -> None:
    groups = [group.gr_gid] if primary else [NOBODY, group.gr_gid]
    answer = ask(llmd, groups).stdout
    assert answer.startswith("HTTP/1.1 200")
    assert json.loads(answer.partition("\n\n")[2])["daemon"]["pid"] == llmd.status()["daemon"]["pid"]


def test_a_group_that_is_not_there_is_told_at_start() -> None:
    llmd = Llmd({}, server={"admin_group": "nobody-has-this-group"})
    try:
        done = llmd.run("serve")
        assert done.returncode == 1
        assert "cannot open the admin socket" in done.stderr
        assert "nobody-has-this-group" in done.stderr
    finally:
        llmd.close()
