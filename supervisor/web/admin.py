"""The admin API: JSON on a Unix socket, for the people of this host. Who connects is asked of the kernel."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import json
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Collection
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import msgspec
from aiohttp import web

from supervisor.config import Config
from supervisor.core.devices import MIB
from supervisor.errors import (
    BadRequest,
    EngineFailed,
    LlmdError,
    ModelNotFound,
    OperatorError,
    RouteNotFound,
    Unauthorized,
)
from supervisor.host import enginelog
from supervisor.host.activity import Wanted
from supervisor.host.chronicle import stamp
from supervisor.host.logbook import log
from supervisor.host.logstream import DAEMON, Entry, Logs
from supervisor.web import query
from supervisor.web.driving import Driver
from supervisor.web.invitation import invite
from supervisor.web.protocol import Runner
from supervisor.web.traffic import Traffic

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_SO_PEERGROUPS = 59
"""Of asm-generic/socket.h, since Linux 4.13; Python has no name for it."""

_MOST = 100_000
"""Decisions or requests in one answer."""

_LOOK_AGAIN = 0.25
_MODE = 0o660
_TAIL = 1 << 20
"""Bytes of a log that are searched for its last lines."""


class LoanWish(msgspec.Struct, frozen=True):
    """The body of POST /loans. Bytes on each GPU, seconds; `held`: only as long as the connection stays."""

    borrower: str
    gpus: tuple[int | str, ...]
    size: Annotated[int, msgspec.Meta(ge=MIB)]
    ttl: Annotated[float, msgspec.Meta(gt=0, lt=query.LONGEST)]
    pid: int | None = None
    held: bool = False


class AdminServer:
    def __init__(self, driver: Driver, traffic: Traffic) -> None:
        self._driver, self._traffic = driver, traffic
        self._path = driver.config.server.admin_socket
        self._runner = Runner(
            self._app(), header_timeout=driver.config.server.header_timeout, shutdown_timeout=1
        )

    def _app(self) -> web.Application:
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/status", self._status)
        app.router.add_get("/why/{name:.+}", self._why)
        app.router.add_get("/requests", self._requests)
        app.router.add_get("/requests/{name:.+}", self._request)
        app.router.add_post("/requests/{number}/cancel", self._cancel)
        app.router.add_get("/decisions", self._decisions)
        app.router.add_get("/activity", self._activity)
        app.router.add_get("/logs", self._all_logs)
        app.router.add_get("/reload", self._plan_reload)
        app.router.add_post("/reload", self._reload)
        app.router.add_post("/mode/{name}", self._set_mode)
        app.router.add_get("/mode/{name}/plan", self._plan_mode)
        app.router.add_post("/gpus/{name}/release", self._release)
        app.router.add_post("/loans", self._lend)
        app.router.add_delete("/loans/{name}", self._take_back)
        app.router.add_post("/profiles/{name:.+}/start", self._start)
        app.router.add_post("/profiles/{name:.+}/stop", self._stop)
        app.router.add_get("/profiles/{name:.+}/logs", self._logs)
        return app

    async def open(self) -> None:
        """Replaces a socket left by an earlier daemon. Raises OperatorError where it cannot be made."""
        await self._runner.setup()
        listener = _bound(self._path, self._driver.config.server.admin_group)
        await web.SockSite(self._runner, listener).start()

    async def close(self) -> None:
        await self._runner.cleanup()
        self._path.unlink(missing_ok=True)

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            _admit(request, self._path)
            return await handler(request)
        except LlmdError as error:
            return _refusal(error)
        except web.HTTPException as error:
            return _refusal(RouteNotFound(f"{request.method} {request.path}: {error.reason}"))

    async def _status(self, request: web.Request) -> web.StreamResponse:
        status, speeds = self._driver.status(), self._traffic.speeds()
        for engine in status["engines"]:
            engine["tokens_per_s"] = round(speeds.get(engine["profile"], 0.0), 1)
        return web.json_response(status)

    async def _why(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(self._driver.why(request.match_info["name"]))

    async def _requests(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"requests": self._traffic.listed()})

    async def _cancel(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"message": self._traffic.cancel(request.match_info["number"])})

    async def _request(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(self._driver.why_request(request.match_info["name"]))

    async def _decisions(self, request: web.Request) -> web.StreamResponse:
        """`model`: a model or profile; `since`: seconds back; `limit`: the newest so many."""
        limit, since = query.limit(request, _MOST), query.duration(request, "since")
        found = await self._driver.decisions(request.query.get("model"), since, limit)
        return web.json_response({"decisions": found})

    async def _activity(self, request: web.Request) -> web.StreamResponse:
        """As `decisions`, and `key`: a source; `failed`, `totals`: 1."""
        asked, limit = request.query, query.limit(request, _MOST)
        wanted = Wanted(asked.get("model"), asked.get("key"), _since(request), asked.get("failed") == "1")
        if asked.get("totals") == "1":
            totals = await self._driver.register.ask(lambda activity: activity.totals(wanted))
            return web.json_response({"totals": totals})
        requests = await self._driver.register.ask(lambda activity: activity.requests(wanted, limit))
        return web.json_response({"requests": requests})

    async def _plan_reload(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(await self._driver.reload(plan=True))

    async def _reload(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(await self._driver.reload())

    async def _set_mode(self, request: web.Request) -> web.StreamResponse:
        seconds = query.duration(request, "seconds")
        return web.json_response(
            {"message": await self._driver.operators.set_mode(request.match_info["name"], seconds)}
        )

    async def _plan_mode(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(self._driver.operators.plan_mode(request.match_info["name"]))

    async def _release(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        return web.json_response(
            {"message": await self._driver.operators.release(int(name) if name.isdecimal() else name)}
        )

    async def _lend(self, request: web.Request) -> web.StreamResponse:
        """Held: the answer stays open, and the loan ends with the connection that asked for it."""
        invite(request)
        try:
            wish = msgspec.json.decode(await request.read(), type=LoanWish)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadRequest(f"no wish for a loan: {error}") from None
        name, message = await self._driver.operators.lend(
            wish.borrower, wish.gpus, wish.size, wish.ttl, wish.pid
        )
        answer = {"name": name, "message": message}
        if not wish.held:
            return web.json_response(answer)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        try:
            await response.prepare(request)
            await response.write(json.dumps(answer).encode() + b"\n")
            await asyncio.sleep(wish.ttl)
        finally:
            with contextlib.suppress(ModelNotFound):  # its time ran out before
                self._driver.operators.take_back(name, "its borrower is done")
        return response

    async def _take_back(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"message": self._driver.operators.take_back(request.match_info["name"])})

    async def _start(self, request: web.Request) -> web.StreamResponse:
        profile = profile_named(request.match_info["name"], self._driver.config)
        pin = {"1": True, "0": False}.get(request.query.get("pin", ""))
        return web.json_response({"message": await self._driver.operators.start(profile, pin=pin)})

    async def _stop(self, request: web.Request) -> web.StreamResponse:
        profile = profile_named(request.match_info["name"], self._driver.config)
        at_once = request.query.get("now") == "1"
        return web.json_response({"message": await self._driver.operators.stop(profile, at_once=at_once)})

    async def _all_logs(self, request: web.Request) -> web.StreamResponse:
        """JSON lines: how many entries there are, those, and with `follow` each new one. `profile`: its log alone;
        `since`: seconds back; `limit`: the newest so many."""
        limit, after = query.limit(request, _MOST), _since(request)
        logs = Logs(self._paths(request.query.get("profile")))
        past = await asyncio.to_thread(logs.past, limit, after)
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        with contextlib.suppress(ConnectionResetError):  # the reader has seen enough
            await response.write(json.dumps({"past": len(past)}).encode() + b"\n")
            await response.write(b"".join(map(_entry, past)))
            if request.query.get("follow") == "1":
                async with contextlib.aclosing(logs.coming()) as coming:
                    async for entry in coming:
                        await response.write(_entry(entry))
        return response

    def _paths(self, name: str | None) -> dict[str, Path]:
        """Origin -> its log; of one profile, or of all and the daemon. Raises ModelNotFound."""
        if name is not None:
            profile = profile_named(name, self._driver.config)
            return {profile: self._driver.log_path(profile)}
        engines = {profile: self._driver.log_path(profile) for profile in self._driver.config.profiles}
        return engines | {DAEMON: self._driver.own_log}

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        path = self._driver.log_path(profile_named(request.match_info["name"], self._driver.config))
        lines = request.query.get("lines", "100")
        if not lines.isdecimal() or len(lines) > 9:
            raise BadRequest(f"lines={lines!r} is no number of lines", param="lines")
        response = web.StreamResponse(headers={"Content-Type": "text/plain; charset=utf-8"})
        await response.prepare(request)
        with contextlib.suppress(ConnectionResetError):  # the reader has seen enough
            await _send_log(response, path, int(lines), request.query.get("follow") == "1")
        return response


def _entry(entry: Entry) -> bytes:
    return json.dumps(asdict(entry)).encode() + b"\n"


def _since(request: web.Request) -> str | None:
    """The moment that is `since` seconds back, as logs date their lines. Raises BadRequest."""
    since = query.duration(request, "since")
    return None if since is None else stamp(datetime.now(UTC) - timedelta(seconds=since))


def profile_named(name: str, config: Config) -> str:
    """A profile's own name, or the name of a model that one profile alone serves. Raises ModelNotFound."""
    if name in config.profiles:
        return name
    serving = [profile.name for profile in config.profiles.values() if profile.model == name]
    if len(serving) == 1:
        return serving[0]
    if serving:
        raise ModelNotFound(f"several profiles serve {name!r}; name one of: {', '.join(serving)}")
    raise ModelNotFound(f"no profile is called {name!r}; there are: {', '.join(config.profiles) or 'none'}")


