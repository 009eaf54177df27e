"""The public port's sockets: opened, waited for where the tailnet is not up yet, closed in order."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from functools import partial

from aiohttp import web

from supervisor.errors import OperatorError
from supervisor.host.logbook import log
from supervisor.host.tailnet import TAILNET, resolve
from supervisor.web.auth import Keyring
from supervisor.web.driving import Driver
from supervisor.web.front import Front
from supervisor.web.protocol import Runner
from supervisor.web.router import Router
from supervisor.web.traffic import Traffic

_LOOK_AGAIN = 5.0
"""Seconds between looks for the tailnet's address; nothing announces it."""

_NOT_YET = (errno.EADDRNOTAVAIL, None)
"""An address that is there but cannot be bound yet; from Python 3.13 on asyncio leaves the number out."""


class Server:
    """`listening` are URLs that are open, `waiting_for` the addresses, as configured, that are not there yet."""

    def __init__(self, driver: Driver, keyring: Keyring) -> None:
        self._driver, self._config = driver, driver.config.server
        self.traffic = Traffic()
        self.router = router = Router(driver, keyring, self.traffic)
        self._runner = Runner(
            router.app(),
            connection=partial(Front, short=router.short_way()),
            header_timeout=self._config.header_timeout,
            client_timeout=self._config.client_timeout,
            shutdown_timeout=self._config.drain,
        )
        self._waiters: list[asyncio.Task[None]] = []
        self.listening: list[str] = []
        self.waiting_for: list[str] = []

    async def open(self) -> None:
        """Raises OperatorError where an address cannot be had; the tailnet's is waited for instead."""
        await self._runner.setup()
        for listen in self._config.listen:
            if not await self._listen(listen):
                self.waiting_for.append(listen)
                self._waiters.append(asyncio.create_task(self._wait_for(listen), name=f"listen {listen}"))

    async def _listen(self, listen: str) -> bool:
        address = resolve(listen)
        if address is None:
            return False
        site = web.TCPSite(self._runner, *address)
        try:
            await site.start()
        except OSError as error:
            if listen.startswith(f"{TAILNET}:") and error.errno in _NOT_YET:
                return False
            raise OperatorError(f"cannot listen on {listen}: {error.strerror or error}") from error
        self.listening.append(_url(address[0], site))
        return True

    async def _wait_for(self, listen: str) -> None:
        log("waiting for the tailnet", listen=listen)
        while True:
            await asyncio.sleep(_LOOK_AGAIN)
            if await self._listened(listen):
                break
        self.waiting_for.remove(listen)
        log("listening", listen=listen, url=self.listening[-1])

    async def _listened(self, listen: str) -> bool:
        try:
            return await self._listen(listen)
        except OperatorError as error:  # the port may be taken, and come free
            log("cannot listen yet", "WARNING", listen=listen, error=error.message)
            return False

    async def stop_accepting(self) -> None:
        """No new connections; what is in flight goes on."""
        for waiter in self._waiters:
            waiter.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await waiter
        self._waiters.clear()
        for site in list(self._runner.sites):
            await site.stop()
        self.listening.clear()
        self.waiting_for.clear()

    async def close(self) -> None:
        """Wait `server.drain` for what is in flight, then cut it off."""
        await self.stop_accepting()
        self._runner.wait_at_most(self._driver.config.server.drain)
        await self._runner.cleanup()


def _url(host: str, site: web.TCPSite) -> str:
    """With the port that the system gave, where 0 was asked for."""
    server = site._server
    sockets = getattr(server, "sockets", None)
    port = sockets[0].getsockname()[1] if sockets else site._port
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
