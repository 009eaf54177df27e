"""GPUs as a person describes them, for `llmd plan` and `llmd simulate`."""

from __future__ import annotations

import re

from pydantic_core import PydanticCustomError

from supervisor.config.quantities import size

MOST = 64
_PART = re.compile(r"\s*(?:(?P<times>\d{1,3})\s*x|(?P<index>\d{1,3})\s*:)?\s*(?P<size>\S.*)")


def sizes(text: str) -> dict[int, int]:
    """`"2x24GiB"`, `"24GiB,48GiB"` or `"0:24GiB,1:48GiB"` -> bytes by index, in order. Raises ValueError with what
    to write."""
    found: dict[int, int] = {}
    for part in text.split(","):
        match = _PART.fullmatch(part)
        if match is None:
            raise ValueError(f"{part!r} describes no GPU; write 2x24GiB, or 0:24GiB,1:48GiB")
        first = len(found) if match["index"] is None else int(match["index"])
        times = 1 if match["times"] is None else int(match["times"])
        for index in range(first, first + times):
            if index in found:
                raise ValueError(f"GPU {index} is described twice")
            found[index] = _size(match["size"])
        if not times or len(found) > MOST or not all(found.values()):
            raise ValueError(f"{text!r}: describe 1 to {MOST} GPUs, each of some size")
    return dict(sorted(found.items()))


def _size(text: str) -> int:
    try:
        return size(text)
    except PydanticCustomError as error:
        raise ValueError(f"{text!r} is not a size; write 24GiB, or 24 GB") from error
