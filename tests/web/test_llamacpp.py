"""The buttons of Open WebUI to load and unload models, in llama.cpp's language."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fakes import FakeDriver

from supervisor.config import Config, Profile, Server
from supervisor.config.secrets import digest
from supervisor.errors import DaemonRefused
from supervisor.web.auth import Keyring
from supervisor.web.server import Server as Port

PROFILES = {
    name: Profile(name=name, model="llama", weights="w", gpus=(0,)) for name in ("llama_0", "llama_1")
}


class Buttons(FakeDriver):
    """`states` by profile; a start waits for `loaded`."""

    def press(self, client: aiohttp.ClientSession, button: str, model: object) -> Any:
        return client.post(f"/models/{button}", json={"model": model})

    def status(self) -> dict[str, Any]:
        found = super().status()
        for engine in found["engines"]:
            engine["state"] = self.states.get(engine["profile"], "cold")
            engine.update(self.stage if engine["state"] == "starting" else {})
        return found

    async def start(self, profile: str) -> str:
        message = await super().start(profile)
        await self.loaded.wait()
        return message

    states: dict[str, str]
    loaded: asyncio.Event
    stage: dict[str, Any]
    port: Port


@asynccontextmanager
async def opened(key: str = "sesame", **server: Any) -> AsyncIterator[tuple[Buttons, aiohttp.ClientSession]]:
    server = {"listen": ("127.0.0.1:0",), "drain": 0.1, "llama_cpp": True, **server}
    driver = Buttons(Config(path=Path("llmd.toml"), server=Server(**server), profiles=PROFILES))
    driver.states, driver.loaded, driver.stage = {}, asyncio.Event(), {}
    driver.port = port = Port(driver, Keyring({digest("sesame"): "webui"}))
    await port.open()
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(port.listening[0], headers=headers) as client:
        yield driver, client
    driver.loaded.set()
    await port.close()


@pytest.mark.parametrize(
    ("states", "value"),
    [
        ({}, "unloaded"),
        ({"llama_0": "starting"}, "loading"),
        ({"llama_0": "starting", "llama_1": "ready"}, "loaded"),
        ({"llama_1": "sleeping"}, "sleeping"),
        ({"llama_0": "impossible"}, "unloaded"),
    ],
)
async def test_the_list_says_how_far_a_model_is(states: dict[str, str], value: str) -> None:
    async with opened() as (driver, client):
        driver.states = states
        async with client.get("/models") as answer:
            found = {entry["id"]: entry["status"]["value"] for entry in (await answer.json())["data"]}
    assert list(found) == ["llama", "llama_0", "llama_1"]
    assert found["llama"] == value


async def test_a_load_is_begun_and_answered_before_it_is_over() -> None:
    async with opened() as (driver, client):
        async with driver.press(client, "load", "llama_1") as answer:
            assert await answer.json() == {"success": True}
        assert driver.calls == [("start", "llama_1", None)]


async def test_what_is_loaded_or_loading_is_not_started_again() -> None:
    async with opened() as (driver, client):
        for state in ("ready", "starting"):
            driver.states = {"llama_0": state}
            async with driver.press(client, "load", "llama") as answer:
                assert answer.status == 200
        assert driver.calls == []


async def test_a_load_is_told_as_it_goes_on() -> None:
    async with opened() as (driver, client), client.get("/models/sse") as answer:
        assert answer.content_type == "text/event-stream"
        assert [(e["model"], e["data"]["status"]) for e in await events(answer, 3)] == [
            ("llama", "unloaded"), ("llama_0", "unloaded"), ("llama_1", "unloaded")
        ]  # fmt: skip
        driver.states, driver.stage = {"llama_1": "starting"}, {"stage": "weights", "percent": 41.6}
        progress = {"current": "weights", "value": 0.42}
        assert await events(answer, 2) == [
            {"model": name, "event": "status_change", "data": {"status": "loading", "progress": progress}}
            for name in ("llama", "llama_1")
        ]


async def events(answer: aiohttp.ClientResponse, count: int) -> list[dict[str, Any]]:
    """The next so many that are no comment and no advice on when to come back."""
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(10):
        while len(found) < count:
            line = await answer.content.readline()
            if line.startswith(b"data: "):
                found.append(json.loads(line[6:]))
    return found


async def test_a_stream_of_changes_does_not_hold_up_the_end() -> None:
    async with opened(drain=60) as (driver, client), client.get("/models/sse") as answer:
        await events(answer, 3)
        async with asyncio.timeout(10):
            await driver.port.close()


async def test_a_start_that_is_refused_says_why() -> None:
    async with opened() as (driver, client):
        driver.refusal = DaemonRefused("GPU 0 has 3 GiB free")
        async with driver.press(client, "load", "llama_0") as answer:
            assert (answer.status, (await answer.json())["error"]["message"]) == (409, "GPU 0 has 3 GiB free")


async def test_an_unload_stops_every_profile_that_runs() -> None:
    async with opened() as (driver, client):
        driver.states = {"llama_0": "ready"}
        async with driver.press(client, "unload", "llama") as answer:
            assert await answer.json() == {"success": True}
        assert driver.calls == [("stop", "llama_0", False)]


@pytest.mark.parametrize(("model", "status"), [("gpt-9", 404), (7, 400), (None, 400)])
async def test_an_unknown_model_is_refused(model: object, status: int) -> None:
    async with opened() as (driver, client), driver.press(client, "load", model) as answer:
        assert answer.status == status


async def test_a_body_that_is_nested_too_deeply_is_refused() -> None:
    body = b'{"model": "llama", "x": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    async with opened() as (driver, client), client.post("/models/load", data=body) as answer:
        assert (answer.status, driver.calls) == (400, [])


async def test_a_stranger_presses_no_button() -> None:
    async with opened(key="guess") as (driver, client), driver.press(client, "unload", "llama") as answer:
        assert (answer.status, driver.calls) == (401, [])


async def test_there_are_no_buttons_unless_they_were_asked_for() -> None:
    async with opened(llama_cpp=False) as (driver, client), driver.press(client, "load", "llama") as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (404, "route_not_found")
