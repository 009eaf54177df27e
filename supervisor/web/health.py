"""GET /health: one word for a probe, one entry a profile for people. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_FAILING = frozenset({"backoff", "impossible"})


def health(status: Mapping[str, Any]) -> dict[str, Any]:
    """Degraded: an engine that will not start, a GPU in trouble, a process that no engine owns, a disk that fails."""
    engines = status["engines"]
    failing = any(engine["state"] in _FAILING for engine in engines)
    trouble = any(device["trouble"] or device["quarantined"] for device in status["devices"])
    degraded = failing or trouble or bool(status["strays"]) or bool(status.get("disk_trouble"))
    models = {engine["profile"]: _model(engine) for engine in engines}
    return {"status": "degraded" if degraded else "healthy", "models": models}


def _model(engine: Mapping[str, Any]) -> dict[str, Any]:
    used = [size for device, size in engine["measured"].items() if device != "host" and size is not None]
    return {
        "state": engine["state"],
        "model": engine["model"],
        "vram_used": f"{sum(used) / 1e9:.1f} GB",
        "in_flight": engine["in_flight"],
        "queued": engine["queued"],
        "failure": engine["failure"],
    }
