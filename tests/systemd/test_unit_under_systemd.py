"""packaging/README.md step by step under a real systemd: what it installs starts, and its engines stay."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.daemon import until
from tests.standin.launch import STANDIN
from tests.standin.nvml import FakeGpus, build
from tests.systemd.machine import CHECKOUT, Machine, obstacle

ASK = "/opt/llmd/bin/llmd"
GROUPS = "/sys/fs/cgroup/system.slice/llmd.service"
DROP_IN = "/etc/systemd/system/llmd.service.d"
LOG = "/run/daemon.log"
ADMIN = "curl --silent --fail --unix-socket /run/llmd/llmd.sock http://llmd"
"""What the commands ask, at a tenth of their price."""
_WITHOUT_MODES = "sed -i '/^.modes/,$d' /etc/llmd/llmd.toml"


def steps() -> str:
    """The commands of the manual, but for those that fetch vLLM and llmd; without modes, which go by the hour."""
    manual = (CHECKOUT / "packaging" / "README.md").read_text().partition("\n## ")[0]
    commands = [line.strip() for line in manual.splitlines() if line.startswith("       ")]
    here = [line for line in commands if "-m venv" not in line and "bin/pip" not in line]
    configured = next(number for number, line in enumerate(here) if line.startswith("sed "))
    return "\n".join([*here[: configured + 1], _WITHOUT_MODES, *here[configured + 1 :]])


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    if reason := obstacle():
        pytest.skip(reason)
    machine = Machine()
    try:
        yield machine.wait_until_up()
    finally:
        machine.close()


@pytest.fixture(scope="module")
def chat(machine: Machine) -> dict[str, Any]:
    """llmd installed as the manual says, on two stand-in cards; what the manual's chat answered."""
    gpus = FakeGpus(machine.home / "nvml")
    for directory in (gpus.directory, gpus.directory / "held.d"):
        directory.chmod(0o777)
    environ = [f"{name}={value}" for name, value in gpus.env(build(machine.home)).items()]
    stand_in(machine, environ)
    said = machine.do(f"export {' '.join(environ)}; set -eu\n{steps()}")
    answer: dict[str, Any] = json.loads(said.splitlines()[-1])
    return answer


def stand_in(machine: Machine, environ: list[str]) -> None:
    """Put what the tests run on where the manual installs llmd and vLLM; let the unit see the stand-in cards."""
    vllm, conf = machine.home / "vllm", machine.home / "test.conf"
    vllm.write_text(f'#!/bin/sh\nexec {" ".join(STANDIN)} "$@"\n')
    vllm.chmod(0o755)
    conf.write_text(f"[Service]\nEnvironment={' '.join(environ)}\nStandardError=append:{LOG}\n")
    machine.do(f"ln -s {sys.prefix} /opt/llmd; install -D {vllm} /opt/vllm/bin/vllm")
    machine.do(f"install -D -m 644 {conf} {DROP_IN}/test.conf")


@pytest.fixture
def engine(machine: Machine, chat: dict[str, Any]) -> dict[str, Any]:
    """llama_0 as it is served by the running unit."""
    machine.do(f"systemctl start llmd; {ADMIN}/profiles/llama_0/start --request POST")
    return served(machine)


def served(machine: Machine) -> dict[str, Any]:
    return next(engine for engine in status(machine)["engines"] if engine["profile"] == "llama_0")


def status(machine: Machine) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(machine.do(f"{ADMIN}/status"))
    return answer


def unit(machine: Machine, name: str) -> str:
    return machine.do(f"systemctl show --property {name} --value llmd").strip()


def assert_kept(machine: Machine, before: dict[str, Any], daemon: str) -> None:
    """Another daemon than `daemon` serves, with the engine that was there before."""

    def ready() -> bool:
        new = unit(machine, "MainPID") not in ("0", daemon) and unit(machine, "ActiveState") == "active"
        return new and served(machine)["state"] == "ready"

    until(ready, 30, lambda: machine.run(f"systemctl status llmd; cat {LOG}").stdout)
    after = served(machine)
    assert (after["pid"], after["incarnation"]) == (before["pid"], before["incarnation"])
    assert after["starts"] == 0


def test_the_manual_leads_to_a_chat(machine: Machine, chat: dict[str, Any]) -> None:
    assert chat["choices"][0]["message"]["content"]
    assert unit(machine, "ActiveState") == "active"
    assert unit(machine, "UnitFileState") == "enabled"


def test_systemd_hears_from_the_daemon(machine: Machine, engine: dict[str, Any]) -> None:
    assert unit(machine, "Type") == "notify"
    assert unit(machine, "WatchdogUSec") == "30s"
    patted = unit(machine, "WatchdogTimestampMonotonic")
    until(lambda: unit(machine, "WatchdogTimestampMonotonic") != patted, 10)
    until(lambda: unit(machine, "StatusText") == "engines: 1 ready; requests in flight: 0", 10)


def test_nothing_runs_as_root_and_each_engine_has_a_group(machine: Machine, engine: dict[str, Any]) -> None:
    daemon = unit(machine, "MainPID")
    members = machine.do(f"cat {GROUPS}/llmd-{engine['incarnation']}/cgroup.procs").split()
    assert str(engine["pid"]) in members
    assert daemon not in members
    assert set(machine.do(f"ps -o user= -p {','.join([daemon, *members])}").split()) == {"llmd"}


