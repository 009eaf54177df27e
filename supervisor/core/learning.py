"""Where the fleet learns from what happens, and what it makes of that: a record to keep, a warning, an estimate."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from supervisor.core import context, orders
from supervisor.core.devices import Reading, gib
from supervisor.core.engine import Engine
from supervisor.core.fleet import Fleet
from supervisor.core.learned import Learned, Tokens, drift, notable, taught
from supervisor.core.ledger import name_of
from supervisor.core.lifecycle import SERVING
from supervisor.core.routing import Ask

LEAST_CUDA = 0.9
"""Share of NVML's total below which CUDA's was misread: those seen were 0.98 and more."""

UNSEEN = Tokens()
"""Of a model whose prompts were never counted."""


def learn(fleet: Fleet, engine: Engine, learned: Learned) -> None:
    """Take in a new record; have it kept where it differs enough from the one that was kept last."""
    engine.learned = learned
    if notable(engine.kept, learned) and not engine.outdated:
        engine.kept = learned
        fleet.order(orders.Remember(engine.name, learned))


def came_up(fleet: Fleet, engine: Engine, seconds: float | None) -> None:
    """It answers after a start or a wake; None where that began under an earlier daemon."""
    if seconds is not None:
        known = engine.learned
        learn(fleet, engine, known.woke(engine.asleep, seconds) if engine.asleep else known.started(seconds))


def fell_asleep(fleet: Fleet, engine: Engine, residue: Mapping[str, int]) -> None:
    learn(fleet, engine, engine.learned.slept(residue))
    warn_of_drift(fleet, engine)


def eased(fleet: Fleet, engine: Engine, rung: int) -> None:
    learn(fleet, engine, replace(engine.learned, rung=rung))


def sleepless(fleet: Fleet, engine: Engine) -> None:
    learn(fleet, engine, replace(engine.learned, sleepless=True))


def weighed(fleet: Fleet, engine: Engine, weights: int) -> None:
    learn(fleet, engine, engine.learned.weighed(weights))


def told_totals(fleet: Fleet, engine: Engine, totals: Mapping[int, int]) -> None:
    """CUDA's totals of its GPUs, by their rank among them."""
    for rank, gpu in enumerate(engine.profile.gpus):
        if (size := totals.get(rank)) and (reading := fleet.ledger.gpu(gpu)):
            _counted_by_cuda(fleet, engine, reading, size)


def _counted_by_cuda(fleet: Fleet, engine: Engine, reading: Reading, size: int) -> None:
    card, total = fleet.ledger.survey.card(reading), min(size, reading.total)
    if total <= LEAST_CUDA * reading.total or fleet.ledger.totals.get(card) == total:
        return
    fleet.ledger.totals[card] = total
    fleet.order(orders.RememberTotal(card, total))
    words = f"{name_of(reading)} has {gib(total)} for CUDA, {gib(reading.total)} for NVML"
    fleet.note("cuda_total", engine, words, device=reading.device, total=total)


def told_version(fleet: Fleet, engine: Engine, version: str) -> None:
    """Another version has a record of its own, begun anew or from when it last ran; the one before is what it is
    held against."""
    known = engine.learned
    if known.version is None:
        learn(fleet, engine, replace(known, version=version))
    elif known.version != version:
        engine.versions[known.version] = engine.formerly = known
        engine.drifts.clear()
        before = engine.versions.get(version)
        learn(
            fleet,
            engine,
            known.of_version(version)
            if before is None
            else replace(before, tokens=known.tokens, rung=known.rung),
        )


def looked_at(fleet: Fleet, engine: Engine) -> None:
    """A reading was taken: the most that it ever held, and whether that is far off the version before."""
    if engine.state in SERVING:
        held = {device: engine.measured[device] for device in engine.devices if engine.measured.get(device)}
        learn(fleet, engine, engine.learned.grew(held))
        warn_of_drift(fleet, engine)


def warn_of_drift(fleet: Fleet, engine: Engine) -> None:
    """Once for each figure and change of version."""
    before, after = engine.formerly, engine.learned
    found = {} if before is None else drift(before, after)
    if before is None or found.keys() <= engine.drifts:
        return
    words = "; ".join(said for figure, said in found.items() if figure not in engine.drifts)
    engine.drifts |= found.keys()
    message = f"{engine.name} differs under vLLM {after.version} from {before.version}: {words}"
    fleet.note(
        "drift", engine, message, level="WARNING", before=before.figures(), after=after.figures()
    )  # fmt: skip


def counted(fleet: Fleet, engine: Engine, letters: int | None, tokens: int) -> None:
    """The engine told how many tokens a prompt had."""
    if letters is None or tokens <= 0:
        return
    engine.learned = learned = engine.learned.counted(letters, tokens)
    if taught(engine.kept, learned):  # nothing else is new in it
        learn(fleet, engine, learned)


def estimate(fleet: Fleet, ask: Ask) -> Ask:
    """With the tokens that its letters come to with its model, as far as that was seen."""
    if ask.letters is None:
        return ask
    best = UNSEEN
    for profile in fleet.config.named.get(ask.model, ()):
        known = fleet.engines[profile.name].learned.tokens
        if known.seen > best.seen:
            best = known
    if best is UNSEEN:
        return ask
    tokens = best.expect(ask.letters)
    sure = int(tokens * context.SHARE)
    return replace(ask, tokens=tokens, least=sure if sure < ask.least else ask.least)


def usual_residue(fleet: Fleet, engine: Engine) -> dict[str, int]:
    """Bytes that it would leave on each GPU asleep: as measured, else as configured."""
    usual = fleet.config.memory.residue
    return {card: engine.expected.residue.get(card, usual) for card in fleet.cards_of(engine)}
