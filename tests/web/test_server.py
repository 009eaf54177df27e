"""The public port's sockets: which are bound, and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from fakes import FakeDriver

from supervisor.config import Config
from supervisor.config import Server as Settings
from supervisor.errors import OperatorError
from supervisor.host import tailnet
from supervisor.web import server
from supervisor.web.auth import Keyring
from supervisor.web.server import Server

ABSENT = "100.64.0.5"
"""In the tailnet's range, on no interface of this host: seen, but not to be bound."""


@pytest.fixture
async def port(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    monkeypatch.setattr(server, "_LOOK_AGAIN", 0.01)
    config = Config(path=Path("llmd.toml"), server=Settings(listen=("tailscale:0",), drain=0.1))
    made = Server(FakeDriver(config), Keyring({}))
    yield made
    await made.close()
    assert bound() == set()


def bound() -> set[str]:
    """The addresses that this process listens on."""
    return {c.laddr.ip for c in psutil.Process().net_connections("tcp") if c.status == psutil.CONN_LISTEN}


async def until_listening(port: Server) -> None:
    async with asyncio.timeout(5):
        while not port.listening:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("seen", [None, ABSENT], ids=["no address", "an address that cannot be bound yet"])
async def test_the_tailnet_is_waited_for(
    port: Server, seen: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str | None] = []

    def tailnet_address() -> str | None:
        looks.append(seen if len(looks) < 3 else "127.0.0.1")
        assert bound() == set()
        return looks[-1]

    monkeypatch.setattr(tailnet, "tailnet_address", tailnet_address)
    await port.open()
    assert (port.listening, port.waiting_for) == ([], ["tailscale:0"])
    await until_listening(port)
    assert looks == [seen, seen, seen, "127.0.0.1"]
    assert (bound(), port.waiting_for) == ({"127.0.0.1"}, [])


async def test_an_address_that_is_not_the_tailnets_is_not_waited_for() -> None:
    config = Config(path=Path("llmd.toml"), server=Settings(listen=(f"{ABSENT}:0",), drain=0.1))
    port = Server(FakeDriver(config), Keyring({}))
    with pytest.raises(OperatorError, match=f"cannot listen on {ABSENT}:0"):
        await port.open()
    await port.close()


async def test_a_wait_can_be_given_up(port: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tailnet, "tailnet_address", lambda: None)
    await port.open()
    await port.stop_accepting()
    assert port.waiting_for == []
