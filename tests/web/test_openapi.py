"""The document holds together; that it is what is served is shown in test_surface.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from supervisor.web.openapi import OPEN, document
from supervisor.web.routes import ROUTES

DOCUMENT = document()


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
