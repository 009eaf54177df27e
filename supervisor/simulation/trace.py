"""Request traces: when, who, which model, how long. Read from CSV or JSON lines."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supervisor.errors import ConfigError, Problem

FIELDS = ("time", "key", "model", "prompt", "output")
"""Columns of a trace: seconds since its start, source, model, prompt and output tokens."""

SHOWN = 10
"""Mistakes of one kind that are told at once."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a trace. `time`: seconds since the trace began. `prompt`, `output`: tokens.

    `patience`: seconds after which its client leaves; None: as long as llmd holds it.
    """

    time: float
    key: str
    model: str
    prompt: int
    output: int
    patience: float | None = None


def read(path: Path, known: Collection[str]) -> list[Request]:
    """A trace from a .csv file with the columns of FIELDS, or a .jsonl file with an object a line; by time.

    `known`: the models that may be asked for. Raises ConfigError that names file and line.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError([Problem(path, f"cannot be read: {why}", "name a .csv or .jsonl file")]) from None
    rows = _objects(path, text) if path.suffix == ".jsonl" else _records(path, text)
    found = [(line, _request(path, line, row)) for line, row in rows]
    strange = [
        Problem(path, f"no profile serves {r.model}", _one_of(known), line=n)
        for n, r in found
        if r.model not in known
    ]
    if strange:
        raise ConfigError(strange[:SHOWN])
    return sorted((request for _, request in found), key=lambda request: request.time)


def _one_of(known: Collection[str]) -> str:
    return f"write one of {', '.join(sorted(known))}"


def _records(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(text.splitlines())
    missing = set(FIELDS) - set(reader.fieldnames or ())
    if missing:
        what = f"the first line lacks {', '.join(sorted(missing))}"
        raise ConfigError([Problem(path, what, f"write the columns {','.join(FIELDS)}", line=1)])
    yield from ((reader.line_num, row) for row in reader)


def _objects(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise ConfigError([Problem(path, f"no JSON: {error.msg}", _EXAMPLE, line=number)]) from None


_EXAMPLE = (
    "write seconds, a key's name, a model, tokens in and tokens out, such as 0.0, webui, llama, 500, 200"
)


def _request(path: Path, line: int, row: dict[str, Any]) -> Request:
    try:
        if not isinstance(row, dict):
            raise TypeError("this is no object")
        found = Request(
            float(row["time"]), str(row["key"]), str(row["model"]), int(row["prompt"]), int(row["output"])
        )
        if not (0 <= found.time < float("inf") and found.prompt >= 0 and found.output >= 0):
            raise ValueError("a time or a number of tokens is out of bounds")
    except (KeyError, TypeError, ValueError) as error:
        what = f"no request: {f'{error} is missing' if isinstance(error, KeyError) else error}"
        raise ConfigError([Problem(path, what, _EXAMPLE, line=line)]) from None
    return found
