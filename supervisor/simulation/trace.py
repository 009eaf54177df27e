"""Request traces: when, who, which model, how long. Read from CSV or JSON lines."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supervisor.errors import ConfigError, Problem

FIELDS = ("time", "key", "model", "prompt", "output")
"""Columns of a trace: seconds since its start, source, model, prompt and output tokens."""


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


def read(path: Path) -> list[Request]:
    """A trace from a .csv file with the columns of FIELDS, or a .jsonl file with an object a line; by time.

    Raises ConfigError that names file and line.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([Problem(path, f"cannot be read: {error}", "name a .csv or .jsonl file")]) from None
    rows = _objects(path, text) if path.suffix == ".jsonl" else _records(path, text)
    return sorted((_request(path, line, row) for line, row in rows), key=lambda request: request.time)


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


_EXAMPLE = 'write {"time": 0.0, "key": "webui", "model": "llama", "prompt": 500, "output": 200}'


def _request(path: Path, line: int, row: dict[str, Any]) -> Request:
    try:
        return Request(
            float(row["time"]), str(row["key"]), str(row["model"]), int(row["prompt"]), int(row["output"])
        )
    except (KeyError, TypeError, ValueError) as error:
        what = f"no request: {type(error).__name__} {error}"
        raise ConfigError([Problem(path, what, _EXAMPLE, line=line)]) from None


def models(trace: Iterable[Request]) -> set[str]:
    return {request.model for request in trace}
