"""An engine or a peer that did not do as it should, in words and as an error."""

from __future__ import annotations

from supervisor.errors import EngineDied, EngineFailed
from supervisor.host.upstream import Broken, Gone
from supervisor.web.driving import Lease

_AGAIN = 5.0
"""Seconds after which clients may come again: by then an engine that failed is being replaced."""


def who(lease: Lease) -> str:
    """By a name that people know: clients ask for models."""
    if lease.peer:
        return f"the peer {lease.profile}"
    return f"the engine of {lease.profile} (model {lease.configured.model!r})"


def blame(lease: Lease, what: str, kind: type[EngineFailed] = EngineFailed) -> EngineFailed:
    """`what` it did, with the last lines of an engine's log."""
    return kind(f"{who(lease)} {what}", log=lease.log_tail(), retry_after=_AGAIN)


def translated(error: Broken, lease: Lease) -> EngineFailed:
    """What went wrong before the first byte. A peer's failure is another's chance, whatever it was."""
    kind = EngineDied if isinstance(error, Gone) or lease.peer else EngineFailed
    return blame(lease, str(error), kind)
