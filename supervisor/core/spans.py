"""Durations as a person reads them."""

from __future__ import annotations


def span(seconds: float | None) -> str:
    """`5400` -> `"1h30m"`: the two greatest units, or `-` where there is none."""
    if seconds is None:
        return "-"
    left = max(0, round(seconds))
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts[:2]) or "0s"
