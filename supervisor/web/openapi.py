"""The document at /openapi.json, written from the routes that are served. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from supervisor.web.routes import ROUTES, Dialect, Route

OWN = {
    "/v1/models": "Every model, profile and adapter that can be asked for",
    "/v1/models/{id}": "One of them",
    "/health": "How the engines are",
    "/metrics": "Figures for Prometheus",
    "/openapi.json": "This document",
}
"""What llmd answers itself, all by GET."""
OPEN = frozenset({"/health", "/metrics", "/openapi.json"})
"""What needs no key."""

BUTTONS = {
    ("GET", "/models"): "Every model and how far it is",
    ("GET", "/models/sse"): "Each change of that, as events",
    ("POST", "/models/load"): "Begin to load a model",
    ("POST", "/models/unload"): "Stop a model when what runs has ended",
}
"""llama.cpp's, where `server.llama_cpp` is on."""

_REFUSALS = {
    "400": "The request is wrong, or the model is for another task",
    "401": "No key, or an unknown one",
    "404": "No such model",
    "408": "The body did not come",
    "413": "Larger than server.max_body",
    "429": "Every place is taken; Retry-After says when to come back",
    "500": "A bug in llmd",
    "502": "The engine failed",
    "503": "The model cannot be ready in time; Retry-After says when to come back",
    "504": "The engine let a time limit pass",
    "508": "Peers pass the request round",
}
_NO_KEY = {"401": _REFUSALS["401"]}
_OF_BUTTONS = {
    **{status: _REFUSALS[status] for status in ("400", "401", "404", "408", "413")},
    "409": "There is no place for it; the message says why",
}
_HEADERS = {
    "x-request-id": "As the client gave it, else of llmd's own; also in its log",
    "x-llmd-profile": "The profile, or the peer, that answers; not where a stream was held before it was known",
    "x-llmd-queue-ms": "How long the request waited for its place; as above",
}
_STREAMED = frozenset({"generate", "transcribe"})


def document(*, llama_cpp: bool = False) -> dict[str, Any]:
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    for path, summary in OWN.items():
        paths[path] = {"get": _own(path, summary)}
    for (method, path), summary in BUTTONS.items() if llama_cpp else ():
        paths[path] = {method.lower(): _button(method, path, summary)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "llmd", "version": version("llmd")},
        "security": [{"bearer": []}, {"x-api-key": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
            "schemas": _schemas(),
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    told: dict[str, Any] = {
        "operationId": _name(route.method, route.path),
        "summary": route.summary,
        "description": f"Answered by models for: {', '.join(sorted(route.tasks))}.",
        "responses": {**_answers(route), **_refusals(_REFUSALS, route.dialect)},
    }
    if parameters := _parameters(route):
        told["parameters"] = parameters
    if route.body in ("json", "form"):
        told["requestBody"] = _body("application/json" if route.body == "json" else "multipart/form-data")
    return told


def _body(kind: str) -> dict[str, Any]:
    return {"required": True, "content": {kind: {"schema": {"$ref": "#/components/schemas/Request"}}}}


def _answers(route: Route) -> dict[str, Any]:
    if route.body == "socket":
        return {"101": {"description": "A websocket from here on"}}
    kinds: dict[str, Any] = {
        "application/json": {},
        **({"text/event-stream": {}} if route.tasks <= _STREAMED else {}),
    }
    headers = {name: {"description": words, "schema": {"type": "string"}} for name, words in _HEADERS.items()}
    return {"200": {"description": "As vLLM answers", "headers": headers, "content": kinds}}


def _refusals(refusals: Mapping[str, str], dialect: Dialect = "openai") -> dict[str, Any]:
    shape = "AnthropicError" if dialect == "anthropic" else "Error"
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{shape}"}}}
    return {status: {"description": words, "content": content} for status, words in refusals.items()}


def _parameters(route: Route) -> list[dict[str, Any]]:
    found = [_parameter(name, "path") for name in re.findall(r"\{(\w+)\}", route.path)]
    return found + ([{**_parameter("model", "query"), "required": False}] if route.body == "socket" else [])


def _parameter(name: str, where: str) -> dict[str, Any]:
    return {"name": name, "in": where, "required": True, "schema": {"type": "string"}}


def _own(path: str, summary: str) -> dict[str, Any]:
    kind = "text/plain" if path == "/metrics" else "application/json"
    told: dict[str, Any] = {
        "operationId": _name("GET", path),
        "summary": summary,
        "responses": {"200": {"description": summary, "content": {kind: {}}}},
    }
    if path in OPEN:
        told["security"] = []
    else:
        told["responses"] |= _refusals(_NO_KEY)
    if "{id}" in path:
        told["parameters"] = [_parameter("id", "path")]
        told["responses"] |= _refusals({"404": _REFUSALS["404"]})
    return told


def _button(method: str, path: str, summary: str) -> dict[str, Any]:
    kind = "text/event-stream" if path.endswith("/sse") else "application/json"
    told: dict[str, Any] = {
        "operationId": _name(method, path),
        "summary": summary,
        "responses": {"200": {"description": summary, "content": {kind: {}}}},
    }
    takes = method == "POST"
    told["responses"] |= _refusals(_OF_BUTTONS if takes else _NO_KEY)
    return told | ({"requestBody": _body("application/json")} if takes else {})


def _name(method: str, path: str) -> str:
    return re.sub(r"\W+", "_", f"{method.lower()}{path}").strip("_")


def _schemas() -> dict[str, Any]:
    text = {"type": "string"}
    known = {"message": text, "type": text, "param": {"type": ["string", "null"]}, "code": {}}
    least = {"type": text, "message": text}
    return {
        "Request": {
            "type": "object",
            "required": ["model"],
            "properties": {"model": {**text, "description": "A model, a profile or an adapter"}},
            "additionalProperties": True,
        },
        "Error": _holding("error", {"type": "object", "required": ["message"], "properties": known}),
        "AnthropicError": _holding("error", {"type": "object", "required": [*least], "properties": least}),
    }


def _holding(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": [name], "properties": {name: schema}}
