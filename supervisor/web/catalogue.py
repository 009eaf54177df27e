"""The list of models: every name that can be asked for, of this host and of its peers, in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from supervisor.config import Config
from supervisor.host.clock import on_the_wall
from supervisor.web.driving import Driver

Entries = dict[str, dict[str, Any]]
"""By name."""


def entries(driver: Driver, *, abroad: bool) -> Entries:
    """`abroad`: what peers have, too, but where this host has it itself."""
    status, created = driver.status(), int(on_the_wall(driver.started_at))
    own = own_entries(driver.config, status["engines"], created)
    theirs = peer_entries(status.get("peers", ()), created) if abroad else {}
    return own | {name: entry for name, entry in theirs.items() if name not in own}


def own_entries(config: Config, engines: Sequence[Mapping[str, Any]], created: int) -> Entries:
    """Models first, cold ones too. `engines` are the status's, `created` seconds since 1970."""
    state = {engine["profile"]: engine for engine in engines}
    return {
        name: _own(name, [state.get(profile.name, {}) for profile in meant], created)
        for name, meant in config.named.items()
    }


def peer_entries(peers: Sequence[Mapping[str, Any]], created: int) -> Entries:
    """As the status tells of them; of two peers that have one model, the first that is up."""
    found: Entries = {}
    for peer in sorted(peers, key=lambda peer: not peer["up"]):
        for name, model in peer["models"].items():
            state = "unreachable" if not peer["up"] else "ready" if model["warm"] else "cold"
            found.setdefault(name, _entry(name, peer["peer"], model["max_model_len"], state, created))
    return found


def _own(name: str, engines: list[Mapping[str, Any]], created: int) -> dict[str, Any]:
    states = [engine.get("state", "cold") for engine in engines]
    window = max((engine.get("max_model_len") or 0 for engine in engines), default=0) or None
    return _entry(name, "llmd", window, "ready" if "ready" in states else states[0], created)


def _entry(name: str, owner: str, window: int | None, state: str, created: int) -> dict[str, Any]:
    known = {"max_model_len": window, "status": {"value": state}}
    return {"id": name, "object": "model", "created": created, "owned_by": owner, "name": name, **known}
