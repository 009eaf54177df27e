"""Requests for embeddings on their way: who goes with whom, and what each is told when it goes wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from fakes import FakeDriver, engine_of

from supervisor.config import Config, Profile, Server
from supervisor.web import batching
from supervisor.web.auth import Keyring
from supervisor.web.server import Server as Port
from tests.standin.launch import until

INPUTS = 8


class Engine:
    """Holds every call until `go_on`; `how` says what it answers then to one of several inputs."""

    def __init__(self) -> None:
        self.how, self.go_on = "well", asyncio.Event()
        self.bodies: list[bytes] = []
        self.left = 0

    @property
    def sizes(self) -> list[int]:
        return [len(self.inputs(json.loads(body))) for body in self.bodies]

    def inputs(self, body: Any) -> list[str]:
        return body["input"] if isinstance(body["input"], list) else [body["input"]]

    async def embed(self, request: web.Request) -> web.Response:
        raw = await request.read()
        self.bodies.append(raw)
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.left += 1
            raise
        given = self.inputs(json.loads(raw))
        if len(given) > 1 and self.how == "dead":
            return web.json_response({"error": {"message": "EngineCore"}}, status=500)
        if len(given) > 1 and self.how == "cut":
            assert request.transport
            request.transport.abort()
        if len(given) > 1 and self.how == "nonsense":
            return web.json_response({"data": [], "model": "bge", "usage": {"prompt_tokens": 1}})
        if "bad" in given:
            return web.json_response(
                {"error": {"message": "bad", "type": "t", "param": None, "code": 400}}, status=400
            )
        data = [{"index": n, "object": "embedding", "embedding": [text]} for n, text in enumerate(given)]
        usage = {"prompt_tokens": 3 * len(given), "total_tokens": 3 * len(given)}
        return web.json_response({"object": "list", "model": "bge", "data": data, "usage": usage})


class World:
    def __init__(self, engine: Engine, driver: FakeDriver, port: Port, client: aiohttp.ClientSession) -> None:
        self.engine, self.driver, self.port, self.client = engine, driver, port, client

    async def post(self, given: Any, **more: Any) -> tuple[int, Any]:
        body = {"model": "bge", "input": given, **more}
        async with self.client.post("/v1/embeddings", json=body) as answer:
            return answer.status, await answer.json()

    def many(self, *given: Any) -> list[asyncio.Task[tuple[int, Any]]]:
        return [asyncio.create_task(self.post(text)) for text in given]

    async def first(self) -> asyncio.Task[tuple[int, Any]]:
        """One that is at work, so that those after it gather."""
        [task] = self.many("first")
        await until(lambda: len(self.engine.bodies) == 1)
        return task

    def answer(self) -> None:
        self.engine.go_on.set()

    @property
    def under_way(self) -> int:
        return len(self.port.router._traffic.in_flight())


@pytest.fixture
async def world() -> AsyncIterator[World]:
    engine = Engine()
    async with engine_of({"POST /v1/embeddings": engine.embed}) as socket:
        bge = Profile(
            name="bge_0",
            model="bge",
            weights="w",
            gpus=(0,),
            task="embed",
            batch_inputs=INPUTS,
            batch_wait=0.5,
        )
        config = Config(
            path=Path("llmd.toml"), server=Server(listen=("127.0.0.1:0",), drain=0.1), profiles={"bge_0": bge}
        )
        driver = FakeDriver(config, engine=socket)
        port = Port(driver, Keyring({}, open=True))
        await port.open()
        async with aiohttp.ClientSession(
            port.listening[0], connector=aiohttp.TCPConnector(limit=0)
        ) as client:
            yield World(engine, driver, port, client)
        engine.go_on.set()
        await port.close()


async def test_one_alone_goes_at_once_and_to_the_byte(world: World) -> None:
    world.answer()
    raw = b' {"input":"a",  "model":"bge", "unknown": 1.50}'
    async with world.client.post(
        "/v1/embeddings", data=raw, headers={"Content-Type": "application/json"}
    ) as answer:
        assert answer.status == 200
    assert world.engine.bodies == [raw]


async def test_a_call_has_no_more_inputs_than_are_allowed(world: World) -> None:
    first = await world.first()
    tasks = world.many(*(f"text {n}" for n in range(20)))
    await until(lambda: sum(world.engine.sizes) == 21)
    world.answer()
    answers = await asyncio.gather(first, *tasks)
    assert world.engine.sizes == [1, INPUTS, INPUTS, 4]
    assert [said["data"][0]["embedding"] for _, said in answers] == [
        ["first"],
        *([f"text {n}"] for n in range(20)),
    ]
    assert sum(said["usage"]["prompt_tokens"] for _, said in answers) == 3 * 21


async def test_requests_of_several_inputs_keep_their_order(world: World) -> None:
    first = await world.first()
    tasks = world.many(["a", "b"], "c", ["d", "e", "f"], ["x"] * INPUTS)
    await until(lambda: sum(world.engine.sizes) == 1 + 6 + INPUTS)
    world.answer()
    answers = await asyncio.gather(first, *tasks)
    found = [[entry["embedding"] for entry in said["data"]] for _, said in answers[1:4]]
    assert found == [[["a"], ["b"]], [["c"]], [["d"], ["e"], ["f"]]]
    assert sorted(world.engine.sizes) == [1, 6, INPUTS]


async def test_a_call_is_one_lease_of_the_key_that_asked(world: World) -> None:
    first = await world.first()
    tasks = world.many(*"abcd")
    await until(lambda: len(world.engine.bodies) == 2)
    assert world.driver.held == 2
    world.answer()
    await asyncio.gather(first, *tasks)
    await until(lambda: world.driver.held == 0)
    assert world.driver.leases[-1].prompt == 12


async def test_a_refused_call_goes_again_apart(world: World) -> None:
    first = await world.first()
    tasks = world.many("a", "bad", "b")
    await until(lambda: len(world.engine.bodies) == 2)
    world.answer()
    answers = await asyncio.gather(first, *tasks)
    assert [status for status, _ in answers] == [200, 200, 400, 200]
    assert world.engine.sizes == [1, 3, 1, 1, 1]


@pytest.mark.parametrize("how", ["dead", "nonsense"])
async def test_a_failed_call_is_told_to_all_and_not_sent_again(world: World, how: str) -> None:
    world.engine.how = how
    first = await world.first()
    tasks = world.many("a", "b", "c")
    await until(lambda: len(world.engine.bodies) == 2)
    world.answer()
    answers = await asyncio.gather(first, *tasks)
    assert [status for status, _ in answers] == [200, 502, 502, 502]
    assert {said["error"]["code"] for _, said in answers[1:]} == {"engine_failed"}
    assert len(world.engine.bodies) == 2


async def test_an_answer_that_is_too_long_is_not_gathered_to_its_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "_LARGEST", 20)
    first, late = await world.first(), world.many("a", "b")
    await until(lambda: len(world.engine.bodies) == 2)
    world.answer()
    answers = await asyncio.gather(first, *late)
    assert [status for status, _ in answers] == [200, 502, 502]  # what goes alone passes, whatever its length


async def test_the_call_ends_when_everyone_has_left(world: World) -> None:
    first = await world.first()
    tasks = world.many("a", "b", "c")
    await until(lambda: len(world.engine.bodies) == 2)
    for task in tasks:
        task.cancel()
    await until(lambda: world.engine.left == 1)
    await until(lambda: world.driver.held == 1)
    world.answer()
    assert (await first)[0] == 200


async def test_the_call_goes_on_for_those_who_stay(world: World) -> None:
    first = await world.first()
    leaving, staying = world.many("a", "b")
    await until(lambda: len(world.engine.bodies) == 2)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    world.answer()
    _, said = await staying
    assert said["data"][0]["embedding"] == ["b"]
    await first


async def test_who_has_left_is_told_nothing_of_the_call_that_goes_on(world: World) -> None:
    """What is remembered of a request does not change once it has ended."""
    first = await world.first()
    leaving, staying = world.many("a", "b")
    await until(lambda: len(world.engine.bodies) == 2)
    leaving.cancel()
    noted = world.driver.register.noted
    await until(lambda: noted)
    world.answer()
    assert {status for status, _ in await asyncio.gather(first, staying)} == {200}
    assert (noted[0].status, noted[0].profile, noted[0].prompt) == (499, None, None)


async def test_nobody_joins_those_who_have_all_left(world: World) -> None:
    configure(world, batch_wait=60.0)
    first = await world.first()
    (leaving,) = world.many("a")
    await until(lambda: world.under_way == 2)
    leaving.cancel()
    await until(lambda: world.under_way == 1)
    tasks = world.many(*(f"b {n}" for n in range(INPUTS)))
    async with asyncio.timeout(10):
        await until(lambda: len(world.engine.bodies) == 2)
        world.answer()
        assert {status for status, _ in await asyncio.gather(first, *tasks)} == {200}


async def test_what_differs_in_any_other_field_does_not_go_together(world: World) -> None:
    first = await world.first()
    tasks = [asyncio.create_task(world.post("a", dimensions=n)) for n in (8, 8, 16)]
    await until(lambda: sum(world.engine.sizes) == 4)
    world.answer()
    await asyncio.gather(first, *tasks)
    assert all(json.loads(body).get("dimensions") in (None, 8, 16) for body in world.engine.bodies)
    assert sum("dimensions" in json.loads(body) for body in world.engine.bodies) >= 2


async def test_members_of_a_call_whose_engine_died_go_to_another(world: World) -> None:
    """Each alone, and told where not to go."""
    first, late = await world.first(), world.many("a", "b", "c")
    await until(lambda: len(world.engine.bodies) == 2)
    world.driver.over, world.engine.how = True, "cut"
    world.answer()
    for (status, said), text in zip(
        await asyncio.gather(first, *late), ("first", "a", "b", "c"), strict=True
    ):
        assert (status, said["data"][0]["embedding"]) == (200, [text])
    assert [ask.tried for ask in world.driver.asks] == [frozenset()] * 2 + [frozenset({"i1"})] * 3


async def test_calls_that_fail_open_the_breaker_as_others_do(world: World) -> None:
    first, late = await world.first(), world.many("a", "b")
    await until(lambda: len(world.engine.bodies) == 2)
    world.engine.how = "cut"
    world.answer()
    statuses = [status for status, _ in await asyncio.gather(first, *late)]
    assert statuses == [200, 502, 502]
    assert [(len(lease.failures), lease.answers) for lease in world.driver.leases] == [(0, 1), (1, 0)]


def configure(world: World, *, max_concurrent: int = 4, batch_wait: float = 0.05, **waits: float) -> None:
    config = world.driver.config
    own = {"max_concurrent": max_concurrent, "batch_wait": batch_wait}
    bge = config.profiles["bge_0"].model_copy(update=own)
    server = config.server.model_copy(update=waits)
    world.driver.config = config.model_copy(update={"profiles": {"bge_0": bge}, "server": server})


async def test_calls_that_wait_for_their_turn_gather_on(world: World) -> None:
    configure(world, max_concurrent=1)
    first = await world.first()
    tasks = world.many(*(f"a {n}" for n in range(INPUTS)))
    await until(lambda: len(world.engine.bodies) == 2)
    for part in range(2):
        tasks += world.many(*(f"{part} {n}" for n in range(INPUTS // 2)))
        await asyncio.sleep(0.1)  # longer than they gather
    world.answer()
    assert {status for status, _ in await asyncio.gather(first, *tasks)} == {200}
    assert world.engine.sizes == [1, INPUTS, INPUTS]


async def test_a_turn_that_does_not_come_is_told(world: World) -> None:
    configure(world, max_concurrent=1, max_wait=0.2)
    first = await world.first()
    tasks = world.many(*(f"a {n}" for n in range(INPUTS)))
    await until(lambda: len(world.engine.bodies) == 2)
    for status, said in await asyncio.gather(*world.many("late", "later")):
        assert (status, said["error"]["code"]) == (503, "model_not_available")
    configure(world, max_concurrent=1)
    tasks += world.many("joins none of these")
    await until(lambda: world.under_way == len([first, *tasks]))
    world.answer()
    async with asyncio.timeout(10):
        assert {status for status, _ in await asyncio.gather(first, *tasks)} == {200}


async def test_whoever_gathers_waits_no_longer_in_all_than_a_request_may(world: World) -> None:
    first = await world.first()
    configure(world, request_timeout=0.3)
    for status, said in await asyncio.gather(*world.many("a", "b")):
        assert (status, said["error"]["code"]) == (504, "engine_timeout")
        assert "server.request_timeout" in said["error"]["message"]
    world.answer()
    assert (await first)[0] == 200
    await until(lambda: world.driver.held == 0)
