"""Where in a TOML file a key stands. tomllib does not tell, so the file is read again, a line more each time."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from supervisor.errors import Problem

KeyPath = tuple[str | int, ...]

NOT_TOML = (ValueError, RecursionError)
"""What tomllib raises: its own TOMLDecodeError, a ValueError for an endless number, and too deep a nesting."""


def key_lines(text: str) -> dict[KeyPath, int]:
    """Every key path of `text` -> the line it begins at, counted from 1; () is line 1.

    A key stands where the shortest prefix that parses first holds it; a value of several lines begins right
    after the prefix before. Quadratic, which a file that a person wrote can bear, and only done on errors.
    """
    found: dict[KeyPath, int] = {(): 1}
    lines = text.split("\n")
    begins = 1
    for number in range(1, len(lines) + 1):
        try:
            document = tomllib.loads("\n".join(lines[:number]))
        except NOT_TOML:
            continue
        for key in _keys(document):
            found.setdefault(key, begins)
        begins = number + 1
    return found


def _keys(value: object, at: KeyPath = ()) -> Iterator[KeyPath]:
    items: Iterable[tuple[str | int, object]] = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for name, inner in items:
        yield (*at, name)
        yield from _keys(inner, (*at, name))


def locate(problems: Iterable[Problem]) -> list[Problem]:
    """The problems with their lines filled in, by file and line. A key that is not written counts as its table."""
    lines_of = cache(_read_lines)
    return sorted((_at_line(problem, lines_of(problem.file)) for problem in problems), key=_place)


def _read_lines(file: Path) -> dict[KeyPath, int]:
    try:
        return key_lines(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return {}


def _at_line(problem: Problem, lines: dict[KeyPath, int]) -> Problem:
    if problem.line is not None or not lines:
        return problem
    key = problem.key
    while key not in lines:
        key = key[:-1]
    return dataclasses.replace(problem, line=lines[key])


def _place(problem: Problem) -> tuple[str, int]:
    return str(problem.file), problem.line or 0
