"""Memory lent to other programs: room is made as for an engine, promised for a while, and given back.

A loan is admitted by the ledger like a start; idle engines make room for it, busy ones are waited for. When it ends
its memory is promised to nobody any more; a borrower that keeps it is a neighbour like any other, never killed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from supervisor.config import Profile
from supervisor.core import dispatch, orders, placement
from supervisor.core.devices import HOST, gib
from supervisor.core.engine import Engine
from supervisor.core.events import LoanAsked
from supervisor.core.fleet import Fleet
from supervisor.core.ledger import Claim, name_of
from supervisor.core.spans import span
from supervisor.errors import DaemonRefused, ModelNotFound


@dataclass(slots=True)
class Loan:
    """`until`: monotonic seconds, None until it was granted. `measured`: what the borrower holds, by device."""

    name: str
    borrower: str
    wanted: Engine
    """An imaginary engine of its size: what fits and who makes room is the same question."""
    ttl: float
    asked: float
    until: float | None = None
    measured: Mapping[str, int] | None = None

    def claims(self) -> dict[str, Claim]:
        if self.until is None:
            return {}
        return {
            device: Claim(
                f"loan to {self.borrower}", size, None if self.measured is None else self.measured.get(device)
            )
            for device, size in self.wanted.reserved.items()
        }


def ask(event: LoanAsked, fleet: Fleet) -> None:
    imaginary = Profile(
        name=f"a loan to {event.borrower}", model=event.name, weights="none", gpus=event.gpus, vram=event.size
    )
    fleet.loans[event.name] = Loan(event.name, event.borrower, Engine(imaginary), event.ttl, fleet.now)
    fleet.order(orders.Survey())


def pursue(fleet: Fleet) -> None:
    """Grant what fits, and make room for what does not."""
    for loan in [loan for loan in fleet.loans.values() if loan.until is None]:
        if fleet.ledger.survey.at < loan.asked:
            continue  # what was read before it was asked for proves nothing
        way = placement.way_up(fleet, loan.wanted)
        if isinstance(way, placement.Way):
            for name in way.victims:
                dispatch.evict(fleet, fleet.engines[name], loan.wanted, asleep=way.asleep)
            if not way.victims:
                _grant(fleet, loan)
        elif way.hope not in (placement.Hope.MOVING, placement.Hope.OURS):
            del fleet.loans[loan.name]
            _note(fleet, "loan_refused", f"no loan to {loan.borrower}: {way.message}")
            fleet.order(orders.Answer(loan.name, way.message, DaemonRefused(way.message)))


def _grant(fleet: Fleet, loan: Loan) -> None:
    profile = loan.wanted.profile
    size = profile.vram or 0
    devices = fleet.ledger.devices_of(profile) or ()
    loan.wanted.reserved = fleet.ledger.needs(profile, devices)
    loan.until = fleet.now + loan.ttl
    fleet.stuck.clear()
    places = ", ".join(name_of(fleet.reading(device)) for device in loan.wanted.reserved)
    message = f"{gib(size)} on {places} lent to {loan.borrower} for {span(loan.ttl)}"
    _note(fleet, "lent", message)
    fleet.order(orders.Answer(loan.name, message))


def named(fleet: Fleet, word: str) -> str:
    """The loan of this name, or the only one to this borrower. Raises ModelNotFound."""
    theirs = [loan.name for loan in fleet.loans.values() if loan.borrower == word]
    if word in fleet.loans or len(theirs) == 1:
        return word if word in fleet.loans else theirs[0]
    if theirs:
        raise ModelNotFound(f"several loans are to {word!r}; name one of {', '.join(theirs)}")
    there = ", ".join(f"{loan.name} ({loan.borrower})" for loan in fleet.loans.values())
    raise ModelNotFound(f"no loan {word!r}; there are: {there or 'none'}")


def end(fleet: Fleet, name: str, why: str) -> None:
    """Given back, or never had: its memory is promised to nobody any more."""
    loan = fleet.loans.pop(name, None)
    fleet.stuck.clear()
    if loan is not None and loan.until is not None:
        _note(fleet, "loan_ended", f"the loan to {loan.borrower} is over: {why}")


def expire(fleet: Fleet) -> None:
    for loan in list(fleet.loans.values()):
        if loan.until is not None and loan.until <= fleet.now:
            end(fleet, loan.name, "its time ran out")


def measure(fleet: Fleet, measured: Mapping[str, Mapping[str, int]]) -> None:
    for loan in fleet.loans.values():
        loan.measured = measured.get(loan.name)


def describe(fleet: Fleet) -> list[dict[str, Any]]:
    """Every loan as JSON; sizes in bytes, durations in seconds."""
    return [
        {
            "name": loan.name,
            "borrower": loan.borrower,
            "gpus": list(loan.wanted.profile.gpus),
            "size": loan.wanted.profile.vram,
            "left_s": None if loan.until is None else round(loan.until - fleet.now, 1),
            "measured": None
            if loan.measured is None
            else sum(v for d, v in loan.measured.items() if d != HOST),
        }
        for loan in fleet.loans.values()
    ]


def _note(fleet: Fleet, event: str, message: str) -> None:
    fleet.order(orders.Note(event, None, message))
