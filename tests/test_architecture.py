"""What may import what. Imports are read from the source, those inside functions included."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "supervisor"
MODULES = sorted(PACKAGE.rglob("*.py"))

LAYERS = ("cli", "daemon", "web", "driver", "host", "simulation", "planning", "core", "config", "errors")
"""Top to bottom. `errors` is the lowest, though it and `config` are named in one breath."""

OWNED = {"pynvml": "host/nvml.py", "apscheduler": "host/timetable.py", "tomllib": "config/"}
"""Facility -> the one place that may import it."""

HEAVY = ("vllm", "torch", "transformers")
"""What engines are made of: their environment is another one."""


def imports(module: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            source = node.module or ""
            yield from (f"{source}.{alias.name}" for alias in node.names)


def layer(dotted: str) -> int | None:
    """Of `supervisor.X...`; None for the package itself (its version) and everything foreign."""
    parts = dotted.split(".")
    if parts[0] != "supervisor" or len(parts) < 2 or parts[1] not in LAYERS:
        return None
    return LAYERS.index(parts[1])


def named(module: Path) -> str:
    return str(module.relative_to(PACKAGE))


@pytest.mark.parametrize("module", MODULES, ids=named)
def test_imports_point_downward(module: Path) -> None:
    parts = module.relative_to(PACKAGE).with_suffix("").parts
    if parts == ("__init__",):
        assert not [name for name in imports(module) if name.startswith("supervisor.")]
        return
    assert parts[0] in LAYERS, f"{named(module)} is in no layer"
    own = LAYERS.index(parts[0])
    upward = [name for name in imports(module) if (found := layer(name)) is not None and found < own]
    assert upward == []


@pytest.mark.parametrize("facility", OWNED)
def test_one_facility_one_place(facility: str) -> None:
    users = {
        named(module) for module in MODULES if facility in {name.split(".")[0] for name in imports(module)}
    }
    assert users
    assert {user for user in users if not user.startswith(OWNED[facility])} == set()


@pytest.mark.parametrize("module", MODULES, ids=named)
def test_nothing_of_an_engine_is_imported(module: Path) -> None:
    assert {name.split(".")[0] for name in imports(module)}.isdisjoint(HEAVY)


@pytest.mark.parametrize("module", [m for m in MODULES if named(m).startswith("core/")], ids=named)
def test_the_core_knows_no_clock_no_network_no_tasks(module: Path) -> None:
    forbidden = {"asyncio", "aiohttp", "os", "time", "socket", "subprocess", "threading", "psutil"}
    assert {name.split(".")[0] for name in imports(module)}.isdisjoint(forbidden)


def test_the_whole_daemon_loads_nothing_of_an_engine() -> None:
    """Through everything they import in turn."""
    names = [".".join(module.relative_to(ROOT).with_suffix("").parts) for module in MODULES]
    program = "import importlib, sys\n" + "\n".join(f"importlib.import_module({name!r})" for name in names)
    program += f"\nprint(sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


UNSERVED = ("rich", "tomli_w", "supervisor.simulation", "supervisor.cli.plan", "supervisor.cli.doctor")
"""What only other commands than `llmd serve` need: it would lie in the daemon's memory for nothing."""


def test_serving_loads_nothing_that_only_other_commands_need() -> None:
    program = "import sys, supervisor.cli, supervisor.daemon\n"
    program += f"print(sorted(set({UNSERVED!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


WALL_CLOCK = re.compile(r"\btime\.time(_ns)?\(|\bdatetime\.now\(|\bdate\.today\(")
CALENDARS = {
    "cli/doctor/rounds.py",
    "cli/foreseeing.py",
    "driver/books.py",
    "driver/reloading.py",
    "host/activity.py",
    "host/chronicle.py",
    "host/clock.py",
    "host/logbook.py",
    "host/logstream.py",
    "host/modekeeper.py",
    "web/admin.py",
    "web/holding.py",
    "web/ui/dashboard.py",
    "web/ui/stream.py",
}
"""Who may read the wall clock: calendars, logs, and moments that are told to people. All timers are monotonic, so that
a clock that jumps by an hour moves none of them."""


def test_the_wall_clock_is_for_calendars_and_logs_alone() -> None:
    readers = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if WALL_CLOCK.search(path.read_text())
    }
    assert readers == CALENDARS
