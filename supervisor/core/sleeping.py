"""vLLM's sleep: an engine gives up its card and keeps its process. Over once the devices show it: an answer proves
nothing."""

from __future__ import annotations

from supervisor.core import coming, ending, learning, leaving, orders
from supervisor.core.devices import HOST
from supervisor.core.engine import Engine
from supervisor.core.failures import Failure, FailureClass
from supervisor.core.fleet import Fleet
from supervisor.core.ledger import Claims
from supervisor.core.lifecycle import SERVING, State, Step


def sleep_level(fleet: Fleet, engine: Engine, claims: Claims) -> int:
    """1 where host memory takes its weights, 2 where it does not, 0 where it cannot sleep."""
    if not engine.sleeps or engine.state not in SERVING:
        return 0
    return 1 if fleet.ledger.room(HOST, claims) >= engine.host_need else 2


def cannot_sleep(engine: Engine) -> str | None:
    """Why it cannot be put to sleep now, in words; None where it can."""
    if not engine.profile.sleep:
        return f"{engine.name} does not sleep: its profile has no sleep = true"
    if not engine.sleeps:
        return f"{engine.name} did not sleep properly before; it can be stopped"
    return (
        None
        if engine.state is State.READY
        else f"{engine.name} is {engine.state}: only a ready engine sleeps"
    )


def fall_asleep(fleet: Fleet, engine: Engine, level: int) -> None:
    """Its memory stays promised to it until the devices show that it came back; its weights' place is taken now."""
    lie_down(fleet, engine, level)
    fleet.order(orders.Sleep(engine.incarnation or "", level))


def lie_down(fleet: Fleet, engine: Engine, level: int) -> None:
    limits = fleet.config.engine
    engine.step(Step.SLEEP, fleet.now)
    engine.asleep, engine.settled, engine.slept_at, engine.proven = level, False, None, True
    if level == 1:
        engine.reserved[HOST] = engine.host_need
    engine.deadline = fleet.now + limits.sleep_timeout + limits.settle_timeout


def settle_asleep(fleet: Fleet, engine: Engine) -> None:
    """Over once the devices show that most of the memory came back: an answer of 200 proves nothing.

    Held against the most that it was seen to hold awake, not the last: it may have woken since.
    """
    if engine.slept_at is None:
        return
    fallen = {device: engine.measured.get(device) for device in fleet.cards_of(engine)}
    awake = fleet.ledger.needs(engine.profile, engine.devices)
    for device, now_held in fallen.items():
        reading = fleet.ledger.reading(device)
        if reading is None or reading.trouble or now_held is None or reading.at < engine.slept_at:
            return
        if now_held > min(awake[device], engine.expected.peak.get(device, awake[device])) / 2:
            return
    engine.settled, engine.deadline = True, coming.bedtime_asleep(fleet, engine)
    kept = {device: held for device, held in fallen.items() if held is not None}
    engine.reserved |= kept
    residue = sum(kept.values())
    learning.fell_asleep(fleet, engine, kept)
    fleet.note("engine_asleep", engine, f"{engine.name} sleeps at level {engine.asleep}", residue=residue)


def sleep_failed(fleet: Fleet, engine: Engine, reason: str) -> None:
    """It answered, or showed, that it does not sleep: stop it, and do not try that again."""
    learning.sleepless(fleet, engine)
    fleet.note("sleep_failed", engine, f"{engine.name} did not fall asleep: {reason}", level="WARNING")
    leaving.terminate(fleet, engine)


def wake_failed(fleet: Fleet, engine: Engine, reason: str) -> None:
    """Replace it by a fresh start, which those who wait for it await; the next one is not put to sleep."""
    learning.sleepless(fleet, engine)
    engine.proven = True
    ending.fail(fleet, engine, Failure(FailureClass.TRANSIENT, f"did not wake: {reason}"))
