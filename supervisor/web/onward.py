"""A request that goes on: to a peer, or once more elsewhere when its first place broke off before it answered."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from supervisor.core.abroad import MOST_HOPS
from supervisor.core.routing import Ask
from supervisor.errors import BadRequest, EngineDied, EngineUnwilling, LoopDetected
from supervisor.host.peers import HOPS
from supervisor.web.driving import Driver, Lease

_UNWILLING = frozenset({401, 403, 404, 429, 502, 503, 504})


def hops_of(headers: Mapping[str, str]) -> int:
    """How often a request was passed on. Raises LoopDetected, BadRequest."""
    given = headers.get(HOPS, "0")
    if not given.isascii() or not given.isdecimal() or len(given) > 3:
        raise BadRequest(f"{HOPS} is a small number")
    if int(given) > MOST_HOPS:
        raise LoopDetected(f"passed on {given} times: llmds that are peers of each other pass it round")
    return int(given)


def is_unwilling(status: int) -> bool:
    """Whether a peer's answer says that it, not the request, is at fault."""
    return status in _UNWILLING or 300 <= status < 400  # a redirect could lead its key anywhere


async def elsewhere(driver: Driver, ask: Ask, lease: Lease | None, error: EngineDied) -> Ask:
    """The ask for another try. Every peer may fail it once, and one engine; raises `error` where that has been, or
    where the engine that broke off is alive: a request that it cannot digest kills none of the others.
    """
    name = lease.incarnation if lease else "ended before it began"
    if (lease is None or lease.peer is None) and ask.tried - driver.config.peers.keys():
        raise error
    if lease and not isinstance(error, EngineUnwilling) and not await driver.is_over(lease):
        raise error
    return replace(ask, tried=ask.tried | {name})
