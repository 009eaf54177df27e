"""What becomes of a changed configuration: whether a daemon runs, and what it made of it."""

from __future__ import annotations

from supervisor.cli import changes
from supervisor.cli.base import Place, call
from supervisor.errors import NoDaemon, OperatorError


def tell_daemon(place: Place) -> str:
    """Have a daemon that runs read the files that were just written: what it makes of them, in words."""
    try:
        answer = call(place, lambda client: client.reload())
    except NoDaemon:
        return "no daemon is running; it is read when one starts"
    except OperatorError as error:
        return f"the daemon did not take it: {error.message}"
    return "\n".join(["the daemon has read it:", *changes.told(answer)])
