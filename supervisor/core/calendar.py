"""Changes of mode: announce, stop admitting, drain to a deadline, stop, start and warm the next, or go back.

The wall clock is the shell's; here a change is a fact with a monotonic moment. The calendar only adds and removes
candidates and wishes for starts: what fits is the ledger's to say.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from supervisor.core import coming, leaving, orders, placement
from supervisor.core.engine import Engine
from supervisor.core.events import ModeChanged
from supervisor.core.fleet import Fleet, Mode
from supervisor.core.lifecycle import STARTABLE, Reason, State
from supervisor.errors import NotAvailable


@dataclass(frozen=True, slots=True)
class Transition:
    """A change under way, until all of `warming` was ready once. `began`, `deadline`: monotonic seconds."""

    previous: Mode
    warming: tuple[str, ...]
    began: float
    deadline: float

    def awaits(self, engine: Engine) -> bool:
        """One that came up may have made room for another in the same moment."""
        return engine.state is not State.READY and engine.ready_since < self.began


def change(event: ModeChanged, fleet: Fleet) -> None:
    """Take in what the calendar, or a person, says; begin a transition where the mode is another one."""
    before, fleet.rolled_back = fleet.mode, None
    next_at = None if event.next_in is None else fleet.now + event.next_in
    fleet.enter(Mode(event.mode, event.next_mode, event.until, next_at, event.forced))
    if event.mode is None or event.mode == before.name:
        return
    mode = fleet.config.modes[event.mode]
    for engine in fleet.engines.values():
        if engine.state is State.COLD:
            engine.give_reason(None, fleet.now)  # what kept it from starting was another mode's
    cold = tuple(name for name in mode.warm if fleet.engines[name].state is not State.READY)
    fleet.transition = Transition(before, cold, fleet.now, fleet.now + mode.within)
    _announce(fleet, "mode", f"mode {event.mode} begins", warming=list(mode.warm))
    _clear_out(fleet, mode.drain)
    _want(fleet, mode.warm, mode.within)


def reconfigured(fleet: Fleet, event: ModeChanged | None, before: frozenset[str]) -> None:
    """Other modes, or other profiles in them, hold from now on. `before`: who was available."""
    modes, transition = fleet.config.modes, fleet.transition
    if transition is not None:
        there = tuple(name for name in transition.warming if name in fleet.config.profiles)
        previous = transition.previous if transition.previous.name in modes else Mode()
        fleet.transition = replace(transition, warming=there, previous=previous)
    if fleet.mode.name not in modes:
        fleet.mode, fleet.transition, fleet.rolled_back = Mode(), None, None
    if event is not None:
        change(event, fleet)
    lost = before - fleet.available
    for engine in fleet.engines.values():
        if engine.name in lost and not engine.outdated and not engine.retired:
            why = f"mode {fleet.mode.name} has it no longer"
            _shut_out(fleet, engine, why, modes[fleet.mode.name or ""].drain)


AHEAD = 120.0
"""Seconds before a mode begins in which the weights that it warms are read ahead."""


def go_on(fleet: Fleet) -> None:
    """Look how far a transition has come: over, or not to be had; and what the next one will need."""
    foresee(fleet)
    transition = fleet.transition
    if transition is None:
        return
    late = [engine for name in transition.warming if transition.awaits(engine := fleet.engines[name])]
    if not late:
        fleet.transition = None
        _announce(fleet, "mode_ready", f"mode {fleet.mode.name} is ready")
    elif (why := _hopeless(fleet, transition, late)) is not None:
        _roll_back(fleet, transition, why)


def foresee(fleet: Fleet) -> None:
    mode = fleet.mode
    if mode.next_mode is None or mode.next_at is None or fleet.transition is not None:
        return
    if fleet.now < mode.next_at - AHEAD:
        fleet.look_again(mode.next_at - AHEAD)
        return
    for name in fleet.config.modes[mode.next_mode].warm:
        coming.foresee(fleet, fleet.engines[name])


def _hopeless(fleet: Fleet, transition: Transition, late: list[Engine]) -> str | None:
    """Why the mode cannot be had; None while it may still come, as after a crash that is tried again."""
    if fleet.now >= transition.deadline:
        return f"{', '.join(engine.name for engine in late)} was not ready in time"
    for engine in late:
        given_up = engine.state is State.IMPOSSIBLE or (engine.state is State.COLD and not engine.wanted)
        if given_up:
            return (
                f"{engine.name} does not come up: {engine.last_reason or engine.last_failure or 'given up'}"
            )
    return None


def _roll_back(fleet: Fleet, transition: Transition, why: str) -> None:
    """The mode before serves on; the next change of the calendar tries anew."""
    failed, fleet.transition = fleet.mode, None
    fleet.rolled_back = f"mode {failed.name} could not begin: {why}"
    for name in transition.warming:
        fleet.engines[name].give_up_wanting()
    if transition.previous.name is None:
        _announce(fleet, "mode_failed", fleet.rolled_back, level="ERROR")
        return
    fleet.enter(Mode(transition.previous.name, failed.next_mode, failed.until, failed.next_at))
    _announce(fleet, "mode_rolled_back", f"{fleet.rolled_back}; {fleet.mode.name} goes on", level="ERROR")
    mode = fleet.config.modes[transition.previous.name]
    _clear_out(fleet, mode.drain)
    _want(fleet, mode.warm, mode.within)


def _clear_out(fleet: Fleet, drain: float) -> None:
    """Engines that the mode does not have go, and waiters whom it cannot serve hear so."""
    for engine in fleet.engines.values():
        if engine.name not in fleet.available:
            _shut_out(fleet, engine, f"mode {fleet.mode.name} begins", drain)
    for waiter in fleet.queues:
        if not (fleet.available | fleet.peers.keys()).intersection(waiter.profiles):
            fleet.queues.remove(waiter.lease)
            fleet.refuse(waiter.lease, closed(fleet, waiter.ask.model), waiter.ask)


def _shut_out(fleet: Fleet, engine: Engine, why: str, drain: float) -> None:
    """It goes, or comes no more but by a person's word."""
    if engine.claims() or not engine.start_tickets:
        engine.give_up_wanting()
    if engine.claims():
        leaving.retire(fleet, engine, Reason.MODE, why, drain=drain)


