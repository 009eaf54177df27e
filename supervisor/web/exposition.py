"""Several programs' metrics as one exposition: each sample with the name of its profile, each family once. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

_OURS = b"vllm:"
"""Families of this beginning alone: what an engine tells of its Python is not asked for."""

_SAMPLE = re.compile(rb"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?( .+)")


def merged(expositions: Mapping[str, bytes]) -> bytes:
    """Profile -> its engine's exposition; junk lines are left out."""
    families: dict[bytes, tuple[list[bytes], list[bytes]]] = {}
    for profile, text in expositions.items():
        for family, line, comment in _lines(text):
            about, samples = families.setdefault(family, ([], []))
            if not comment:
                samples.append(_labelled(line, profile.encode()))
            elif line not in about:
                about.append(line)
    return b"".join(b"\n".join([*about, *samples]) + b"\n" for about, samples in families.values() if samples)


def _lines(text: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """(family, line, whether it is its HELP or TYPE)."""
    family = b""
    for line in text.splitlines():
        words = line.split(maxsplit=3)
        comment = len(words) > 3 and words[0] == b"#" and words[1] in (b"HELP", b"TYPE")
        family = words[2] if comment else family
        if family.startswith(_OURS) and (comment or _belongs(line, family)):
            yield family, line, comment


def _belongs(line: bytes, family: bytes) -> bool:
    found = _SAMPLE.fullmatch(line)
    return found is not None and found[1].startswith(family)


def _labelled(line: bytes, profile: bytes) -> bytes:
    found = _SAMPLE.fullmatch(line)
    assert found is not None
    labels = b'profile="' + profile + b'"' + (b"," + found[2] if found[2] else b"")
    return found[1] + b"{" + labels + b"}" + found[3]
