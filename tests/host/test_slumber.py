"""The calls of sleep and waking against the stand-in engine on a stand-in card: unproven on hardware."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from supervisor.host.probe import ProbeFailed
from supervisor.host.slumber import fall_asleep, is_sleeping, wake_up
from supervisor.host.stall import Pulse, until_hung
from tests.standin.launch import KEY, STANDIN, Engine
from tests.standin.nvml import GIB, FakeGpus, build

WHOLE, RESIDUE = int(24 * GIB * 0.5), int(1.5 * GIB)
CARD = {"VLLM_SERVER_DEV_MODE": "1", "CUDA_VISIBLE_DEVICES": "0"}


class Host:
    def __init__(self, tmp_path: Path) -> None:
        self.gpus = FakeGpus(tmp_path / "nvml", count=1, total=24 * GIB)
        self.env = CARD | self.gpus.env(build(tmp_path))
        self.engines: list[Engine] = []

    async def engine(self, **knobs: str) -> Engine:
        named = {f"STANDIN_{name.upper()}": value for name, value in knobs.items()}
        flags = ("--enable-sleep-mode", "--gpu-memory-utilization", "0.5")
        self.engines.append(Engine(STANDIN, "model", *flags, env=self.env | named))
        return await self.engines[-1].ready()

    def used(self, engine: Engine) -> int:
        """Bytes of the card that its processes hold."""
        held = self.gpus.directory / "held.d"
        files = [held / str(pid) for pid in engine.session()]
        return sum(int(file.read_text().split()[1]) for file in files if file.exists())


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    made = Host(tmp_path)
    yield made
    for engine in made.engines:
        engine.clear()


@pytest.mark.parametrize(("level", "reloads"), [(1, 0), (2, 1)])
async def test_sleep_gives_memory_back_and_waking_takes_it(host: Host, level: int, reloads: int) -> None:
    engine = await host.engine()
    assert host.used(engine) == WHOLE
    await fall_asleep(engine.socket, KEY, level, 5)
    assert await is_sleeping(engine.socket, KEY, 5)
    assert host.used(engine) == RESIDUE
    await wake_up(engine.socket, KEY, level, 5)
    assert not await is_sleeping(engine.socket, KEY, 5)
    assert host.used(engine) == WHOLE
    async with engine.client() as client, client.get("/standin") as answer:
        assert (await answer.json())["reloads"] == reloads


@pytest.mark.parametrize("level", [1, 2])
async def test_waking_what_is_awake_changes_nothing(host: Host, level: int) -> None:
    engine = await host.engine()
    await wake_up(engine.socket, KEY, level, 5)
    assert host.used(engine) == WHOLE


async def test_what_comes_while_it_sleeps_waits(host: Host) -> None:
    engine = await host.engine()
    await fall_asleep(engine.socket, KEY, 1, 5)
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
    async with engine.client() as client:
        waiting = asyncio.create_task(client.post("/v1/chat/completions", json=body))
        while True:
            async with client.get("/standin") as answer:
                if (await answer.json())["in_flight"]:
                    break
        assert not waiting.done()
        await wake_up(engine.socket, KEY, 1, 5)
        async with await waiting as reply:
            assert reply.status == 200


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"sleep": "fails"}, "/sleep?level=1 was answered with 500: .*Memory usage increased"),
        ({"sleep": "hangs"}, "no answer to /sleep?level=1 in time"),
    ],
)
async def test_a_sleep_that_fails_says_how(host: Host, knobs: dict[str, str], words: str) -> None:
    engine = await host.engine(**knobs)
    with pytest.raises(ProbeFailed, match=words.replace("?", r"\?")):
        await fall_asleep(engine.socket, KEY, 1, 1)


async def test_a_wake_whose_memory_was_taken_fails(host: Host) -> None:
    engine = await host.engine()
    await fall_asleep(engine.socket, KEY, 1, 5)
    host.gpus.foreign(os.getpid(), 0, 20 * GIB)
    with pytest.raises(ProbeFailed, match="out of memory"):
        await wake_up(engine.socket, KEY, 1, 5)
    assert await is_sleeping(engine.socket, KEY, 5)


async def test_a_wake_that_hangs_ends_in_time(host: Host) -> None:
    engine = await host.engine(wake="hangs")
    await fall_asleep(engine.socket, KEY, 2, 5)
    with pytest.raises(ProbeFailed, match="no answer to /wake_up"):
        await wake_up(engine.socket, KEY, 2, 0.5)


async def test_an_engine_without_the_routes_is_told(host: Host) -> None:
    host.env["VLLM_SERVER_DEV_MODE"] = "0"
    engine = await host.engine()
    with pytest.raises(ProbeFailed, match="404"):
        await fall_asleep(engine.socket, KEY, 1, 5)
    with pytest.raises(ProbeFailed, match="404"):
        await is_sleeping(engine.socket, KEY, 5)


def test_sleep_mode_is_refused_without_a_card() -> None:
    with Engine(STANDIN, "model", "--enable-sleep-mode") as engine:
        assert engine.process.wait(10) == 1
        assert "Sleep mode is not supported on current platform" in engine.text()


async def test_an_engine_that_writes_or_answers_does_not_hang(host: Host) -> None:
    """Busy for many times the limit: with tokens that come, and with none to count but an answer when asked."""
    engine = await host.engine(tokens_per_second="20")
    pulse = Pulse(engine.socket, KEY, "generate", "model")
    hung = asyncio.create_task(until_hung(pulse, lambda: True, timeout=0.4, pause=0.05))
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 40}
    async with engine.client() as client, client.post("/v1/chat/completions", json=body) as reply:
        assert reply.status == 200
    before = await pulse.tokens()
    assert before
    while (await pulse.tokens() or 0) < before + 4:  # its own tiny requests
        assert not hung.done()
    hung.cancel()
