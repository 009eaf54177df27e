"""/ui/ on the public port: its files, signing in, what it reads and what its buttons do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web

from supervisor.errors import BadRequest, Forbidden, LlmdError, RouteNotFound, Unauthorized
from supervisor.host.logbook import log
from supervisor.web import query
from supervisor.web.auth import Keyring
from supervisor.web.driving import Driver
from supervisor.web.invitation import invite
from supervisor.web.patience import comes, hurried
from supervisor.web.traffic import Traffic
from supervisor.web.ui import UI
from supervisor.web.ui.gate import COOKIE, LASTS, Gate, Session, check_origin
from supervisor.web.ui.history import EVERY, History
from supervisor.web.ui.picture import Picture, paint
from supervisor.web.ui.stream import PAUSE, SILENCE, Stream, drop, open_events, put
from supervisor.web.ui.tail import Look, OfDaemon, OfEngine, look

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

SAFE = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
"""On everything below /ui/. With no referrer at all browsers would not tell the origin of a form either."""

_FILES = Path(__file__).parent / "static"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_LONGEST_FORM = 8192
_MOST_DECISIONS = 500
_PATIENCE = 1.0
"""Seconds that a button waits for what came of it: most refusals come at once."""


class Dashboard:
    def __init__(self, driver: Driver, keyring: Keyring, traffic: Traffic) -> None:
        self._driver, self._traffic = driver, traffic
        self._gate = Gate(lambda: driver.config, keyring)
        self._history = History()
        self._picture: Picture = {}
        self._stream = Stream(self._painted)
        self._closing = asyncio.Event()
        self._under_way: set[asyncio.Task[str]] = set()
        self._files = {file.name: (file.read_bytes(), _TYPES[file.suffix]) for file in _FILES.iterdir()}

    def app(self) -> web.Application:
        app = web.Application()
        app.on_response_prepare.append(_make_safe)
        app.cleanup_ctx.append(self._sampling)
        app.on_shutdown.append(self._close)
        app.router.add_get("", self._bare)
        app.router.add_get("/", self._page)
        app.router.add_get("/signin", self._sign_in_page)
        app.router.add_post("/signin", self._sign_in)
        app.router.add_get("/static/{name}", self._file)
        app.router.add_get("/me", self._me)
        for path, read in self._readers().items():
            app.router.add_get(path, self._for_lookers(read))
        for path, act in self._actions().items():
            app.router.add_post(path, self._for_admins(act))
        app.router.add_post("/signout", self._sign_out)
        return app

    def _readers(self) -> dict[str, Handler]:
        return {
            "/events": self._events,
            "/history": self._lines,
            "/decisions": self._decisions,
            "/why/{name:.+}": self._why,
            "/mode/{name}/plan": self._plan,
            "/reload": self._plan_reload,
            "/logs/{name:.+}": self._logs,
        }

    def _actions(self) -> dict[str, Callable[[web.Request], Awaitable[str]]]:
        start = self._driver.operators.start
        return {
            "/profiles/{name:.+}/start": lambda request: self._begin(request, start),
            "/profiles/{name:.+}/pin": lambda request: self._begin(request, partial(start, pin=True)),
            "/profiles/{name:.+}/unpin": lambda request: self._begin(request, partial(start, pin=False)),
            "/profiles/{name:.+}/stop": lambda request: self._begin(request, self._driver.operators.stop),
            "/profiles/{name:.+}/sleep": lambda request: self._begin(request, self._driver.operators.sleep),
            "/requests/{name}/cancel": self._cancel,
            "/mode/{name}": self._set_mode,
            "/reload": self._reload,
            "/gpus/{name}/release": self._release,
        }

    # Who may

    def _for_lookers(self, handler: Handler) -> Handler:
        async def checked(request: web.Request) -> web.StreamResponse:
            self._gate.look(request)
            return await handler(request)

        return checked

    def _for_admins(self, act: Callable[[web.Request], Awaitable[str]]) -> Handler:
        async def checked(request: web.Request) -> web.StreamResponse:
            session = self._gate.act(request)
            log("dashboard_action", source=session.source, action=request.path.removeprefix(UI))
            return web.json_response({"message": await act(request)})

        return checked

    async def _sign_in(self, request: web.Request) -> web.StreamResponse:
        if (request.content_length or 0) > _LONGEST_FORM:
            raise BadRequest("this form is too long")
        check_origin(request)
        invite(request)
        try:
            with hurried(request, self._driver.config.server.body_timeout):
                form = await request.post()
            session = self._gate.sign_in(str(form.get("key", "")).strip())
        except (Unauthorized, Forbidden) as error:
            log("sign_in_refused", "WARNING", client=request.remote, message=error.message)
            return _see("signin?refused=" + ("scope" if isinstance(error, Forbidden) else "key"))
        response = _see("")
        _remember(response, session)
        return response

    async def _sign_out(self, request: web.Request) -> web.StreamResponse:
        check_origin(request)
        self._gate.sign_out(self._gate.look(request))
        response = web.json_response({"message": "signed out"})
        response.del_cookie(COOKIE, path=UI)
        return response

    async def _me(self, request: web.Request) -> web.StreamResponse:
        """Who looks. A browser on this host is let in here where there are no keys."""
        session = self._gate.look(request)
        may_act = self._gate.may_act(session)
        response = web.json_response({"source": session.source, "admin": may_act, "token": session.token})
        response.headers["Cache-Control"] = "no-store"
        if request.cookies.get(COOKIE) != session.name:
            _remember(response, session)
        return response

    # Files

    async def _bare(self, request: web.Request) -> web.StreamResponse:
        return _see("")

    async def _page(self, request: web.Request) -> web.StreamResponse:
        return self._named("index.html")

    async def _sign_in_page(self, request: web.Request) -> web.StreamResponse:
        return self._named("signin.html")

    async def _file(self, request: web.Request) -> web.StreamResponse:
        return self._named(request.match_info["name"])

    def _named(self, name: str) -> web.Response:
        if name not in self._files:
            raise RouteNotFound(f"the dashboard has no file {name!r}")
        body, kind = self._files[name]
        headers = {"Cache-Control": "no-cache"}
        return web.Response(body=body, content_type=kind, charset="utf-8", headers=headers)

    # What it reads

    async def _events(self, request: web.Request) -> web.StreamResponse:
        session = self._gate.look(request)
        return await self._stream.send(request, lambda: self._gate.alive(session))

    async def _lines(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(self._history.describe())

    async def _decisions(self, request: web.Request) -> web.StreamResponse:
        """`about`: a model or profile; `limit`: the newest so many."""
        limit = query.limit(request, _MOST_DECISIONS)
        found = await self._driver.decisions(request.query.get("about") or None, None, limit)
        return web.json_response({"decisions": found})

    async def _why(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(self._driver.why(request.match_info["name"]))

    async def _plan(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(self._driver.operators.plan_mode(request.match_info["name"]))

    async def _plan_reload(self, request: web.Request) -> web.StreamResponse:
        """For those alone who may act on it: an error quotes the files."""
        if not self._gate.may_act(self._gate.look(request)):
            raise Forbidden('this key may only look: its scope is "read"')
        return web.json_response(await self._driver.reload(plan=True))

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        """Of a profile's engine, or with the name "daemon:" of llmd itself."""
        session = self._gate.look(request)
        source = self._log(request)
        response = await open_events(request)
        with contextlib.suppress(TimeoutError, ConnectionError):
            await self._follow(response, source, lambda: self._gate.alive(session))
        drop(request)
        return response

    def _log(self, request: web.Request) -> Look:
        if request.match_info["name"] == "daemon:":  # no profile has such a name
            return OfDaemon()
        return OfEngine(self._driver.log_path(self._profile(request)))

    async def _follow(self, response: web.StreamResponse, source: Look, alive: Callable[[], bool]) -> None:
        quiet = 0
        while alive() and not self._closing.is_set():
            lines = await look(source)
            quiet = 0 if lines else quiet + 1
            if lines:
                await put(response, b"data: " + json.dumps(lines).encode() + b"\n\n")
            elif not quiet % round(SILENCE / PAUSE):
                await put(response, b": still here\n\n")
            await comes(self._closing, PAUSE)

    # What its buttons do

    def _profile(self, request: web.Request) -> str:
        name = request.match_info["name"]
        if name not in self._driver.config.profiles:
            raise RouteNotFound(f"no profile {name!r}")
        return name

    async def _begin(self, request: web.Request, ask: Callable[[str], Coroutine[Any, Any, str]]) -> str:
        """A start takes minutes, and browsers hold few connections: it is left to itself when it is under way."""
        profile = self._profile(request)
        task = asyncio.create_task(ask(profile))
        self._under_way.add(task)
        task.add_done_callback(self._over)
        done, _ = await asyncio.wait({task}, timeout=_PATIENCE)
        return task.result() if done else f"{profile}: under way"

    def _over(self, task: asyncio.Task[str]) -> None:
        self._under_way.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, LlmdError):
            log("dashboard_action_failed", "WARNING", message=error.message)

    async def _cancel(self, request: web.Request) -> str:
        return self._traffic.cancel(request.match_info["name"])

    async def _set_mode(self, request: web.Request) -> str:
        """`hours`: how long; without it until told otherwise."""
        seconds = query.duration(request, "hours", "hours")
        return await self._driver.operators.set_mode(request.match_info["name"], seconds)

    async def _reload(self, request: web.Request) -> str:
        answer = await self._driver.reload()
        return "changed; the journal has what" if answer["changes"] else "nothing differs"

    async def _release(self, request: web.Request) -> str:
        return await self._driver.operators.release(request.match_info["name"])

    # Beside

    def _painted(self) -> Picture:
        now = self._traffic.in_flight(), self._traffic.recent(), self._traffic.speeds(), time.time()
        self._picture = paint(
            self._driver.config, self._driver.status(), *now, told=self._picture.get("recent", {})
        )
        return self._picture

    async def _sampling(self, app: web.Application) -> AsyncIterator[None]:
        task = asyncio.create_task(self._sample(), name="history")
        yield
        task.cancel()

    async def _sample(self) -> None:
        while True:
            self._history.add(self._driver.status())
            self._traffic.speeds()  # so that whoever asks once hears of the seconds before
            await asyncio.sleep(EVERY)

    async def _close(self, app: web.Application) -> None:
        self._closing.set()
        for task in self._under_way:
            task.cancel()
        await self._stream.close()


async def _make_safe(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(SAFE)


def _see(page: str) -> web.Response:
    return web.Response(status=303, headers={"Location": UI + page})


def _remember(response: web.StreamResponse, session: Session) -> None:
    kept: dict[str, Any] = {"max_age": int(LASTS), "httponly": True, "samesite": "Strict", "path": UI}
    response.set_cookie(COOKIE, session.name, **kept)
