"""Where conversations were served last: vLLM has their beginning in its prefix cache there. Pure."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import msgspec

MOST = 4096
"""Conversations that are remembered; who was quiet for longest is forgotten first."""


class Home(msgspec.Struct, frozen=True, gc=False):
    """`incarnation`: whose cache it is; a new one begins empty. Empty for a peer."""

    place: str
    incarnation: str
    at: float


@dataclass(slots=True)
class Homes:
    """`ttl`: seconds until a conversation is forgotten; None remembers none."""

    ttl: float | None
    most: int = MOST
    _homes: OrderedDict[str, Home] = field(default_factory=OrderedDict)

    def settle(self, conversation: str | None, place: str, incarnation: str, now: float) -> None:
        if conversation is None or self.ttl is None:
            return
        self._homes[conversation] = Home(place, incarnation, now)
        self._homes.move_to_end(conversation)
        if len(self._homes) > self.most:
            self._homes.popitem(last=False)

    def of(self, conversation: str | None, now: float) -> Home | None:
        home = self._homes.get(conversation) if conversation is not None else None
        if home is None or self.ttl is None or now - home.at > self.ttl:
            return None
        return home

    def __len__(self) -> int:
        return len(self._homes)
