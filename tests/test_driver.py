"""The shell alone, in this process: orders that cross with work under way."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from supervisor.config import load
from supervisor.core import events, orders
from supervisor.core.lifecycle import State
from supervisor.core.routing import Ask
from supervisor.driver import Driver
from supervisor.errors import ModelNotFound
from supervisor.host import process
from supervisor.host.gpus import Gpus
from supervisor.host.journal import Journal
from tests.daemon import QUICK, Llmd, profile


async def test_an_engine_ordered_killed_before_it_was_spawned_does_not_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spawn, asked, go = process.spawn, asyncio.Event(), asyncio.Event()

    async def held(launch: process.Launch) -> Any:
        asked.set()
        await go.wait()
        return await spawn(launch)

    monkeypatch.setattr(process, "spawn", held)
    installed = Llmd({"tiny_0": profile("tiny")}, **QUICK)
    driver = Driver(load(installed.config), Journal(installed.home / "state"), Gpus())
    try:
        await driver.open()
        driver.post(events.StartAsked("t", "tiny_0"))
        await asyncio.wait_for(asked.wait(), 10)
        engine = driver.fleet.engines["tiny_0"]
        driver._obey(orders.Kill(engine.incarnation or ""))
        go.set()
        assert await driver.until(lambda fleet: fleet.engines["tiny_0"].state is State.BACKOFF, 10)
        assert installed.leftovers() == []
    finally:
        await driver.close()
        installed.close()


async def test_a_loan_granted_in_the_moment_its_asker_leaves_is_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed = Llmd({"tiny_0": profile("tiny")}, **QUICK)
    driver = Driver(load(installed.config), Journal(installed.home / "state"), Gpus())
    post = driver.post
    try:
        await driver.open()
        asking = asyncio.create_task(driver.operators.lend("comfy", (), 1 << 30, 60.0, 1))

        def watched(event: events.Event) -> None:
            post(event)
            if any(loan.until is not None for loan in driver.fleet.loans.values()):
                asking.cancel()

        monkeypatch.setattr(driver, "post", watched)
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert (driver.fleet.loans, driver.operators.borrowers) == ({}, {})
    finally:
        await driver.close()
        installed.close()


async def test_a_lease_at_once_is_the_one_that_waiting_gives() -> None:
    """And is told like it to who asks why; what nothing can take at once is None, until it is waited for."""
    installed = Llmd({"tiny_0": profile("tiny", max_concurrent=1)}, **QUICK)
    driver = Driver(load(installed.config), Journal(installed.home / "state"), Gpus())
    try:
        await driver.open()
        assert driver.lease_at_once(Ask("tiny", request="cold")) is None
        async with driver.lease(Ask("tiny", request="waited")) as waited:
            assert driver.lease_at_once(Ask("tiny", request="full")) is None
        async with driver.lease(Ask("tiny", request="warm")) as warm:
            pass
        lease = driver.lease_at_once(Ask("tiny", request="at once"))
        assert lease is not None
        assert (waited.hit, warm.hit, lease.hit) == ("cold", "warm", "warm")
        assert (lease.profile, lease.reason, lease.incarnation) == (
            warm.profile,
            warm.reason,
            warm.incarnation,
        )
        engine = driver.engines.get(lease.incarnation)
        assert engine is not None
        assert (engine.in_flight, len(driver.fleet.leases)) == (1, 1)
        for _ in range(2):
            driver.give_back(lease)
            assert (engine.in_flight, len(driver.fleet.leases)) == (0, 0)
        told = [driver.why_request(name) for name in ("warm", "at once")]
        assert told[0]["tries"] == told[1]["tries"]
        assert told[1]["tries"][0]["granted"] == "tiny_0"
        (tried,) = driver.why_request("waited")["tries"]
        assert (tried["granted"], tried["waited"] > 0) == ("tiny_0", True)
        with pytest.raises(ModelNotFound):
            driver.why_request("full")
    finally:
        await driver.close()
        installed.close()
