"""What becomes of a changed configuration: whether a daemon runs that has to read it again."""

from __future__ import annotations

from supervisor.cli.base import Place, call
from supervisor.errors import NoDaemon, OperatorError


def tell_daemon(place: Place) -> str:
    """What the daemon makes of files that were just written, in words.

    The one place to ask the daemon itself, once its admin socket takes a request to reload.
    """
    try:
        call(place, lambda client: client.status())
    except NoDaemon:
        return "no daemon is running; it is read when one starts"
    except OperatorError as error:
        return f"{error.message}; run `llmd reload`"
    return "run `llmd reload`, so that the daemon reads it"
