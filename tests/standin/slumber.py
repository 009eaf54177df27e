"""The sleep mode of a stand-in engine. Unproven on hardware: written after vLLM's source and documentation.

/sleep, /wake_up, /is_sleeping and /collective_rpc are there with VLLM_SERVER_DEV_MODE=1 and outside the key. What
each state holds of a card is told to the stand-in NVML: awake all of it; asleep a residue; with the weights awake
and the KV cache not, these and the residue. A wake takes what must be free. Requests that come meanwhile wait.
Level 2 drops the weights, and without reload_weights the answers are gibberish.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import startlog
import vram
from aiohttp import web
from answers import Fault
from knobs import Flags, Knobs

TAGS = frozenset({"weights", "kv_cache"})
WEIGHTS_SHARE = 0.6
"""Of what it holds awake."""


@dataclass
class Slumber:
    """`holders`: which process holds memory of which card."""

    flags: Flags
    knobs: Knobs
    holders: list[tuple[vram.Card, int]]
    asleep: frozenset[str] = frozenset()
    awake: asyncio.Event = field(default_factory=asyncio.Event)
    garbage: bool = False
    """The weights were dropped and have not been loaded again."""
    counts: dict[str, int] = field(default_factory=lambda: {"sleeps": 0, "wakes": 0, "reloads": 0})

    def __post_init__(self) -> None:
        self.awake.set()

    def add_to(self, app: web.Application) -> None:
        app.router.add_post("/sleep", self.sleep)
        app.router.add_post("/wake_up", self.wake_up)
        app.router.add_get("/is_sleeping", self.is_sleeping)
        app.router.add_post("/collective_rpc", self.collective_rpc)

    async def sleep(self, request: web.Request) -> web.Response:
        if not self.flags.sleep_mode or self.knobs.sleep == "fails":
            raise broken("AssertionError: Memory usage increased after sleeping.")
        if self.knobs.sleep == "hangs":
            await asyncio.Event().wait()
        level = int(request.query.get("level", "1"))
        self.counts["sleeps"] += 1
        self.awake.clear()
        self.asleep, self.garbage = TAGS, self.garbage or level == 2
        if self.knobs.sleep != "keeps":
            self.hold()
        return web.json_response({"status": "sleeping", "level": level})

    async def wake_up(self, request: web.Request) -> web.Response:
        if self.knobs.wake == "fails":
            raise broken("CUDA Error: out of memory at /workspace/csrc/cumem_allocator.cpp:62")
        if self.knobs.wake == "hangs":
            await asyncio.Event().wait()
        tags = frozenset(request.query.getall("tags", [])) or self.asleep
        if tags <= self.asleep:
            self.take_back(tags)
        if not self.asleep:
            self.awake.set()
        return web.json_response({"status": "sleeping" if self.asleep else "awake", "tags": sorted(tags)})

    async def is_sleeping(self, request: web.Request) -> web.Response:
        return web.json_response({"is_sleeping": bool(self.asleep)})

    async def collective_rpc(self, request: web.Request) -> web.Response:
        method = (await request.json()).get("method")
        if method != "reload_weights" or "weights" in self.asleep:
            raise broken(f"{method}: not now")
        self.counts["reloads"] += 1
        self.garbage = False
        return web.json_response({"results": [None]})

    def take_back(self, tags: frozenset[str]) -> None:
        left = self.asleep - tags
        for card, _ in self.holders:
            more = self.share(card, left) - self.share(card, self.asleep)
            if self.knobs.sleep != "keeps" and card.free() < more:
                raise broken("CUDA Error: out of memory at /workspace/csrc/cumem_allocator.cpp:62")
        self.counts["wakes"] += 1
        self.asleep = left
        self.hold()

    def hold(self) -> None:
        for card, pid in self.holders:
            card.hold(self.share(card, self.asleep), pid)
        startlog.say(
            f"(EngineCore pid=1) INFO 11-23 09:50:00 [abstract.py:390] asleep: {sorted(self.asleep)}\n"
        )

    def share(self, card: vram.Card, asleep: frozenset[str]) -> float:
        whole = card.total * self.flags.utilization
        if not asleep:
            return whole
        residue = min(whole, self.knobs.sleep_residue * vram.GIB)
        return residue if "weights" in asleep else residue + whole * WEIGHTS_SHARE


def broken(message: str) -> Fault:
    return Fault(500, message, "InternalServerError")
