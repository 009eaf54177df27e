"""The misbehaviours of the stand-in engine, each seen from outside; its good behaviour is in the contract test."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.standin.launch import STANDIN, Engine, all_pids, comm, until
from tests.standin.nvml import GIB, FakeGpus

Start = Callable[..., Engine]
BODY = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 400, "stream": True}


@pytest.fixture
def start() -> Iterator[Start]:
    """start(*flags, KNOB=value): a stand-in engine, killed at the end."""
    engines: list[Engine] = []

    def launch(*flags: str, env: dict[str, str] | None = None, **knobs: object) -> Engine:
        named = {f"STANDIN_{name.upper()}": str(value) for name, value in knobs.items()}
        engines.append(Engine(STANDIN, "model", *flags, env=(env or {}) | named))
        return engines[-1]

    yield launch
    for engine in engines:
        engine.clear()


async def ended(engine: Engine, seconds: float = 10) -> int:
    await until(lambda: engine.process.poll() is not None, seconds, engine.text)
    return engine.process.returncode


async def counters(client: aiohttp.ClientSession) -> dict[str, Any]:
    async with client.get("/standin") as answer:
        return dict(await answer.json())


async def test_counts_requests_and_the_client_that_leaves(start: Start) -> None:
    engine = await start(tokens_per_second=50).ready()
    async with engine.client() as client:
        async with client.post("/v1/chat/completions", json=BODY | {"max_tokens": 1}) as answer:
            assert (await answer.read()).endswith(b"data: [DONE]\n\n")
        async with client.post("/v1/chat/completions", json=BODY) as answer:
            await answer.content.readuntil(b"\n\n")
            assert (await counters(client))["in_flight"] == 1
            answer.close()

        async def aborted() -> bool:
            return bool((await counters(client))["aborted"])

        await until(aborted, 1)
        seen = await counters(client)
    assert (seen["received"], seen["finished"], seen["in_flight"]) == (2, 1, 0)
    assert seen["prompts"] == ["Hello", "Hello"]


@pytest.mark.parametrize(
    ("knobs", "code", "text"),
    [
        ({"crash_at": "Loading weights took", "exit_code": 3}, 3, "Engine core initialization failed"),
        ({"crash_at": "ready"}, 1, "Application startup complete"),
        ({"oom": 1}, 1, "torch.OutOfMemoryError: CUDA out of memory"),
        (
            {"free_memory_refusal": 1},
            1,
            "ValueError: Free memory on device cuda:0 (20.90/23.55 GiB) on startup",
        ),
    ],
)
async def test_ends_while_starting(start: Start, knobs: dict[str, object], code: int, text: str) -> None:
    engine = start(load_seconds=0.1, **knobs)
    assert await ended(engine) == code
    assert text in engine.text()
    await until(lambda: not engine.session())


async def test_a_stale_socket_file_is_in_use(start: Start, tmp_path: Path) -> None:
    engine = start()
    await engine.ready()
    engine.process.send_signal(signal.SIGTERM)
    assert await ended(engine) == 0
    assert engine.socket.exists()
    second = start("--uds", str(engine.socket))
    assert await ended(second) == 1
    assert "Address already in use" in second.text()


@pytest.mark.parametrize("place", ["Loading weights took", "ready"])
async def test_hangs_before_it_is_ready(start: Start, place: str) -> None:
    engine = start(load_seconds=0.1, hang_at=place)
    last = "Starting to load model" if place != "ready" else "Resolved architecture"
    await until(lambda: last in engine.text())
    async with engine.client() as client:
        assert not await engine.healthy(client)
    assert engine.process.poll() is None


async def test_accepts_and_never_answers(start: Start) -> None:
    engine = await start(hang_at="request").ready()
    async with engine.client() as client:
        waiting = client.post("/v1/chat/completions", json=BODY, timeout=aiohttp.ClientTimeout(total=0.2))
        with pytest.raises(TimeoutError):
            await waiting
        assert (await counters(client))["received"] == 1


async def test_loading_swallows_the_first_sigterm(start: Start) -> None:
    engine = start(load_seconds=30)
    await until(lambda: engine.named("VLLM::EngineCore"))
    engine.process.send_signal(signal.SIGTERM)
    with pytest.raises(AssertionError, match="not so within"):
        await ended(engine, 0.3)
    engine.process.send_signal(signal.SIGTERM)
    assert await ended(engine) == 0
    await until(lambda: not engine.session())


async def test_sigterm_aborts_streams(start: Start) -> None:
    engine = await start(tokens_per_second=20).ready()
    body = BODY | {"stream_options": {"include_usage": True}}
    async with engine.client() as client, client.post("/v1/chat/completions", json=body) as answer:
        await answer.content.readuntil(b"\n\n")
        engine.process.send_signal(signal.SIGTERM)
        *_, cut, usage, done, empty = (await answer.read()).split(b"\n\n")
    assert json.loads(cut[6:])["choices"][0]["finish_reason"] == "abort"
    assert json.loads(usage[6:])["usage"]["completion_tokens"] < 400
    assert (done, empty) == (b"data: [DONE]", b"")
    assert await ended(engine) == 0


async def test_ignores_sigterm(start: Start) -> None:
    engine = await start("--tensor-parallel-size", "2", ignore_sigterm=1).ready()
    before = engine.session()
    os.killpg(engine.process.pid, signal.SIGTERM)
    async with engine.client() as client:
        assert await engine.healthy(client)
    assert engine.session() == before


async def test_dies_and_stalls_and_crashes_mid_stream(start: Start) -> None:
    dying, crashing = start(die_at_token=3), start(crash_at="token:3")
    for engine in (dying, crashing):
        await engine.ready()
    async with dying.client() as client, client.post("/v1/chat/completions", json=BODY) as answer:
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()
    assert await ended(dying) == -signal.SIGKILL
    assert dying.named("VLLM::EngineCore")
    async with crashing.client() as client, client.post("/v1/chat/completions", json=BODY) as answer:
        *_, error, done, _ = (await answer.read()).split(b"\n\n")
    assert b"EngineCore encountered an issue" in error
    assert done == b"data: [DONE]"
    assert await ended(crashing) == 0


async def test_falls_silent_mid_stream(start: Start) -> None:
    engine = await start(stop_at_token=2).ready()
    patience = aiohttp.ClientTimeout(sock_read=0.2)
    async with (
        engine.client() as client,
        client.post("/v1/chat/completions", json=BODY, timeout=patience) as answer,
    ):
        with pytest.raises(TimeoutError):
            await answer.read()


@pytest.mark.parametrize("junk", ["status", "length", "chunk"])
async def test_answers_junk(start: Start, junk: str) -> None:
    engine = await start(junk=junk).ready()
    async with engine.client() as client:
        with pytest.raises(aiohttp.ClientError):
            async with client.post("/v1/chat/completions", json=BODY) as answer:
                await answer.read()
        assert await engine.healthy(client)


async def test_a_stopped_engine_core_is_healthy_and_silent(start: Start) -> None:
    engine = await start().ready()
    core = engine.named("VLLM::EngineCore")[0]
    os.kill(core, signal.SIGSTOP)
    patience = aiohttp.ClientTimeout(total=0.3)
    async with engine.client() as client:
        assert await engine.healthy(client)
        with pytest.raises(TimeoutError):
            await client.post("/v1/chat/completions", json=BODY | {"stream": False}, timeout=patience)
        os.kill(core, signal.SIGCONT)
        async with client.post("/v1/chat/completions", json=BODY | {"stream": False}) as answer:
            assert answer.status == 200


def runaways(known: set[int]) -> list[int]:
    return [pid for pid in all_pids() if pid not in known and comm(pid) == "runaway"]


@pytest.mark.parametrize(("knobs", "number"), [({"fork": "setsid"}, 1), ({"fork_storm": 1}, 20)])
async def test_descendants_in_other_sessions(start: Start, knobs: dict[str, object], number: int) -> None:
    known = set(all_pids())
    engine = await start(**knobs).ready()
    if "fork_storm" in knobs:
        engine.process.send_signal(signal.SIGTERM)
    await until(lambda: len(runaways(known)) == number)
    found = runaways(known)
    for pid in found:
        os.kill(pid, signal.SIGTERM)
    assert engine.process.poll() is None
    assert runaways(known) == found
    for pid in found:
        os.kill(pid, signal.SIGKILL)


async def test_floods_the_log(start: Start) -> None:
    engine = await start(flood=4).ready()
    assert engine.log.stat().st_size > 4 << 20


# --- imaginary cards ---


@pytest.fixture
def cards(tmp_path: Path) -> FakeGpus:
    return FakeGpus(tmp_path, count=2, total=24 * GIB)


def held(cards: FakeGpus) -> dict[int, list[str]]:
    directory = cards.directory / "held.d"
    return {int(file.name): file.read_text().split() for file in directory.iterdir() if file.name.isdigit()}


async def test_engine_core_holds_its_card(start: Start, cards: FakeGpus) -> None:
    env = {"LLMD_NVML_DIR": str(cards.directory), "CUDA_VISIBLE_DEVICES": "1"}
    engine = await start("--gpu-memory-utilization", "0.5", env=env).ready()
    assert held(cards) == {engine.named("VLLM::EngineCore")[0]: ["1", str(12 * GIB)]}
    assert "GPU KV cache size" in engine.text()


async def test_each_worker_holds_its_card_and_its_death_ends_all(start: Start, cards: FakeGpus) -> None:
    env = {"LLMD_NVML_DIR": str(cards.directory), "CUDA_VISIBLE_DEVICES": "0,1"}
    engine = await start("--tensor-parallel-size", "2", "--gpu-memory-utilization", "0.5", env=env).ready()
    workers = sorted(engine.named("VLLM::Worker_TP"))
    await until(lambda: all(held(cards).get(pid, [""])[-1] == str(12 * GIB) for pid in workers))
    assert [held(cards)[pid][0] for pid in workers] == ["0", "1"]
    os.kill(workers[0], signal.SIGKILL)
    assert await ended(engine) == 0
    await until(lambda: not engine.session())


async def test_refuses_a_card_that_is_full(start: Start, cards: FakeGpus) -> None:
    cards.foreign(os.getpid(), 0, 4 * GIB)
    env = {"LLMD_NVML_DIR": str(cards.directory), "CUDA_VISIBLE_DEVICES": "0"}
    engine = start("--gpu-memory-utilization", "0.9", env=env)
    assert await ended(engine) == 1
    refusal = "Free memory on device cuda:0 (20.00/24.00 GiB) on startup is less than desired GPU memory utilization (0.9, 21.60 GiB)"
    assert refusal in engine.text()