def test_commands_are_for_members_of_the_group(machine: Machine, engine: dict[str, Any]) -> None:
    machine.do("useradd ann; useradd bob; usermod -aG llmd ann")
    assert machine.run(f"runuser -u ann {ASK} status").returncode == 0
    assert "you may not open" in machine.run(f"runuser -u bob {ASK} status").stderr


def test_a_restart_keeps_the_engine(machine: Machine, engine: dict[str, Any]) -> None:
    daemon = unit(machine, "MainPID")
    machine.do("systemctl restart llmd")
    assert_kept(machine, engine, daemon)


def test_a_stop_leaves_the_engine_to_the_next_start(machine: Machine, engine: dict[str, Any]) -> None:
    daemon = unit(machine, "MainPID")
    machine.do("systemctl stop llmd")
    assert unit(machine, "Result") == "success"
    machine.do(f"kill -0 {engine['pid']}; systemctl start llmd")
    assert_kept(machine, engine, daemon)


def test_a_killed_daemon_is_started_again(machine: Machine, engine: dict[str, Any]) -> None:
    daemon = unit(machine, "MainPID")
    machine.do(f"kill -KILL {daemon}")
    assert_kept(machine, engine, daemon)


def test_a_stalled_daemon_is_replaced_and_says_where_it_stood(
    machine: Machine, engine: dict[str, Any]
) -> None:
    machine.do(f"printf '[Service]\\nWatchdogSec=3\\n' >{DROP_IN}/short.conf")
    machine.do("systemctl daemon-reload; systemctl restart llmd")
    daemon = unit(machine, "MainPID")
    machine.do(f"kill -STOP {daemon}")
    assert_kept(machine, engine, daemon)
    assert "Fatal Python error: Aborted" in machine.do(f"cat {LOG}")
    machine.do(f"rm {DROP_IN}/short.conf; systemctl daemon-reload; systemctl restart llmd")


def test_a_broken_configuration_harms_no_engine(machine: Machine, engine: dict[str, Any]) -> None:
    daemon = unit(machine, "MainPID")
    machine.do("cp /etc/llmd/llmd.toml /etc/llmd/good; echo '[sever]' >>/etc/llmd/llmd.toml")
    assert machine.run("systemctl restart llmd").returncode == 1
    assert "unknown key sever" in machine.do(f"tail -n 1 {LOG}")
    machine.do("mv /etc/llmd/good /etc/llmd/llmd.toml")
    assert_kept(machine, engine, daemon)


def test_a_reload_changes_the_daemon_that_runs_or_fails_and_changes_nothing(
    machine: Machine, engine: dict[str, Any]
) -> None:
    daemon = unit(machine, "MainPID")
    machine.do("cp /etc/llmd/llmd.toml /etc/llmd/good; echo '[sever]' >>/etc/llmd/llmd.toml")
    assert machine.run("systemctl reload llmd").returncode == 1
    machine.do("mv /etc/llmd/good /etc/llmd/llmd.toml")
    machine.do("sed -i 's/^# max_wait = .*/max_wait = 77/' /etc/llmd/llmd.toml; systemctl reload llmd")
    until(lambda: "max_wait 4m50s -> 1m17s" in machine.do(f"cat {LOG}"), 10)
    assert unit(machine, "MainPID") == daemon
    machine.do(f"kill -0 {engine['pid']}")


def test_an_engine_stopped_by_name_leaves_no_group(machine: Machine, engine: dict[str, Any]) -> None:
    machine.do(f"{ASK} stop llama_0")
    assert machine.run(f"test -e {GROUPS}/llmd-{engine['incarnation']}").returncode == 1


def test_stop_and_kill_end_everything(machine: Machine, engine: dict[str, Any]) -> None:
    machine.do("systemctl stop llmd; systemctl kill llmd")
    until(lambda: machine.run(f"kill -0 {engine['pid']}").returncode == 1, 10)


def test_the_tailnet_is_waited_for_and_nothing_else_is_bound(machine: Machine, chat: dict[str, Any]) -> None:
    machine.do(
        """sed -i 's/^listen = .*/listen = ["tailscale:8000"]/' /etc/llmd/llmd.toml; systemctl restart llmd"""
    )
    waiting = status(machine)["daemon"]
    assert (waiting["listening"], waiting["waiting_for"]) == ([], ["tailscale:8000"])
    machine.do("ip link add tailscale0 type veth peer far; ip link set tailscale0 up")
    assert listeners(machine) == []
    machine.do("ip address add 100.64.0.5/32 dev tailscale0")
    until(lambda: listeners(machine) == ["100.64.0.5:8000"], 10, lambda: machine.do(f"cat {LOG}"))
    machine.do("curl --fail --silent http://100.64.0.5:8000/health")


def listeners(machine: Machine) -> list[str]:
    """Every TCP address of the machine that someone listens on."""
    return [line.split()[3] for line in machine.do("ss --tcp --listening --numeric --no-header").splitlines()]
