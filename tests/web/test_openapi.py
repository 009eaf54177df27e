"""The document holds together, and has what is served; that it is served is shown in test_surface.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeDriver

from supervisor.config import Config, Server
from supervisor.errors import LlmdError
from supervisor.web.auth import Keyring
from supervisor.web.openapi import OPEN, document
from supervisor.web.router import Router
from supervisor.web.routes import ROUTES
from supervisor.web.traffic import Traffic
from supervisor.web.ui import UI

DOCUMENT = document(llama_cpp=True)


@pytest.mark.parametrize("llama_cpp", [True, False])
def test_every_route_of_the_port_is_there_and_no_other(llama_cpp: bool) -> None:
    server = Server(llama_cpp=llama_cpp)
    driver = FakeDriver(Config(path=Path("llmd.toml"), server=server))
    app = Router(driver, Keyring({}, open=True), Traffic()).app()
    found = {(route.method, route.resource.canonical) for route in app.router.routes() if route.resource}
    served = {(method, path) for method, path in found if method != "HEAD"}
    paths = document(llama_cpp=llama_cpp)["paths"]
    told = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert told == {(method, path) for method, path in served if not path.startswith(UI.rstrip("/"))}
    assert (("POST", "/models/load") in told) is llama_cpp


def operations() -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for operation in methods.values():
            yield path, operation


def references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_what_is_referred_to_is_there() -> None:
    found = set(references(DOCUMENT))
    assert found
    assert found == {f"#/components/schemas/{name}" for name in DOCUMENT["components"]["schemas"]}


def test_every_operation_has_a_name_of_its_own_and_an_answer() -> None:
    names = [operation["operationId"] for _, operation in operations()]
    assert len(set(names)) == len(names)
    assert all({"200", "101"} & set(operation["responses"]) for _, operation in operations())


def test_parameters_in_a_path_are_declared() -> None:
    for path, operation in operations():
        declared = {p["name"] for p in operation.get("parameters", []) if p["in"] == "path"}
        assert declared == set(re.findall(r"\{(\w+)\}", path))


def test_only_what_needs_no_key_says_so() -> None:
    assert {path for path, operation in operations() if operation.get("security") == []} == OPEN


def test_refusals_have_the_shape_of_the_api() -> None:
    for route in ROUTES:
        told = DOCUMENT["paths"][route.path][route.method.lower()]["responses"]["400"]
        [shape] = references(told)
        assert shape.endswith("/AnthropicError") is (route.dialect == "anthropic")


def test_every_status_that_llmd_refuses_with_is_told() -> None:
    """Of requests to an engine: what it is told otherwise is for a person at the dashboard, or for another method."""
    found = {error.status for error in descendants(LlmdError)} - {403, 405, 409}
    told = DOCUMENT["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert {int(status) for status in told} == found | {200}


def descendants(kind: type[LlmdError]) -> Iterator[type[LlmdError]]:
    for child in kind.__subclasses__():
        yield child
        yield from descendants(child)
