"""What peers offer under a model's name, and which request they are not asked to take. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from supervisor.core.routing import Ask

MOST_HOPS = 3
"""How often a request is passed on from one llmd to the next."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a peer has under the name that was asked for. `warm`: it is loaded there. `trouble`: why it is down."""

    peer: str
    priority: int = -1
    spill: bool = True
    window: int | None = None
    warm: bool = True
    trouble: str | None = None


def why_not(ask: Ask, offer: Offer, served_here: bool) -> str | None:
    """Why a peer is no candidate; None where it is one. `served_here`: a profile of this host is one."""
    if offer.trouble is not None:
        return f"down: {offer.trouble}"
    if offer.peer in ask.tried:
        return "it failed this request"
    if ask.hops >= MOST_HOPS:
        return f"passed on {ask.hops} times already"
    if offer.window is not None and ask.least > offer.window:
        return f"its context of {offer.window} tokens is too short"
    return _why_here(ask, offer) if served_here else None


def _why_here(ask: Ask, offer: Offer) -> str | None:
    """Why it stays where it can be served."""
    if not offer.spill:
        return "it takes only what this host does not serve"
    if ask.hops:
        return "the request came from a peer, and this host serves it"
    if not offer.warm and offer.priority <= 0:
        return "not loaded there, and this host serves it"
    return None
