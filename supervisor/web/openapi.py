"""The document at /openapi.json, written from the routes that are served. Pure."""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import Any

from supervisor.web.routes import ROUTES, Route

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

_REFUSALS = {
    "400": "The request is wrong, or the model is for another task",
    "401": "No key, or an unknown one",
    "404": "No such model",
    "413": "Larger than server.max_body",
    "429": "Every place is taken; Retry-After says when to come back",
    "502": "The engine failed",
    "503": "The model cannot be ready in time; Retry-After says when to come back",
    "504": "The engine let a time limit pass",
}
_STREAMED = frozenset({"generate", "transcribe"})


def document() -> dict[str, Any]:
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    for path, summary in OWN.items():
        paths[path] = {"get": _own(path, summary)}
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
        "responses": {**_answers(route), **_refusals(route)},
    }
    if parameters := _parameters(route):
        told["parameters"] = parameters
    if route.body in ("json", "form"):
        kind = "application/json" if route.body == "json" else "multipart/form-data"
        schema = {"$ref": "#/components/schemas/Request"}
        told["requestBody"] = {"required": True, "content": {kind: {"schema": schema}}}
    return told


def _answers(route: Route) -> dict[str, Any]:
    if route.body == "socket":
        return {"101": {"description": "A websocket from here on"}}
    kinds: dict[str, Any] = {
        "application/json": {},
        **({"text/event-stream": {}} if route.tasks <= _STREAMED else {}),
    }
    return {"200": {"description": "As vLLM answers", "content": kinds}}


def _refusals(route: Route) -> dict[str, Any]:
    shape = "AnthropicError" if route.dialect == "anthropic" else "Error"
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{shape}"}}}
    return {status: {"description": words, "content": content} for status, words in _REFUSALS.items()}


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
    if "{id}" in path:
        told["parameters"] = [_parameter("id", "path")]
    return told


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
