"""Request traces: when, who, which model, how long. Read from CSV or JSON lines."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from supervisor.errors import ConfigError, Problem

FIELDS = ("time", "key", "model", "prompt", "output")
"""Columns of a trace: seconds since its start, source, model, prompt and output tokens."""

LINES = frozenset({".jsonl", ".ndjson", ".json"})
"""Names of files that hold an object a line; all others hold CSV."""

SHOWN = 10
"""Mistakes of one kind that are told at once."""

DAY = 86400.0
LONGEST = 30 * DAY
"""Seconds. The cards are read every few seconds of a trace, so a longer one takes minutes to play."""

EPOCH = range(10**9, 10**10)
"""Seconds since 1970 from 2001 to 2286: no trace that began at 0 is so long."""

MOST_TOKENS = 10_000_000


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


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests by time. `began`: seconds since 1970 of the first, where the file's times were such."""

    requests: Sequence[Request] = ()
    began: float | None = None


def read(path: Path, known: Collection[str]) -> Trace:
    """A trace from a file of JSON lines (.jsonl, .ndjson, .json), else of CSV with the columns of FIELDS.

    `known`: the models that may be asked for. Raises ConfigError that names file and line.
    """
    try:
        text = path.read_text("utf-8-sig")  # spreadsheets put a mark before the first column
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError([Problem(path, f"cannot be read: {why}", "name a .csv or .jsonl file")]) from None
    rows = _objects(path, text) if path.suffix.lower() in LINES else _records(path, text)
    found = [(line, _request(path, line, row)) for line, row in rows]
    strange = [
        Problem(path, f"no profile serves {r.model}", _one_of(known), line=n)
        for n, r in found
        if r.model not in known
    ]
    if strange:
        raise ConfigError(strange[:SHOWN])
    return _from_zero(path, found)


def _one_of(known: Collection[str]) -> str:
    return f"write one of {', '.join(sorted(known))}"


def _from_zero(path: Path, found: list[tuple[int, Request]]) -> Trace:
    """Times since 1970 are counted from the first request. Raises ConfigError where the trace is too long."""
    first = min((request.time for _, request in found), default=0.0)
    began = first if int(first) in EPOCH else None
    for line, request in found:
        if request.time - (began or 0.0) > LONGEST:
            what = f"its time, {request.time:.0f} s, is over {LONGEST / DAY:.0f} days after the beginning"
            instead = "write seconds since the trace began, and at most so many days of it"
            raise ConfigError([Problem(path, what, instead, line=line)])
    moved = (replace(request, time=request.time - (began or 0.0)) for _, request in found)
    return Trace(sorted(moved, key=lambda request: request.time), began)


def _records(path: Path, text: str) -> Iterator[tuple[int, dict[Any, Any]]]:
    reader = csv.DictReader(text.splitlines(), skipinitialspace=True)
    reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
    missing = set(FIELDS) - set(reader.fieldnames)
    if missing:
        what = f"the first line lacks {', '.join(sorted(missing))}"
        raise ConfigError([Problem(path, what, f"write the columns {','.join(FIELDS)}", line=1)])
    yield from ((reader.line_num, {k: v for k, v in row.items() if v is not None}) for row in reader)


def _objects(path: Path, text: str) -> Iterator[tuple[int, dict[Any, Any]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                what = f"no JSON: {getattr(error, 'msg', error)}"
                raise ConfigError([Problem(path, what, _OBJECT, line=number)]) from None


_EXAMPLE = (
    "write seconds, a key's name, a model, tokens in and tokens out, such as 0.0, webui, llama, 500, 200"
)
_OBJECT = (
    'write an object a line: {"time": 0.0, "key": "webui", "model": "llama", "prompt": 500, "output": 200}'
)


def _request(path: Path, line: int, row: dict[Any, Any]) -> Request:
    try:
        return _checked(row)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        what = f"no request: {f'{error} is missing' if isinstance(error, KeyError) else error}"
        instead = _OBJECT if path.suffix.lower() in LINES else _EXAMPLE
        raise ConfigError([Problem(path, what, instead, line=line)]) from None


def _checked(row: dict[Any, Any]) -> Request:
    if not isinstance(row, dict):
        raise TypeError("this is no object")
    if any(row.get(None, ())):  # where csv puts what no column has a name for; a comma at the end is none
        raise ValueError("it has more fields than the first line names")
    time, key, model = float(row["time"]), str(row["key"]).strip(), str(row["model"]).strip()
    found = Request(time, key, model, int(row["prompt"]), int(row["output"]))
    if not 0 <= found.time < float("inf"):
        raise ValueError("the time is out of bounds")
    if not (0 <= found.prompt <= MOST_TOKENS and 0 <= found.output <= MOST_TOKENS):
        raise ValueError("a number of tokens is out of bounds")
    return found