async def _send_log(response: web.StreamResponse, path: Path, lines: int, follow: bool) -> None:
    """As it was written. A log that is not there yet is empty."""
    position = await asyncio.to_thread(enginelog.size, path)
    text = await asyncio.to_thread(enginelog.last_bytes, path, _TAIL, position)
    await response.write(b"".join(text.splitlines(keepends=True)[-lines:] if lines else []))
    while follow:
        start, text = await asyncio.to_thread(enginelog.read_on, path, position)
        position = start + len(text)
        if text:
            await response.write(text)
        else:
            await asyncio.sleep(_LOOK_AGAIN)


def _bound(path: Path, group: str | None) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_socket():
            path.unlink()
        before = os.umask(0o777 & ~_MODE)  # never open to others, not even for a moment
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        if group is not None:
            os.chown(path, -1, grp.getgrnam(group).gr_gid)
    except (OSError, KeyError) as error:
        listener.close()
        raise OperatorError(f"cannot open the admin socket {path}: {error}") from error
    return listener


def _admit(request: web.Request, path: Path) -> None:
    """root, llmd's own user, and members of the socket's group. Raises Unauthorized."""
    peer = request.transport.get_extra_info("socket") if request.transport else None
    if peer is None:
        raise Unauthorized("the connection has gone")
    pid, uid, gid = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if not may_administer(uid, (gid, *_supplementary(peer)), path.stat()):
        log("admin_denied", "WARNING", uid=uid, pid=pid, request=f"{request.method} {request.path}")
        raise Unauthorized("this user may not administer llmd: join the group of its admin socket")


def may_administer(uid: int, groups: Collection[int], admin_socket: os.stat_result) -> bool:
    if uid in (0, os.getuid()):
        return True
    return admin_socket.st_gid in groups and bool(admin_socket.st_mode & stat.S_IWGRP)


def _supplementary(peer: socket.socket) -> tuple[int, ...]:
    """The process's own groups, as the kernel knows them: a service may have some that no file lists."""
    try:
        found = peer.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 1024)
    except OSError:  # more than fit
        return ()
    return struct.unpack(f"{len(found) // 4}I", found)


def _refusal(error: LlmdError) -> web.Response:
    log = list(error.log) if isinstance(error, EngineFailed) else []
    body = {"error": {"message": error.message, "code": error.code, "log": log}}
    return web.json_response(body, status=error.status)
