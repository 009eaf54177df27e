"""Another `model` in a JSON body, the rest of it left as it came, byte for byte. Pure."""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterator

_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]]|[^\s"{}\[\]:,]+', re.DOTALL)
"""Strings, brackets, and words such as 12 and null. The bytes must be valid JSON."""


def with_model(data: bytes | mmap.mmap, model: str) -> bytes:
    """Every "model" of the outermost object is replaced: of a key given twice, which one counts is the reader's
    choice. Those of inner objects are not touched."""
    name, pieces, at = json.dumps(model).encode(), [], 0
    for start, end in _models(data):
        pieces += [data[at:start], name]
        at = end
    return b"".join([*pieces, data[at:]])


def _models(data: bytes | mmap.mmap) -> Iterator[tuple[int, int]]:
    """Where the values lie. In the outermost object tokens are keys and values by turns."""
    depth, key, found = 0, None, 0
    for token in _TOKEN.finditer(data):
        opening, closing = token[0] in (b"{", b"["), token[0] in (b"}", b"]")
        if depth == 1 and not closing:
            if key is None:
                key = token[0]
                continue
            found = token.start()
        depth += opening - closing
        if depth == 1 and key is not None:
            if json.loads(key.decode(errors="replace"), strict=False) == "model":
                yield found, token.end()
            key = None
