"""The daemon's admin API from the other end of its Unix socket. The only part of the command line with HTTP."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
from yarl import URL

from supervisor.errors import DaemonRefused, NoDaemon, OperatorError

INSTANT = aiohttp.ClientTimeout(total=10)
"""For what the daemon answers from memory; a start and a log that is followed have no limit."""

_LINE = 1 << 20
"""Bytes of the longest line that is read: an engine's log may hold one of 64 KiB, each letter escaped."""

LONG = aiohttp.ClientTimeout(total=120)
"""For what it looks up in many rows."""

ENDLESS = aiohttp.ClientTimeout(total=None)


class Refused(DaemonRefused):
    """The daemon said no. `reason` is its error code, `log` the engine's last lines where an engine failed."""

    def __init__(self, message: str, *, reason: str = "refused", log: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.reason = reason
        self.log = tuple(log)


class Client:
    """One connection to the daemon. Raises NoDaemon where nobody answers, Refused where it says no."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    async def __aenter__(self) -> Client:
        connector = aiohttp.UnixConnector(path=str(self._socket))
        self._session = aiohttp.ClientSession(connector=connector, read_bufsize=_LINE)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def status(self) -> dict[str, Any]:
        return await self._json("GET", "/status", INSTANT)

    async def why(self, name: str) -> dict[str, Any]:
        return await self._json("GET", f"/why/{quote(name, safe='')}", INSTANT)

    async def requests(self) -> list[dict[str, Any]]:
        """Those in flight, oldest first."""
        return list((await self._json("GET", "/requests", INSTANT))["requests"])

    async def cancel(self, number: str) -> str:
        """A request in flight, by the number that it is listed with."""
        path = f"/requests/{quote(number, safe='')}/cancel"
        return str((await self._json("POST", path, INSTANT)).get("message", ""))

    async def why_request(self, name: str) -> dict[str, Any]:
        return await self._json("GET", f"/requests/{quote(name, safe='')}", INSTANT)

    async def decisions(self, name: str | None, since: float | None, limit: int) -> dict[str, Any]:
        """The newest about a model or profile, oldest first. `since`: seconds back."""
        query: dict[str, str | float] = {"limit": limit}
        query |= {"model": name} if name is not None else {}
        query |= {"since": since} if since is not None else {}
        return await self._json("GET", f"/decisions?{urlencode(query)}", INSTANT)

    async def activity(self, **wanted: str | float | None) -> list[dict[str, Any]]:
        """Requests, or their totals; see the daemon's GET /activity for what may be wanted. None: left out."""
        query = {name: value for name, value in wanted.items() if value is not None}
        answer = await self._json("GET", f"/activity?{urlencode(query)}", LONG)
        return list(answer.get("totals") or answer.get("requests") or ())

    async def start(self, profile: str, *, pin: bool | None = None) -> str:
        """Waits until the engine is ready, however long it loads."""
        query = "" if pin is None else f"?pin={pin:d}"
        return str((await self._json("POST", f"{_path(profile)}/start{query}", ENDLESS)).get("message", ""))

    async def stop(self, profile: str, *, now: bool = False) -> str:
        query = "?now=1" if now else ""
        return str((await self._json("POST", f"{_path(profile)}/stop{query}", ENDLESS)).get("message", ""))

    async def release(self, gpu: str) -> str:
        return str(
            (await self._json("POST", f"/gpus/{quote(gpu, safe='')}/release", INSTANT)).get("message", "")
        )

    async def set_mode(self, name: str, seconds: float | None) -> str:
        query = "" if seconds is None else f"?seconds={seconds:g}"
        return str(
            (await self._json("POST", f"/mode/{quote(name, safe='')}{query}", INSTANT)).get("message", "")
        )

    async def plan_mode(self, name: str) -> dict[str, Any]:
        return await self._json("GET", f"/mode/{quote(name, safe='')}/plan", INSTANT)

    async def plan_reload(self) -> dict[str, Any]:
        return await self._json("GET", "/reload", LONG)

    async def reload(self) -> dict[str, Any]:
        return await self._json("POST", "/reload", LONG)

    async def lend(self, wish: dict[str, Any]) -> dict[str, Any]:
        """Waits until the loan is granted."""
        return await self._json("POST", "/loans", ENDLESS, wish)

    @contextlib.asynccontextmanager
    async def held_loan(self, wish: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """A loan that lasts as long as the context."""
        async with self._ask("POST", "/loans", ENDLESS, wish | {"held": True}) as response:
            yield json.loads(await response.content.readline())

    async def take_back(self, name: str) -> str:
        return str((await self._json("DELETE", f"/loans/{quote(name, safe='')}", INSTANT)).get("message", ""))

    async def all_logs(
        self, *, profile: str | None, since: float | None, limit: int, follow: bool
    ) -> AsyncIterator[dict[str, Any] | None]:
        """Entries of all logs, or of one; None once all that was there is told; with `follow` then each `new` one."""
        query: dict[str, str | float] = {"limit": limit, "follow": int(follow)}
        query |= {"profile": profile} if profile is not None else {}
        query |= {"since": since} if since is not None else {}
        async with self._ask("GET", f"/logs?{urlencode(query)}", ENDLESS) as response:
            for _ in range(int(json.loads(await response.content.readline())["past"])):
                yield json.loads(await response.content.readline()) | {"new": False}
            yield None
            while line := await response.content.readline():
                yield json.loads(line) | {"new": True}

    async def logs(self, profile: str, *, lines: int, follow: bool) -> AsyncIterator[bytes]:
        path = f"{_path(profile)}/logs?lines={lines}" + ("&follow=1" if follow else "")
        async with self._ask("GET", path, ENDLESS) as response:
            async for chunk in response.content.iter_any():
                yield chunk

    async def _json(
        self, method: str, path: str, timeout: aiohttp.ClientTimeout, body: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        async with self._ask(method, path, timeout, body) as response:
            answer = await response.json()
        return answer if isinstance(answer, dict) else {}

    @contextlib.asynccontextmanager
    async def _ask(
        self, method: str, path: str, timeout: aiohttp.ClientTimeout, body: dict[str, Any] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        url = URL(f"http://llmd{path}", encoded=True)
        try:
            async with self._session.request(method, url, timeout=timeout, json=body) as response:
                if response.status >= 400:
                    raise await _refusal(response)
                yield response
        except aiohttp.ClientConnectorError as error:
            raise self._unreachable(error.os_error) from None
        except TimeoutError:
            raise OperatorError(f"the daemon at {self._socket} does not answer") from None
        except (aiohttp.ClientError, ValueError) as error:
            raise OperatorError(f"the daemon at {self._socket} broke off: {error}") from None

    def _unreachable(self, error: OSError) -> OperatorError:
        if isinstance(error, PermissionError):
            return OperatorError(f"you may not open {self._socket}: be root, or join the group it belongs to")
        hint = "start it with `llmd serve` or `systemctl start llmd`"
        return NoDaemon(f"nobody answers at {self._socket}; {hint}")


def _path(profile: str) -> str:
    return f"/profiles/{quote(profile, safe='')}"


async def _refusal(response: aiohttp.ClientResponse) -> Refused:
    try:
        error = (await response.json())["error"]
        return Refused(error["message"], reason=str(error.get("code")), log=error.get("log") or ())
    except (aiohttp.ContentTypeError, ValueError, KeyError, TypeError):
        return Refused(f"the daemon answered {response.status} {response.reason}")
