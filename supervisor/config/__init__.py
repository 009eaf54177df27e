"""The configuration: llmd.toml and profiles/*.toml, read once, checked, then frozen. The only TOML reader."""

from __future__ import annotations

from supervisor.config.models import (
    DEFAULT_UTILIZATION,
    Config,
    EngineDefaults,
    Key,
    Memory,
    Mode,
    Priority,
    Profile,
    Restarts,
    Routing,
    Server,
    Task,
)

__all__ = [
    "DEFAULT_UTILIZATION",
    "Config",
    "EngineDefaults",
    "Key",
    "Memory",
    "Mode",
    "Priority",
    "Profile",
    "Restarts",
    "Routing",
    "Server",
    "Task",
]
