"""What the verdicts are about, gathered side by side: each check has a thread and a time limit, and none needs root."""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
import zoneinfo
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from supervisor.cli.base import DEFAULT_SOCKET, Place, call
from supervisor.cli.doctor import cards, doors, ground
from supervisor.cli.doctor.finding import Finding, fail, warn
from supervisor.cli.doctor.ground import Access
from supervisor.cli.examine import examine
from supervisor.cli.survey import read_devices
from supervisor.config import Config, Profile
from supervisor.core.devices import Survey
from supervisor.core.fit import host_reading, needs
from supervisor.errors import ConfigError, LlmdError, OperatorError, Problem
from supervisor.host import cgroup, clock, ports, tailnet
from supervisor.host.disk import free_for, standing
from supervisor.host.nvml import read_health
from supervisor.host.vllm import installed
from supervisor.host.weights import locate, read_checkpoint, whereabouts
from supervisor.planning.checkpoint import weights
from supervisor.planning.plan import devices_of

LIMIT = 20.0
"""Seconds that a check may take."""

VLLM_LIMIT = 15.0

LOGS = 16 << 20
"""Bytes of the daemon's own log."""

_SECRETS = re.compile(r"TOKEN(?![A-Z])|KEY|SECRET|PASSWORD")
"""Of a variable's name: its value in a file should not be read by everybody; not TOKENIZERS_PARALLELISM."""

Json = dict[str, Any]
Check = Callable[[], Iterable[Finding]]


def look(place: Place) -> list[Finding]:
    """Everything that is found, in the order of the checks. Raises nothing, and ends in time."""
    config, problems = _config(place)
    status, trouble = _status(place, config)
    survey = asyncio.run(read_devices(config=config))
    told = status["daemon"] if status else None
    checks: dict[str, Check] = {
        "daemon": lambda: doors.daemon(status, trouble),
        "config": lambda: _configuration(config, problems, survey, told),
        "driver": lambda: [cards.driver(survey, _needs_gpus(config))],
        "GPUs": lambda: _cards(survey, status),
        "vllm": lambda: _vllm(config),
        "disk": lambda: _disks(config),
        "memory": lambda: _memory(config, survey),
        "listen": lambda: _doors(config, told),
        "clock": lambda: _clock(config),
        "rights": lambda: _rights(config),
        "cgroups": lambda: _groups(told),
    }
    return side_by_side(checks, LIMIT)


def side_by_side(checks: Mapping[str, Check], limit: float) -> list[Finding]:
    """What each check finds, in their order. One that hangs is told of, and dies with the process."""
    found: dict[str, list[Finding]] = {}

    def run(name: str, check: Check) -> None:
        try:
            found[name] = list(check())
        except (OSError, LlmdError) as error:
            found[name] = [warn(name, f"cannot be looked at: {error}", "look again as the user of llmd")]

    threads = {
        name: threading.Thread(target=run, args=(name, check), daemon=True) for name, check in checks.items()
    }
    for thread in threads.values():
        thread.start()
    end = time.monotonic() + limit
    for thread in threads.values():
        thread.join(max(0.0, end - time.monotonic()))
    return [finding for name in checks for finding in found.get(name, [_silent(name)])]


def _silent(name: str) -> Finding:
    return fail(name, "this check gave no answer in time", "see what hangs: a dead network disk, a driver")


def _config(place: Place) -> tuple[Config, list[Problem]]:
    """With its problems, what can be looked at is so with the defaults."""
    try:
        return place.load(), []
    except ConfigError as error:
        file = error.problems[0].file if error.problems else Path("llmd.toml")
        return Config(path=file), list(error.problems)


def _status(place: Place, config: Config) -> tuple[Json | None, LlmdError | None]:
    socket = place.socket or config.server.admin_socket or DEFAULT_SOCKET
    try:
        return call(Place(None, socket), lambda client: client.status()), None
    except OperatorError as error:
        return None, error


def _configuration(
    config: Config, problems: list[Problem], survey: Survey, told: Json | None
) -> Iterator[Finding]:
    found, warnings = (problems, []) if problems else examine(config, survey)
    same = told is not None and told.get("config") == str(config.path)
    heard = ground.heard(warnings, told.get("warnings", ()) if told and same else None)
    return ground.configuration(config.path, found, heard)


