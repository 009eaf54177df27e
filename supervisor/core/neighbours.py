"""Other people's memory: noticed and named when it grows or goes, so that what follows from it can be understood."""

from __future__ import annotations

from supervisor.core import orders
from supervisor.core.devices import HOST, Reading, gib
from supervisor.core.engine import Engine
from supervisor.core.fleet import Fleet
from supervisor.core.ledger import name_of

NOTICED = 512 << 20
"""Bytes by which foreign memory must have changed to be told of."""


def notice(fleet: Fleet) -> None:
    for reading in fleet.ledger.survey.readings:
        if reading.device == HOST or reading.trouble:
            continue
        before, now_held = fleet.foreign_told.get(reading.device, 0), fleet.ledger.foreign_now(reading.device)
        if abs(now_held - before) >= NOTICED:
            fleet.foreign_told[reading.device] = now_held
            _tell(fleet, reading, before, now_held)


def squeeze(fleet: Fleet, engine: Engine) -> None:
    """Whether others leave it enough to serve with; told when that changes."""
    before = engine.squeezed
    found = [fleet.ledger.squeeze(device, bool(before)) for device in engine.devices]
    engine.squeezed = next((why for why in found if why), None)
    if engine.squeezed and not before:
        words = f"{engine.name} is given no more requests: {engine.squeezed}"
        fleet.note("engine_squeezed", engine, words, level="WARNING", in_flight=len(engine.leases))
    elif before and not engine.squeezed:
        fleet.note("engine_relieved", engine, f"{engine.name} is given requests again")


def _tell(fleet: Fleet, reading: Reading, before: int, now_held: int) -> None:
    word = "grew" if now_held > before else "shrank"
    who = ", ".join(
        f"PID {h.pid} {h.name} ({h.user}) {'?' if h.used is None else gib(h.used)}"
        for h in fleet.ledger.strangers(reading)[:3]
    )
    message = f"foreign memory on {name_of(reading)} {word} from {gib(before)} to {gib(now_held)}"
    message += _beside(fleet, reading)
    fleet.order(orders.Note(f"foreign_{word}", None, message + (f": {who}" if who else ""), "WARNING"))


def _beside(fleet: Fleet, reading: Reading) -> str:
    """What was lent to nobody knows whom is not counted as foreign, though its user is listed: that is said."""
    loans = [loan for loan in fleet.loans.values() if reading.device in loan.claims()]
    lent = [loan for loan in loans if loan.claims()[reading.device].measured is None]
    size = sum(loan.claims()[reading.device].held for loan in lent)
    return f", beside {gib(size)} lent to {', '.join(loan.borrower for loan in lent)}" if lent else ""
