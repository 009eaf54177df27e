"""The admin socket: what it answers, and whom."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fakes import FakeDriver

from supervisor.config import Config, Profile, Server
from supervisor.errors import EngineFailed, ModelNotFound
from supervisor.web.admin import AdminServer, may_administer
from supervisor.web.record import Record
from supervisor.web.traffic import Traffic


@pytest.fixture
def traffic() -> Traffic:
    return Traffic()


@pytest.fixture
async def driver(traffic: Traffic) -> AsyncIterator[FakeDriver]:
    folder = Path(tempfile.mkdtemp(prefix="llmd-", dir="/tmp"))
    names = {"llama_0": "llama", "qwen_0": "qwen", "qwen_1": "qwen"}
    config = Config(
        path=Path("llmd.toml"),
        server=Server(admin_socket=folder / "a"),
        profiles={n: Profile(name=n, model=m, weights="w", gpus=(0,)) for n, m in names.items()},
    )
    driver = FakeDriver(config, log=folder / "log")
    server = AdminServer(driver, traffic)
    await server.open()
    yield driver
    await server.close()
    assert not (folder / "a").exists()
    shutil.rmtree(folder)


@pytest.fixture
async def client(driver: FakeDriver) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.UnixConnector(str(driver.config.server.admin_socket))
    async with aiohttp.ClientSession("http://llmd", connector=connector) as session:
        yield session


async def test_status_and_mode_of_the_socket(driver: FakeDriver, client: aiohttp.ClientSession) -> None:
    assert stat.S_IMODE(driver.config.server.admin_socket.stat().st_mode) == 0o660
    async with client.get("/status") as answer:
        told = await answer.json()
    assert [engine.pop("tokens_per_s") for engine in told["engines"]] == [0.0] * len(told["engines"])
    assert told == driver.status()


async def test_status_tells_tokens_a_second(traffic: Traffic, client: aiohttp.ClientSession) -> None:
    made = [0]
    record = Record("x", model="llama", profile="llama_0", counter=lambda: made[0])
    traffic.began(record, 40)
    assert await pace(client) == 0
    made[0] = 1000
    assert await pace(client) > 100


async def pace(client: aiohttp.ClientSession) -> float:
    """Of llama_0."""
    async with client.get("/status") as answer:
        engines = {engine["profile"]: engine for engine in (await answer.json())["engines"]}
    return float(engines["llama_0"]["tokens_per_s"])


async def test_start_and_stop(driver: FakeDriver, client: aiohttp.ClientSession) -> None:
    async with client.post("/profiles/llama/start") as answer:  # the model's name, one profile serves it
        assert (await answer.json()) == {"message": "llama_0 is ready"}
    async with client.post("/profiles/qwen_1/stop?now=1") as answer:
        assert answer.status == 200
    assert driver.calls == [("start", "llama_0", None), ("stop", "qwen_1", True)]


@pytest.mark.parametrize(("name", "told"), [("gone", "llama_0, qwen_0, qwen_1"), ("qwen", "qwen_0, qwen_1")])
async def test_a_name_that_is_not_one_profile(client: aiohttp.ClientSession, name: str, told: str) -> None:
    async with client.post(f"/profiles/{name}/start") as answer:
        assert answer.status == 404
        assert told in (await answer.json())["error"]["message"]


async def test_a_gpu_is_released_by_its_number_or_uuid(
    driver: FakeDriver, client: aiohttp.ClientSession
) -> None:
    for name in ("1", "GPU-1"):
        async with client.post(f"/gpus/{name}/release") as answer:
            assert answer.status == 200
    assert driver.calls == [("release", 1), ("release", "GPU-1")]


async def test_a_failed_start_brings_the_log(driver: FakeDriver, client: aiohttp.ClientSession) -> None:
    driver.refusal = EngineFailed("died", log=["out of memory"])
    async with client.post("/profiles/llama_0/start") as answer:
        body: dict[str, Any] = await answer.json()
        assert answer.status == 502
    assert body == {"error": {"message": "died", "code": "engine_failed", "log": ["out of memory"]}}


async def test_a_log_is_followed_past_its_rotation(driver: FakeDriver, client: aiohttp.ClientSession) -> None:
    driver.log.write_text("one\ntwo\nthree\n")
    async with client.get("/profiles/llama_0/logs?lines=2") as answer:
        assert await answer.text() == "two\nthree\n"
    async with client.get("/profiles/llama_0/logs?lines=1&follow=1") as answer:
        assert await answer.content.readline() == b"three\n"
        with driver.log.open("a") as log:
            log.write("four\n")
        assert await answer.content.readline() == b"four\n"
        driver.log.write_text("new\n")
        assert await answer.content.readline() == b"new\n"


async def test_what_is_no_number_of_lines(client: aiohttp.ClientSession) -> None:
    async with client.get("/profiles/llama_0/logs?lines=-1") as answer:
        assert answer.status == 400


def test_who_may_administer(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.touch(mode=0o660)
    path.chmod(0o660)
    seen = path.stat()
    nobody = 4_000_000_000
    assert may_administer(0, [nobody], seen)
    assert may_administer(os.getuid(), [nobody], seen)
    assert may_administer(nobody, [seen.st_gid], seen)
    assert may_administer(nobody, [nobody, seen.st_gid], seen)
    assert not may_administer(nobody, [nobody, seen.st_gid + 1], seen)
    path.chmod(0o600)
    assert not may_administer(nobody, [seen.st_gid], path.stat())


async def test_why(driver: FakeDriver, client: aiohttp.ClientSession) -> None:
    async with client.get("/why/llama_0") as answer:
        assert (await answer.json()) == {"name": "llama_0"}
    driver.refusal = ModelNotFound("there are: llama")
    async with client.get("/why/gpt") as answer:
        assert (answer.status, (await answer.json())["error"]["message"]) == (404, "there are: llama")


async def test_decisions(driver: FakeDriver, client: aiohttp.ClientSession) -> None:
    async with client.get("/decisions") as answer:
        assert (await answer.json()) == {"decisions": [{"message": "made room"}]}
    async with client.get("/decisions?model=llama&since=3600&limit=7") as answer:
        assert answer.status == 200
    assert driver.asked == [(None, None, 100), ("llama", 3600.0, 7)]


@pytest.mark.parametrize(
    "query",
    ["since=-1", "since=soon", "since=nan", "limit=0", "limit=x", "limit=999999", "limit=00000000999999"],
)
async def test_what_decisions_are_not_asked_for_like(client: aiohttp.ClientSession, query: str) -> None:
    async with client.get(f"/decisions?{query}") as answer:
        assert answer.status == 400
        assert query.split("=")[0] in (await answer.json())["error"]["message"]


async def test_requests_in_flight_oldest_first(traffic: Traffic, client: aiohttp.ClientSession) -> None:
    for profile, made in (("llama_0", 7), (None, None)):
        record = Record("x", model="llama", profile=profile, source="webui", counter=partial(int, made or 0))
        traffic.began(record, 40)
    async with client.get("/requests") as answer:
        told = await answer.json()
    first, second = told["requests"]
    assert first["age_s"] >= 0
    assert (first["number"], first["profile"], first["prompt"], first["output"]) == ("1", "llama_0", 40, 7)
    assert (second["number"], second["profile"], second["ttft_s"]) == ("2", None, None)


async def test_a_request_is_cancelled_once(traffic: Traffic, client: aiohttp.ClientSession) -> None:
    cuts = list[str]()
    number = traffic.began(Record("x", model="llama", cut=partial(cuts.append, "cut")), 40)
    async with client.post(f"/requests/{number}/cancel") as answer:
        assert (await answer.json()) == {"message": "cancelled"}
    assert cuts == ["cut"]
    traffic.over(number)
    async with client.post(f"/requests/{number}/cancel") as answer:
        assert answer.status == 404
        assert "has ended" in (await answer.json())["error"]["message"]
