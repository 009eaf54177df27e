"""Other servers over the network: one pool of connections each, and a look at its models every so often.

TLS is verified, no redirect is followed, and no proxy of the environment is used: the key goes to the peer alone.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from supervisor.config import Config
from supervisor.config import Peer as Configured
from supervisor.config.secrets import peer_key
from supervisor.core import events
from supervisor.core.events import Event
from supervisor.core.peer import Listed
from supervisor.host.upstream import Connection, Pool

HOPS = "x-llmd-hops"
"""How often llmds have passed a request on; a list asked for with it has no peers' models."""

CONNECT = 10.0
"""Seconds for a connection."""

ANSWER = 10.0
"""Seconds for a list of models."""

MOST_BYTES = 4 << 20
MOST_MODELS = 2000

Post = Callable[[Event], None]


class Unfit(Exception):
    """What came is no list of models."""


class FarPool(Pool):
    """Connections to a peer, one for each request: over a network nothing tells whether a request that met a closed
    connection was read."""

    def __init__(self, url: str, key: str | None) -> None:
        super().__init__(Path(), key, CONNECT)
        self._url = urlsplit(url)
        self.host, self.prefix = self._url.netloc, self._url.path.rstrip("/")

    async def _connect(self) -> Connection:
        ssl = self._url.scheme == "https"
        port = self._url.port or (443 if ssl else 80)
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: Connection(self), self._url.hostname or "", port, ssl=ssl or None
        )
        return connection

    def put(self, connection: Connection) -> None:
        connection.transport.close()


class Contact:
    """One peer as the shell holds it. `session` asks for its list, `pool` passes requests on."""

    def __init__(self, name: str, config: Configured, key: str | None, post: Post) -> None:
        self.name, self.config, self._key, self._post = name, config, key, post
        self._session: aiohttp.ClientSession | None = None
        self._watch: asyncio.Task[None] | None = None
        self.pool = FarPool(config.url, key)

    @property
    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
                headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                read_bufsize=1 << 18,
                middlewares=(_unled,),
            )
        return self._session

    def has(self, key: str | None) -> bool:
        return self._key == key

    def open(self) -> None:
        """Look at it from now on."""
        self._watch = asyncio.create_task(self.watch())

    def rest(self) -> None:
        """Look at it no more; its connections stay for what is in flight."""
        if self._watch:
            self._watch.cancel()

    async def watch(self) -> None:
        """Tell what it lists, or that it is down, until cancelled."""
        while True:
            self._post(await self._look())
            await asyncio.sleep(self.config.interval)

    async def _look(self) -> Event:
        try:
            async with asyncio.timeout(ANSWER):
                return events.PeerHeard(self.name, listed(await self._list()))
        except TimeoutError:
            return events.PeerLost(self.name, f"no list of models within {ANSWER:g} s")
        except (aiohttp.ClientError, OSError) as error:
            return events.PeerLost(self.name, _words(error))
        except Unfit as error:
            return events.PeerLost(self.name, str(error))

    async def _list(self) -> bytes:
        headers = {HOPS: "1", "Accept-Encoding": "identity"}
        url = f"{self.config.url}/v1/models"
        async with self.session.get(url, headers=headers, allow_redirects=False) as answer:
            if answer.status in (401, 403):
                raise Unfit("it does not accept the key")
            if answer.status != 200:
                raise Unfit(f"GET /v1/models was answered {answer.status}")
            body = bytearray()
            async for piece in answer.content.iter_any():
                body += piece
                if len(body) > MOST_BYTES:
                    raise Unfit("its list of models has no end")
            return bytes(body)

    async def close(self) -> None:
        if self._watch:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        self.pool.close()
        if self._session:
            await self._session.close()


class Peers:
    """All of them."""

    def __init__(self, config: Config, environ: Mapping[str, str], post: Post) -> None:
        self._post = post
        self._contacts = {
            name: Contact(name, peer, peer_key(peer, environ)[0], post) for name, peer in config.peers.items()
        }
        self._former: set[Contact] = set()
        """No longer asked; requests may still be on them."""

    def __getitem__(self, name: str) -> Contact:
        return self._contacts[name]

    def __contains__(self, name: str) -> bool:
        return name in self._contacts

    def open(self) -> None:
        for contact in self._contacts.values():
            contact.open()

    def rotated(self, keys: Mapping[str, str | None]) -> set[str]:
        """Peers whose key is not the one in `keys` any more."""
        return {name for name in keys if name in self and not self[name].has(keys[name])}

    def reconfigure(self, config: Config, keys: Mapping[str, str | None]) -> None:
        """Those that changed are other contacts from now on; what is in flight on the former ones ends there."""
        former, self._contacts = self._contacts, {}
        for name, peer in config.peers.items():
            known = former.get(name)
            if known and known.config == peer and known.has(keys[name]):
                self._contacts[name] = former.pop(name)
                continue
            self._contacts[name] = Contact(name, peer, keys[name], self._post)
            self._contacts[name].open()
        for contact in former.values():
            contact.rest()
            self._former.add(contact)

    async def close(self) -> None:
        for contact in (*self._contacts.values(), *self._former):
            await contact.close()


async def _unled(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """aiohttp's websockets follow redirects. Raises WSServerHandshakeError."""
    answer = await handler(request)
    if 300 <= answer.status < 400 and "Upgrade" in request.headers:
        answer.close()
        raise aiohttp.WSServerHandshakeError(request.request_info, (), status=answer.status)
    return answer


def listed(body: bytes) -> dict[str, Listed]:
    """Model -> what OpenAI's list says of it; vLLM and llmd add the context, llmd the state. Raises Unfit."""
    try:
        entries = json.loads(body)["data"]
        found = {entry["id"]: _listed(entry) for entry in entries[:MOST_MODELS]}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Unfit("its list of models is none") from None
    return {name: model for name, model in found.items() if isinstance(name, str)}


def _listed(entry: Mapping[str, Any]) -> Listed:
    window, status = entry.get("max_model_len"), entry.get("status")
    state = status.get("value") if isinstance(status, dict) else None
    known = type(window) is int and window > 0
    return Listed(window if known else None, state is None or state in ("ready", "loaded"))


def _words(error: Exception) -> str:
    """Without the URL's path and whatever else an exception may quote."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return "its certificate is not valid"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"cannot be reached: {error.os_error.strerror or type(error.os_error).__name__}"
    return f"cannot be asked: {type(error).__name__}"
