"""A driver without engines of its own: its leases lead to a small application on a Unix socket."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import aiohttp
from aiohttp import web

from supervisor.config import Config, Peer, Profile
from supervisor.core.requests import Outcome
from supervisor.core.routing import Ask, candidates
from supervisor.core.tally import Tally
from supervisor.errors import LlmdError
from supervisor.host.activity import Request
from supervisor.host.upstream import Pool

VLLM = b"""# HELP vllm:num_requests_running Running.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0"} 2.0
"""


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def engine_of(routes: Mapping[str, Handler]) -> AsyncIterator[Path]:
    """A small application in an engine's place: the Unix socket that it answers on. "POST /v1/messages" -> handler."""
    folder = Path(tempfile.mkdtemp(prefix="llmd-", dir="/tmp"))
    app = web.Application()
    for route, handler in routes.items():
        app.router.add_route(*route.split(" "), handler)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.UnixSite(runner, str(folder / "e")).start()
    yield folder / "e"
    await runner.cleanup()
    shutil.rmtree(folder)


@dataclass
class FakeLease:
    profile: str
    pool: Pool
    session: aiohttp.ClientSession | None
    reason: str = "the only profile"
    incarnation: str = "i1"
    queued: float = 0.25
    hit: str = "warm"
    configured: Profile | None = None

    peer: Peer | None = None
    prompt: int | None = None
    output: int | None = None
    failures: list[str] = field(default_factory=list)
    answers: int = 0
    over: bool = False

    def answered(self) -> None:
        self.answers += 1

    def failed(self, why: str) -> None:
        self.failures.append(why)

    def used(self, prompt: int | None, output: int | None) -> None:
        self.prompt, self.output = prompt, output

    def log_tail(self) -> tuple[str, ...]:
        return ("CUDA out of memory",)


@dataclass
class FakeRegister:
    """Has no file."""

    noted: list[Request] = field(default_factory=list)

    def note(self, request: Request) -> None:
        self.noted.append(request)


@dataclass
class FakeDriver:
    config: Config
    engine: Path = Path("/nowhere")
    engines: dict[str, Path] = field(default_factory=dict)
    """Profile -> its engine's socket, where it is another one."""
    key: str = "engine"
    asks: list[Ask] = field(default_factory=list)
    log: Path = Path("/nowhere")
    refusal: LlmdError | None = None
    held: int = 0
    at_once: bool = True
    """Whether a lease is to be had without waiting, so that plain requests go the short way."""
    over: bool = False
    """Whether an engine that broke off is found to have died."""
    outcomes: dict[str, Mapping[str, object]] = field(default_factory=dict)
    pools: dict[str, Pool] = field(default_factory=dict)
    leases: list[FakeLease] = field(default_factory=list)
    calls: list[tuple[str, str, bool]] = field(default_factory=list)
    asked: list[tuple[str | None, float | None, int]] = field(default_factory=list)
    started_at: float = field(default_factory=time.monotonic)
    tally: Tally = field(default_factory=Tally)
    register: FakeRegister = field(default_factory=FakeRegister)

    async def engine_metrics(self) -> dict[str, bytes]:
        return dict.fromkeys(self.config.profiles, VLLM)

    @asynccontextmanager
    async def lease(self, ask: Ask, patience: float | None = None) -> AsyncIterator[FakeLease]:
        if self.refusal is not None:
            raise self.refusal
        profile = candidates(ask, self.config, self.config.profiles)[0].profile
        self.held += 1
        self.asks.append(ask)
        pool, socket = self._pool(profile), str(self.engines.get(profile, self.engine))
        try:
            async with aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(socket), headers={"Authorization": f"Bearer {self.key}"}
            ) as session:
                known = self.config.profiles[profile]
                self.leases.append(FakeLease(profile, pool, session, configured=known))
                yield self.leases[-1]
        finally:
            self.held -= 1

    def lease_at_once(self, ask: Ask) -> FakeLease | None:
        if not self.at_once or self.refusal is not None:
            return None
        try:
            profile = candidates(ask, self.config, self.config.profiles)[0].profile
        except LlmdError:
            return None
        self.held += 1
        self.asks.append(ask)
        known = self.config.profiles[profile]
        self.leases.append(FakeLease(profile, self._pool(profile), None, configured=known))
        return self.leases[-1]

    def give_back(self, lease: FakeLease) -> None:
        if not lease.over:
            lease.over = True
            self.held -= 1

    def broke_off(self, request: str, error: LlmdError) -> None:
        """Nobody asks it why."""

    def _pool(self, profile: str) -> Pool:
        socket = str(self.engines.get(profile, self.engine))
        return self.pools.setdefault(socket, Pool(Path(socket), self.key, 5.0))

    async def is_over(self, lease: FakeLease) -> bool:
        return self.over

    def ended(self, request: str, outcome: Outcome) -> None:
        self.outcomes[request] = outcome()

    def joined(self, request: str, others: Sequence[str]) -> None:
        self.calls.append(("joined", request, others))

    def why_request(self, request: str) -> dict[str, Any]:
        return {"request": request}

    @property
    def operators(self) -> Self:
        """It obeys them itself."""
        return self

    async def start(self, profile: str, *, pin: bool | None = None) -> str:
        if self.refusal is not None:
            raise self.refusal
        self.calls.append(("start", profile, pin))
        return f"{profile} is ready"

    async def stop(self, profile: str, *, at_once: bool = False) -> str:
        self.calls.append(("stop", profile, at_once))
        return f"{profile} has stopped"

    async def reload(self, *, plan: bool = False) -> dict[str, Any]:
        if self.refusal is not None:
            raise self.refusal
        self.calls.append(("reload", "", plan))
        changes = [
            {"place": "keys.bob", "how": "added", "keys": {}, "restart": False, "text": "keys.bob added"}
        ]
        return {"applied": not plan, "changes": changes, "engines": {}, "warnings": []}

    async def release(self, gpu: int | str) -> str:
        self.calls.append(("release", gpu))
        return f"GPU {gpu} is released"

    def progress(self, name: str) -> str:
        return f"Loading {name}: 45 %"

    def why(self, name: str) -> dict[str, Any]:
        if self.refusal is not None:
            raise self.refusal
        return {"name": name}

    async def decisions(self, name: str | None, since: float | None, limit: int) -> list[dict[str, Any]]:
        self.asked.append((name, since, limit))
        return [{"message": "made room"}]

    def status(self) -> dict[str, Any]:
        engines = [
            {
                "profile": name,
                "model": profile.model,
                "state": "ready",
                "incarnation": "i1",
                "in_flight": self.held,
                "queued": 0,
                "measured": {"GPU-1": 12_300_000_000, "host": 5},
                "failure": None,
                "max_model_len": 4096,
            }
            for name, profile in self.config.profiles.items()
        ]
        return {"daemon": {"pid": 1}, "devices": [], "engines": engines, "strays": []}

    def log_path(self, profile: str) -> Path:
        return self.log
