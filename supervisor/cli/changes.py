"""What a reload changes, as lines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def told(answer: dict[str, Any]) -> Iterator[str]:
    if not answer["changes"]:
        yield "nothing differs from what runs"
    for change in answer["changes"]:
        yield str(change["text"])
    for profile, fate in answer["engines"].items():
        yield f"{profile}: {fate}"
    for warning in answer["warnings"]:
        yield f"warning: {warning}"


def done(answer: dict[str, Any], planned: dict[str, Any]) -> str:
    """The last line; with the difference again where the files changed since it was shown."""
    again = [] if answer["changes"] == planned["changes"] else list(told(answer))
    return "\n".join([*again, f"it holds since {answer['loaded']}"])
