"""One line of what the doctor says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Grade(StrEnum):
    PASS = "pass"
    WARN = "warn"
    """It works, but not as well, as safely or as long as it could."""
    FAIL = "fail"
    """Something that the configuration asks for cannot work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`instead` says what to do; a pass needs nothing done."""

    check: str
    grade: Grade
    what: str
    instead: str = ""


def good(check: str, what: str) -> Finding:
    return Finding(check, Grade.PASS, what)


def warn(check: str, what: str, instead: str) -> Finding:
    return Finding(check, Grade.WARN, what, instead)


def fail(check: str, what: str, instead: str) -> Finding:
    return Finding(check, Grade.FAIL, what, instead)
