"""Engines on their way up: reserve, look again, spawn; and ready, where the idle clock begins."""

from __future__ import annotations

from supervisor.core import orders
from supervisor.core.engine import Engine
from supervisor.core.fit import need, utilization
from supervisor.core.fleet import Fleet
from supervisor.core.lifecycle import State, Step


def start(fleet: Fleet, engine: Engine) -> None:
    """Reserve; the spawn follows once a reading taken after the reservation agrees."""
    devices = fleet.ledger.devices_of(engine.profile)
    assert devices is not None
    engine.step(Step.RESERVE, fleet.now)
    engine.incarnation, engine.devices = fleet.name_incarnation(), devices
    engine.reserved = {device: need(engine.profile, fleet.reading(device)) for device in devices}
    fleet.order(orders.Survey())


def spawn_if_still_fits(fleet: Fleet, engine: Engine) -> None:
    if any(fleet.reading(device).at < engine.since for device in engine.devices):
        return
    verdict = fleet.ledger.judge(engine.profile, fleet.claims(without=engine.name), fleet.now)
    if not verdict.admitted:
        engine.step(Step.RELEASE, fleet.now)
        engine.clear()
        return
    for device in engine.devices:
        reading = fleet.reading(device)
        engine.before[device] = (reading.used, 0, reading.unattributed)
    cards = [card for ref in engine.profile.gpus if (card := fleet.ledger.gpu(ref))]
    measure = cards[0] if cards and not cards[0].unified else fleet.reading(engine.devices[0])
    engine.step(Step.SPAWN, fleet.now)
    engine.loading_since, engine.failure = fleet.now, None
    engine.starts += 1
    engine.deadline = fleet.now + fleet.config.engine.start_timeout
    indices = tuple(card.index for card in cards if card.index is not None)
    share = utilization(engine.profile, measure)
    fleet.order(orders.Spawn(engine.name, engine.incarnation or "", engine.devices, indices, share))
    fleet.note("engine_starting", engine, f"{engine.name} starts", reserved=dict(engine.reserved))


def rest(fleet: Fleet, engine: Engine) -> None:
    """Nothing in flight: the idle clock runs, or a drain is over."""
    engine.idle_since = fleet.now
    if engine.state is State.READY:
        ttl = engine.profile.idle_ttl
        engine.deadline = None if ttl is None else fleet.now + ttl
