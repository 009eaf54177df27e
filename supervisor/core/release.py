"""A quarantined GPU that a person wants used again: what is still held there is other people's from then on."""

from __future__ import annotations

from supervisor.core import ending, events, orders, quarantine
from supervisor.core.engine import Engine
from supervisor.core.fleet import Fleet
from supervisor.core.ledger import name_of
from supervisor.core.lifecycle import State
from supervisor.errors import DaemonRefused


def release(event: events.ReleaseAsked, fleet: Fleet) -> None:
    """Refused while processes of ours may hold what did not come back."""
    found = fleet.ledger.gpu(event.gpu)
    if found is None or fleet.ledger.barred(found.device) is None:
        where = f"GPU {event.gpu}" if found is None else name_of(found)
        refuse(fleet, event.ticket, f"{where} is not quarantined")
        return
    device, where = found.device, name_of(found)
    stuck = [e for e in fleet.engines.values() if e.state is State.SETTLING and device in e.places]
    if alive := next((engine for engine in stuck if engine.gone_at is None), None):
        pids = ", ".join(map(str, alive.survivors)) or "not known"
        refuse(fleet, event.ticket, f"processes of {alive.name} are still there ({pids}): end them first")
        return
    for engine in stuck:
        write_off(fleet, engine)
    quarantine.lift(fleet, (device,), quarantine.ILLNESS, "an operator released it")
    fleet.ledger.sick.pop(device, None)
    fleet.stuck.clear()
    message = f"{where} was released by an operator; what did not come back counts as foreign"
    fleet.order(orders.Note("device_released", None, message, "WARNING", {"devices": (device,)}))
    fleet.order(orders.Survey())
    fleet.order(orders.Answer(event.ticket, message))


def write_off(fleet: Fleet, engine: Engine) -> None:
    ending.over(fleet, engine, f"an operator wrote off the memory of {engine.name}")


def refuse(fleet: Fleet, ticket: str, why: str) -> None:
    fleet.order(orders.Answer(ticket, why, DaemonRefused(why)))
