"""Why a request went where it did, as one screen of 80 columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from supervisor.cli.tables import printable

Json = dict[str, Any]


def show(answer: Json, console: Console) -> None:
    for line in lines(answer):
        console.print(line)


def lines(answer: Json) -> Iterator[Padding]:
    for depth, line in render(answer):
        yield Padding(line, (0, 0, 0, 2 * depth))


def render(answer: Json) -> Iterator[tuple[int, Text]]:
    """(depth, line)."""
    yield 0, Text(f"{answer['request']} asks for {printable(answer['model'])}", "bold")
    yield 1, Text(_what(answer))
    for number, tried in enumerate(answer["tries"]):
        if number:
            yield 1, Text("again, elsewhere:")
        for line in _tried(tried):
            yield 1, line
    yield 1, _outcome(answer["outcome"])


def _what(answer: Json) -> str:
    reply = f", a reply of at most {answer['max_tokens']}" if answer["max_tokens"] else ""
    hops = f", passed on {answer['hops']} times before" if answer["hops"] else ""
    return f"from {answer['source']}, a prompt of about {answer['tokens']} tokens{reply}{hops}"


def _tried(tried: Json) -> Iterator[Text]:
    for place, candidate in enumerate(tried["candidates"], 1):
        taken = candidate["name"] == tried["granted"]
        yield Text(f"{place}. {candidate['name']}: {candidate['reason']}", "green" if taken else "")
    for candidate in tried["passed_over"]:
        yield Text(f"-  {candidate['name']}: {candidate['reason']}", "dim")
    if tried["granted"]:
        yield Text(f"went to {tried['granted']} after {tried['waited'] * 1000:.0f} ms")
    if tried["failed"]:
        yield Text(f"failed: {tried['failed']}", "red")


def _outcome(outcome: Json | None) -> Text:
    if outcome is None:
        return Text("it is not over yet")
    tokens = [f"{outcome[kind]} {kind}" for kind in ("prompt", "completion") if outcome[kind] is not None]
    counted = f", tokens: {' and '.join(tokens)}" if tokens else ""
    return Text(f"ended with {outcome['status']} after {outcome['latency_ms']} ms{counted}")
