"""The public port: who asks, for what, on which engine; every answer and every error in OpenAI's shape.

authenticate -> read the model -> lease -> relay -> release.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial

from aiohttp import web
from msgspec.structs import replace
from prometheus_client import CONTENT_TYPE_LATEST

from supervisor.config import Profile
from supervisor.core.command import names_of
from supervisor.core.routing import LONGEST_NAME, Ask
from supervisor.errors import (
    BadRequest,
    BodyTooLarge,
    EngineDied,
    InternalError,
    LlmdError,
    MethodNotAllowed,
    ModelNotFound,
    RouteNotFound,
)
from supervisor.web import catalogue, openapi
from supervisor.web.asking import ask_of
from supervisor.web.auth import Keyring, presented_key
from supervisor.web.batching import Batches
from supervisor.web.bodies import Body, read_body
from supervisor.web.contents import read
from supervisor.web.conversation import by_name
from supervisor.web.demands import without_tools
from supervisor.web.dialects import told
from supervisor.web.driving import Driver, Lease
from supervisor.web.embeddings import EMBEDDINGS, read_wish
from supervisor.web.front import Front
from supervisor.web.health import health
from supervisor.web.holding import BEGUN, Waiting, break_off
from supervisor.web.kept import RESPONSES, Kept, previous
from supervisor.web.llamacpp import LlamaCpp
from supervisor.web.metrics import Metrics
from supervisor.web.onward import elsewhere, hops_of
from supervisor.web.openai import error_headers
from supervisor.web.patience import hurried, limits_of
from supervisor.web.protocol import check_head
from supervisor.web.realtime import check_handshake, relay_socket
from supervisor.web.record import RECORD, Record, people_of
from supervisor.web.relay import Spliced, relay
from supervisor.web.routes import ROUTES, Route, dialect_of
from supervisor.web.shortway import ShortWay
from supervisor.web.splice import with_model
from supervisor.web.traffic import Traffic
from supervisor.web.ui import UI
from supervisor.web.ui.dashboard import Dashboard

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Waits = Callable[[Ask], AbstractAsyncContextManager[Lease]]
Serves = Callable[[Ask, Lease], Awaitable[web.StreamResponse]]

_UNRECORDED = frozenset({"/health", "/metrics"})
"""Asked every few seconds by machines; a log of them hides the rest."""

TRIED = web.RequestKey("tried", frozenset[str])
"""Places that failed the request on the short way."""


class Router:
    def __init__(self, driver: Driver, keyring: Keyring, traffic: Traffic) -> None:
        self._driver, self._keyring, self._register = driver, keyring, driver.register
        self._metrics = Metrics(driver)
        self._kept, self._batches = Kept(driver), Batches(driver)
        self._traffic = traffic
        self._dashboard = Dashboard(driver, keyring, self._traffic)
        self._serves_llama_cpp = driver.config.server.llama_cpp  # until it starts anew

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._guard])
        for route in ROUTES:
            app.router.add_route(route.method, route.path, self._handler(route))
        app.router.add_get("/openapi.json", self._document)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{id:.+}", self._model)
        if self._serves_llama_cpp:
            LlamaCpp(self._driver, self._source).add_to(app)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._expose)
        app.cleanup_ctx.append(self._metrics.watch_the_loop)
        app.add_subapp(UI, self._dashboard.app())
        return app

    def short_way(self) -> ShortWay:
        return ShortWay(self._driver, self._keyring, self._traffic, self._note)

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The one place where errors become answers and requests become log lines.

        What no one foresaw goes on to the connection, which tells an answer that has begun from one that has not.
        """
        record = request[RECORD] = _record(request)
        try:
            response = await self._answered(request, handler, record)
        except asyncio.CancelledError:
            record.left()
            raise
        except Exception:
            record.refused(InternalError)
            raise
        finally:
            if request.path not in _UNRECORDED and not request.path.startswith(UI):
                self._note(record)
        return response

    async def _answered(self, request: web.Request, handler: Handler, record: Record) -> web.StreamResponse:
        try:
            check_head(request)
            response = await handler(request)
        except LlmdError as error:
            begun: web.StreamResponse | None = request.get(BEGUN)
            if begun is not None:
                await break_off(request, begun, error)
                return begun
            return _refusal(error, request)
        except web.HTTPException as error:
            return _refusal(_translated(error, request), request, _allowed(error))
        if record.first is None and record.error is None:  # else the relay has told what became of it
            record.status = response.status
        if not response.prepared:
            response.headers.update(record.headers())
        return response

    def _note(self, record: Record) -> None:
        """All that is worked out of it is, later: when there are many, or somebody asks."""
        record.end()
        record.write()
        self._driver.ended(record.request_id, record.outcome)
        self._traffic.ended(record)
        self._metrics.count(record)
        if record.is_kept:
            self._register.note(record)

    def _handler(self, route: Route) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            request[RECORD].source = source = self._source(request)
            if route.body == "none":
                return await self._serve_kept(request, route, source)
            if route.body == "socket":
                return await self._serve_socket(request, route, source)
            return await self._serve(request, route, source)

        return handle

    async def _serve(self, request: web.Request, route: Route, source: str) -> web.StreamResponse:
        limits = self._driver.config.server
        with hurried(request, limits.body_timeout):
            body = await read_body(request, limits.max_body)
        ask = self._weighed(self._known(self._ask(request, body, route, source), request), body)
        async with self._traffic.watched(request[RECORD], ask):
            if route.path == EMBEDDINGS and isinstance(body.data, bytes) and (wish := read_wish(body.data)):
                alone = partial(self._pass_on, request, body, ask)
                return await self._batches.serve(wish, ask, request[RECORD], alone)
            return await self._pass_on(request, body, ask)

    def _ask(self, request: web.Request, body: Body, route: Route, source: str) -> Ask:
        """Raises BadRequest; and ModelNotFound, where it goes on from an answer that nobody keeps."""
        ask = ask_of(body, request.headers.get("Content-Type", ""), route, source)
        if route.path != RESPONSES or (name := previous(body.data)) is None:
            return ask
        return replace(ask, model=self._kept.continued(name, ask))

    def _known(self, ask: Ask, request: web.Request) -> Ask:
        """With what its headers tell: its conversation, its way here, the name to ask for it by. Takes it down."""
        record, named = request[RECORD], by_name(request.headers, ask.source, ask.model)
        record.model, record.hops = ask.model[:LONGEST_NAME], hops_of(request.headers)
        conversation = named or ask.conversation
        known = {"hops": record.hops, "request": record.request_id, "person": record.person or ""}
        return replace(ask, conversation=conversation, **known)

    def _weighed(self, ask: Ask, body: Body) -> Ask:
        """Without the tools that no engine of its model would be given: they cost no tokens."""
        profiles = self._profiles(ask.model)
        if not profiles or not all(map(body.demands.drops_tools, profiles)):
            return ask
        lighter, _ = read(without_tools(body.data), ask.source, ask.tasks)
        return replace(ask, tokens=lighter.tokens, letters=lighter.letters)

    def _profiles(self, model: str) -> tuple[Profile, ...]:
        """Of this host, that are called so."""
        return self._driver.config.named.get(model, ())

    async def _pass_on(
        self, request: web.Request, body: Body, ask: Ask, tried: frozenset[str] = frozenset()
    ) -> web.StreamResponse:
        ask = replace(ask, tried=request.get(TRIED, tried))
        body.demands.check_any(self._profiles(ask.model))
        waiting = Waiting(request, ask, self._driver)
        return await self._served(request, ask, waiting.lease, partial(self._to, request, body, waiting))

    async def _served(self, request: web.Request, ask: Ask, wait: Waits, serve: Serves) -> web.StreamResponse:
        """By the place that is leased for it; by another where that one breaks off before it answers."""
        record, before = request[RECORD], None
        while True:
            lease: Lease | None = None
            try:
                async with wait(ask) as lease:
                    record.went(lease)
                    return await serve(ask, lease)
            except EngineDied as error:
                ask, before = await elsewhere(self._driver, ask, lease, error), error
            except LlmdError as error:
                error.message += f" (before: {before.message.splitlines()[0]})" if before else ""
                raise

    async def _to(
        self, request: web.Request, body: Body, waiting: Waiting, ask: Ask, lease: Lease
    ) -> web.StreamResponse:
        keep = partial(self._kept.note, source=ask.source)
        peer = lease.peer
        return await relay(
            request,
            body if peer else _fitted(body, request, ask.model, lease.configured),
            lease,
            limits_of(ask, self._driver.config, lease),
            waiting.signs,
            begun=partial(keep, lease) if request.path == RESPONSES and not peer else None,
        )

    async def _serve_kept(self, request: web.Request, route: Route, source: str) -> web.StreamResponse:
        profile = self._kept.profile_of(request.match_info["id"], source)
        stream = request.query.get("stream", "").lower() in ("true", "1")
        ask = self._known(Ask(profile, source, tasks=route.tasks, stream=stream), request)
        async with self._traffic.watched(request[RECORD], ask):
            return await self._pass_on(request, Body(b""), ask)

    async def _serve_socket(self, request: web.Request, route: Route, source: str) -> web.StreamResponse:
        check_handshake(request)
        model = self._hearing(request, route)
        ask = self._known(Ask(model, source, tasks=route.tasks, stream=True), request)
        async with self._traffic.watched(request[RECORD], ask):
            return await self._served(request, ask, self._driver.lease, partial(self._to_socket, request))

    async def _to_socket(self, request: web.Request, ask: Ask, lease: Lease) -> web.StreamResponse:
        return await relay_socket(request, lease, limits_of(ask, self._driver.config, lease))

    def _hearing(self, request: web.Request, route: Route) -> str:
        """The model of a websocket: vLLM's own clients name it later, in a message, when only one can be meant."""
        if named := request.query.get("model"):
            return named
        able = {p.model for p in self._driver.config.profiles.values() if p.task in route.tasks}
        if len(able) != 1:
            raise BadRequest(f"say which model: {request.path}?model=NAME", param="model")
        return able.pop()

    def _source(self, request: web.Request) -> str:
        if any(len(request.headers.getall(name, [])) > 1 for name in ("Authorization", "x-api-key")):
            raise BadRequest("more than one API key given: send one")
        return self._keyring.identify(presented_key(request.headers))

    async def _models(self, request: web.Request) -> web.StreamResponse:
        request[RECORD].source = self._source(request)
        return web.json_response({"object": "list", "data": list(self._entries(request).values())})

    async def _model(self, request: web.Request) -> web.StreamResponse:
        request[RECORD].source = self._source(request)
        name, entries = request.match_info["id"], self._entries(request)
        if name not in entries:
            raise ModelNotFound(f"model {name!r} is not configured here; there are: {', '.join(entries)}")
        return web.json_response(entries[name])

    def _entries(self, request: web.Request) -> catalogue.Entries:
        """Another llmd is told of this host's own: models that two peers list of each other would never go away."""
        return catalogue.entries(self._driver, abroad=not hops_of(request.headers))

    async def _document(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(openapi.document(llama_cpp=self._serves_llama_cpp))

    async def _health(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(health(self._driver.status()))

    async def _expose(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=await self._metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _fitted(body: Body, request: web.Request, model: str, profile: Profile) -> Body:
    """As an engine of `profile` takes it: without tools that it would refuse, and by a name that it knows, where
    `model` is another. Raises BadRequest for what it may not be given."""
    body.demands.check(profile)
    if body.demands.drops_tools(profile):
        request[RECORD].dropped, body = "tools", Body(without_tools(body.data))
    if model in names_of(profile) or request.content_type != "application/json":
        return body
    return Body(with_model(body.data, profile.model))


def _record(request: web.Request) -> Record:
    """Of a request that the short way gave up, the same one: it goes on from there."""
    headers, client = request.headers, request.protocol
    record = Record.of(headers.get("x-request-id"))
    record.path, (record.person, record.chat) = request.path, people_of(headers)
    if isinstance(client, Front) and (failed := client.failed) is not None:
        client.failed, request[TRIED] = None, failed.tried
        record.request_id, record.started = failed.request_id, failed.started
        if failed.held:
            request[BEGUN] = Spliced(request, 200, keeps=False)
    return record


def _translated(error: web.HTTPException, request: web.Request) -> LlmdError:
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return MethodNotAllowed(f"{request.path} takes {allowed}, not {request.method}")
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return BodyTooLarge(f"the body is larger than {request.path} takes")
    if isinstance(error, web.HTTPNotFound):
        return RouteNotFound(f"{request.method} {request.path} is not served here")
    return BadRequest(error.reason)


def _allowed(error: web.HTTPException) -> dict[str, str]:
    return {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}


def _refusal(error: LlmdError, request: web.Request, more: Mapping[str, str] | None = None) -> web.Response:
    record = request[RECORD]
    record.refused(error)
    headers = {**error_headers(error), **record.headers(), **(more or {})}
    return web.json_response(told(error, dialect_of(request.path)), status=error.status, headers=headers)