def _needs_gpus(config: Config) -> bool:
    return any(profile.device == "gpu" for profile in config.profiles.values())


def _cards(survey: Survey, status: Json | None) -> Iterator[Finding]:
    health = () if survey.trouble else read_health()
    return cards.cards(survey, health, set(_engines(status)))


def _engines(status: Json | None) -> Iterator[int]:
    """Pids of the daemon's engines and of all below them: the one on the card is seldom the first."""
    for engine in (status or {}).get("engines", []):
        if pid := engine.get("pid"):
            yield pid
            try:
                yield from (child.pid for child in psutil.Process(pid).children(recursive=True))
            except psutil.Error:  # gone since, or not ours to see
                continue


def _vllm(config: Config) -> Iterator[Finding]:
    named = [profile.command or config.engine.command for profile in config.profiles.values()]
    environ = {**os.environ, **config.engine.env}
    for command in dict.fromkeys(named or [config.engine.command]):
        yield ground.vllm(command, installed(command, environ, VLLM_LIMIT))


def _disks(config: Config) -> Iterator[Finding]:
    wanted = config.engine.log_size * len(config.profiles) + config.activity.max_size + LOGS
    yield ground.state_disk(config.server.state_dir, free_for(config.server.state_dir), wanted)
    missing: dict[Path, list[str]] = {}
    for name, profile in config.profiles.items():
        if not profile.weights.startswith("/"):
            here = locate(profile, config, os.environ) is not None
            missing.setdefault(whereabouts(profile, config, os.environ), []).extend([] if here else [name])
    for path, names in missing.items():
        yield ground.weights_disk(path, free_for(path), names)


def _memory(config: Config, survey: Survey) -> Iterator[Finding]:
    host = host_reading(survey)
    if host is not None:
        asleep = {name: profile for name, profile in config.profiles.items() if profile.sleep}
        yield ground.sleepers(host, {name: _kept(asleep[name], config, survey) for name in asleep})


def _kept(profile: Profile, config: Config, survey: Survey) -> int:
    """Bytes of its weights on all its cards; what it asks for where they are not known."""
    directory = locate(profile, config, os.environ)
    if directory is not None:
        return weights(profile, read_checkpoint(directory)) * max(1, len(profile.gpus))
    found = devices_of(profile, survey)
    return 0 if isinstance(found, str) else sum(needs(profile, found).values())


def _doors(config: Config, told: Json | None) -> Iterator[Finding]:
    for listen in config.server.listen:
        address = tailnet.resolve(listen)
        door = ports.Door() if address is None else ports.knock(*address)
        yield doors.port(listen, address, door, told)
    yield doors.tailnet(tailnet.tailnet_address(), config.server.listen)


def _clock(config: Config) -> Iterator[Finding]:
    yield ground.clock(clock.is_synchronised())
    here = datetime.now().astimezone().tzname() or "?"
    calendars = [name for name, mode in config.modes.items() if mode.timezone is None]
    yield ground.zone(here, bool(zoneinfo.available_timezones()), calendars)


def _rights(config: Config) -> Iterator[Finding]:
    state = config.server.state_dir
    above = standing(state)
    yield ground.state(state, _mode(state), os.access(above, os.W_OK), above)
    yield from filter(None, map(ground.access, _files(config)))


def _files(config: Config) -> Iterator[Access]:
    holders = {config.path: config.engine.env}
    holders |= {config.files[name]: profile.env for name, profile in config.profiles.items()}
    for path, env in holders.items():
        yield Access(path, _mode(path), any(map(_SECRETS.search, env)))
    secret = [config.path.parent / "keys.env", *(key.file for key in config.keys.values())]
    secret += [peer.key_file for peer in config.peers.values()]
    for file in filter(None, secret):
        yield Access(file, _mode(file), secret=True)
    yield Access(config.server.admin_socket, _mode(config.server.admin_socket))


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode & 0o777
    except OSError:
        return None


def _groups(told: Json | None) -> Iterator[Finding]:
    pid = told.get("pid") if told else None
    yield ground.groups(cgroup.is_mounted(), cgroup.is_delegated_to(pid) if pid else None)
