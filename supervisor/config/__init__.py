"""The configuration: llmd.toml and profiles/*.toml, read once, checked, then frozen. The only TOML reader.

`load` gives a Config or raises every problem at once; `warnings` tells what is allowed but likely not meant;
`locate` gives line numbers to problems found elsewhere, such as `core.fit.check_devices`.
"""

from __future__ import annotations

from supervisor.config.difference import Change, differences, kept
from supervisor.config.lines import locate
from supervisor.config.models import (
    DEFAULT_UTILIZATION,
    Config,
    EngineDefaults,
    Key,
    Memory,
    Mode,
    Peer,
    Priority,
    Profile,
    Restarts,
    Routing,
    Scheduling,
    Server,
    Task,
)
from supervisor.config.reading import admin_socket, load
from supervisor.config.warnings import warnings

__all__ = [
    "DEFAULT_UTILIZATION",
    "Change",
    "Config",
    "EngineDefaults",
    "Key",
    "Memory",
    "Mode",
    "Peer",
    "Priority",
    "Profile",
    "Restarts",
    "Routing",
    "Scheduling",
    "Server",
    "Task",
    "admin_socket",
    "differences",
    "kept",
    "load",
    "locate",
    "warnings",
]