def _want(fleet: Fleet, profiles: tuple[str, ...], within: float) -> None:
    for name in profiles:
        engine = fleet.engines[name]
        if engine.state is not State.READY:
            engine.want(until=fleet.now + within)


def _announce(fleet: Fleet, event: str, message: str, *, level: str = "INFO", **facts: object) -> None:
    fleet.order(orders.Note(event, None, message, level, facts))


WARM_WITHIN = 1800.0
"""Seconds that a profile which is warmed by cron waits for its place; then it starts when somebody asks for it."""


def warm(fleet: Fleet, name: str) -> None:
    """The calendar wants this profile ready before anybody asks."""
    engine = fleet.engines[name]
    if name in fleet.available and engine.state not in (State.READY, State.IMPOSSIBLE):
        engine.want(until=fleet.now + WARM_WITHIN)


# What requests hear


def closed(fleet: Fleet, model: str) -> NotAvailable:
    """The refusal of a model that this mode does not have, with when it comes back."""
    serving = {profile.name for profile in fleet.config.named.get(model, ())}
    comes = fleet.mode.next_mode is not None and serving & fleet.config.profiles_in(fleet.mode.next_mode)
    when = f"; it comes back {fleet.mode.back}" if comes and fleet.mode.back else ""
    why = f" ({fleet.rolled_back})" if fleet.rolled_back else ""
    seconds = fleet.mode.next_at - fleet.now if comes and fleet.mode.next_at is not None else 60.0
    return NotAvailable(
        f"model {model!r} is not served in mode {fleet.mode.name}{when}{why}",
        retry_after=max(1.0, seconds),
        param="model",
    )


def soon(fleet: Fleet, patience: float) -> frozenset[str]:
    """The profiles of the next mode, where it begins before a request would lose patience."""
    mode = fleet.mode
    if mode.next_mode is None or mode.next_at is None or mode.next_at - fleet.now > patience:
        return frozenset()
    return fleet.config.profiles_in(mode.next_mode)


# What a person hears beforehand


def plan(fleet: Fleet, name: str) -> dict[str, Any]:
    """What a change to mode `name` would do now: who drains, who stops, who starts, and whether that fits."""
    coming, mode = fleet.config.profiles_in(name), fleet.config.modes[name]
    going = [e for e in fleet.engines.values() if e.name not in coming and e.claims()]
    return {
        "mode": name,
        "serves": sorted(coming),
        "drains": [{"profile": e.name, "in_flight": len(e.leases)} for e in going if e.leases],
        "drain_s": mode.drain,
        "stops": [e.name for e in going if not e.leases],
        "starts": [_foresee(fleet, fleet.engines[warm], going) for warm in mode.warm],
        "within_s": mode.within,
        "back_to": fleet.mode.name,
    }


def _foresee(fleet: Fleet, engine: Engine, going: list[Engine]) -> dict[str, Any]:
    if engine.state not in STARTABLE:
        return {"profile": engine.name, "verdict": f"is {engine.state}", "fits": True, "seconds": 0.0}
    verdict = placement.verdict_without(fleet, engine, going)
    return {
        "profile": engine.name,
        "verdict": str(verdict),
        "fits": verdict.admitted,
        "seconds": engine.seconds_left(fleet.now),
    }
