"""The public port: who asks, for what, on which engine; every answer and every error in OpenAI's shape.

authenticate -> read the model -> lease -> relay -> release.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from supervisor.config.models import EngineDefaults
from supervisor.core.routing import Ask
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
from supervisor.web.auth import Keyring, presented_key
from supervisor.web.conversation import by_name
from supervisor.web.driving import Driver, Lease
from supervisor.web.health import health
from supervisor.web.metrics import Metrics
from supervisor.web.onward import elsewhere, hops_of
from supervisor.web.openai import error_body, error_headers, model_entries, peer_entries, read_ask
from supervisor.web.patience import before_the_answer
from supervisor.web.protocol import check_head
from supervisor.web.record import RECORD, Record
from supervisor.web.relay import relay
from supervisor.web.routes import ROUTES

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_UNRECORDED = frozenset({"/health", "/metrics"})
"""Asked every few seconds by machines; a log of them hides the rest."""
_LEFT = 499


class Router:
    def __init__(self, driver: Driver, keyring: Keyring) -> None:
        self._driver, self._keyring = driver, keyring
        self._metrics = Metrics(driver)

    def app(self) -> web.Application:
        limit = self._driver.config.server.max_body
        app = web.Application(middlewares=[self._guard], client_max_size=limit)
        for path in ROUTES:
            app.router.add_post(path, self._serve)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{id:.+}", self._model)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._expose)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The one place where errors become answers and requests become log lines.

        What no one foresaw goes on to the connection, which tells an answer that has begun from one that has not.
        """
        record = request[RECORD] = Record.of(request.headers.get("x-request-id"))
        try:
            response = await self._answered(request, handler, record)
        except asyncio.CancelledError:
            record.status = _LEFT
            raise
        except Exception:
            record.status, record.error = InternalError.status, InternalError.code
            raise
        finally:
            if request.path not in _UNRECORDED:
                self._note(record)
        return response

    async def _answered(self, request: web.Request, handler: Handler, record: Record) -> web.StreamResponse:
        try:
            check_head(request)
            response = await handler(request)
        except LlmdError as error:
            return _refusal(error, record)
        except web.HTTPException as error:
            return _refusal(_translated(error, request), record, _allowed(error))
        if record.first is None:  # else the relay has told what became of it
            record.status = response.status
        if not response.prepared:
            response.headers.update(record.headers())
        return response

    def _note(self, record: Record) -> None:
        record.write()
        self._driver.ended(record.request_id, record.outcome())
        config = self._driver.config
        profile = config.profiles.get(record.profile or "")
        abroad = record.model if record.profile in config.peers else None  # it is in the peer's list
        self._metrics.count(record, profile.model if profile else abroad or "")

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        record = request[RECORD]
        record.source = self._source(request)
        body = await _body(request)
        ask = read_ask(body, record.source, ROUTES[request.path])
        record.model = ask.model[:200]
        return await self._pass_on(request, body, self._known(ask, request), record)

    def _known(self, ask: Ask, request: web.Request) -> Ask:
        """With what its headers tell: its conversation, its way here, the name to ask for it by."""
        record, named = request[RECORD], by_name(request.headers, ask.source, ask.model)
        record.hops = hops_of(request.headers)
        conversation = named or ask.conversation
        return replace(ask, conversation=conversation, hops=record.hops, request=record.request_id)

    async def _pass_on(
        self, request: web.Request, body: bytes, ask: Ask, record: Record
    ) -> web.StreamResponse:
        """To the place that is leased for it; to another where that one breaks off before it answers."""
        before: EngineDied | None = None
        while True:
            lease: Lease | None = None
            try:
                async with self._driver.lease(ask) as lease:
                    record.profile, record.reason, record.queued = lease.profile, lease.reason, lease.queued
                    first = lease.peer.timeout if lease.peer else before_the_answer(ask, self._limits)
                    between = self._limits.token_timeout
                    return await relay(request, body, lease, record, patience=first, between=between)
            except EngineDied as error:
                ask, before = await elsewhere(self._driver, ask, lease, error), error
            except LlmdError as error:
                error.message += f" (before: {before.message.splitlines()[0]})" if before else ""
                raise

    @property
    def _limits(self) -> EngineDefaults:
        return self._driver.config.engine

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

    def _entries(self, request: web.Request) -> dict[str, dict[str, object]]:
        """Another llmd is told of this host's own: models that two peers list of each other would never go away."""
        created = int(time.time() - (time.monotonic() - self._driver.started_at))
        status = self._driver.status()
        abroad = {} if hops_of(request.headers) else peer_entries(status.get("peers", ()), created)
        own = model_entries(self._driver.config, status["engines"], created)
        return own | {name: entry for name, entry in abroad.items() if name not in own}

    async def _health(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(health(self._driver.status()))

    async def _expose(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _body(request: web.Request) -> bytes:
    try:
        return await request.read()
    except (web.RequestPayloadError, ValueError) as error:  # a length or a compression that does not hold
        raise BadRequest(f"the body could not be read: {type(error).__name__}") from None


def _translated(error: web.HTTPException, request: web.Request) -> LlmdError:
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return BodyTooLarge("the body is larger than server.max_body allows")
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return MethodNotAllowed(f"{request.path} takes {allowed}, not {request.method}")
    if isinstance(error, web.HTTPNotFound):
        return RouteNotFound(f"{request.method} {request.path} is not served here")
    return BadRequest(error.reason)


def _allowed(error: web.HTTPException) -> dict[str, str]:
    return {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}


def _refusal(error: LlmdError, record: Record, more: Mapping[str, str] | None = None) -> web.Response:
    record.status, record.error = error.status, error.code
    headers = {**error_headers(error), **record.headers(), **(more or {})}
    return web.json_response(error_body(error), status=error.status, headers=headers)
