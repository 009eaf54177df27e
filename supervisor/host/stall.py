"""Whether an engine that is well still computes: `/health` stays 200 while a worker hangs (observed).

Tokens are counted while requests are in flight. Where none come for half the limit a tiny request of our own is
sent, which has the other half: a long answer that its client does not read, or a batch that counts no tokens,
is no hang.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from supervisor.host import probe

_TOKENS = re.compile(rb"^vllm:generation_tokens_total(?:\{[^}\n]*\})? (\S+)", re.MULTILINE)
_PATIENCE = 5.0


@dataclass(frozen=True, slots=True)
class Pulse:
    """How to ask one engine."""

    socket: Path
    key: str
    task: str
    model: str

    async def tokens(self) -> float | None:
        """Tokens written since it started; None where it does not tell."""
        try:
            async with (
                probe.connected(self.socket, self.key, _PATIENCE) as engine,
                engine.get("/metrics") as reply,
            ):
                found = _TOKENS.findall(await probe.read(reply))
                return sum(map(float, found)) if found else None
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            return None

    async def answers(self, timeout: float) -> bool:
        """Whether it answers the smallest request there is."""
        try:
            await probe.tiny_request(self.socket, self.key, self.task, self.model, timeout)
        except probe.ProbeFailed:
            return False
        return True


async def until_hung(pulse: Pulse, busy: Callable[[], bool], timeout: float, pause: float) -> None:
    """Return once requests were in flight, nothing came of them and of ours for `timeout` seconds."""
    now = asyncio.get_running_loop().time
    last, since = None, now()
    while True:
        await asyncio.sleep(pause)
        if not busy():
            last, since = None, now()
            continue
        seen = await pulse.tokens()
        if seen is not None and seen != last:
            last, since = seen, now()
        elif now() - since >= timeout / 2:
            if await pulse.answers(max(pause, since + timeout - now())):
                since = now()
            elif await pulse.tokens() in (last, None):
                return
