"""What the web asks of the driver below it, and no more; tests put a small one in its place."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol

import aiohttp

from supervisor.config import Config
from supervisor.core.routing import Ask


class Lease(Protocol):
    """The right to use one engine for one request. `queued` is the seconds waited for it."""

    @property
    def profile(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def queued(self) -> float: ...
    @property
    def session(self) -> aiohttp.ClientSession: ...
    def log_tail(self) -> tuple[str, ...]: ...


class Driver(Protocol):
    """`started_at` is monotonic. Whatever it refuses it refuses with an LlmdError."""

    @property
    def config(self) -> Config: ...
    @property
    def started_at(self) -> float: ...
    def lease(self, ask: Ask, patience: float | None = None) -> AbstractAsyncContextManager[Lease]: ...
    async def start(self, profile: str) -> str: ...
    async def stop(self, profile: str, *, at_once: bool = False) -> str: ...
    def status(self) -> dict[str, Any]: ...
    def log_path(self, profile: str) -> Path: ...
