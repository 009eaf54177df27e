"""Verdicts on the driver and the GPUs. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from supervisor.cli.doctor.finding import Finding, fail, good, warn
from supervisor.core.devices import GIB, HOST, Holder, Reading, Survey, gib
from supervisor.host.nvml import Health

HOT = 87
"""Degrees Celsius from which a card is called hot that does not tell where it slows down."""

NEAR = 4
"""Degrees below that where it is."""

NOTICED = GIB
"""Of memory that others hold on a card; a desktop takes less."""

_REMEDIES = {
    "was not found": "install NVIDIA's driver, and see that nvidia-smi runs",
    "not loaded": "run nvidia-smi as root, or modprobe nvidia; after an update reboot",
    "mismatch": "reboot, or unload and load the nvidia modules",
    "permission": "let this user open /dev/nvidiactl: on most hosts the groups video or render do",
    "does not answer": "see `dmesg` for NVRM and Xid lines; a reset or a reboot helps",
    "lost": "see `dmesg` for Xid lines; reset the card, or reboot",
}
"""Words of a trouble -> what to do."""


def driver(survey: Survey, needed: bool) -> Finding:
    """`needed`: whether any profile is for a GPU."""
    cards = [reading for reading in survey.readings if reading.device != HOST]
    if survey.trouble is not None:
        if not needed:
            return good("driver", f"no profile needs one ({survey.trouble})")
        return fail("driver", survey.trouble, _remedy(survey.trouble))
    told = f"NVIDIA {survey.driver}, {len(cards)} {'GPU' if len(cards) == 1 else 'GPUs'}"
    if needed and not cards:
        return fail("driver", told, "see that nvidia-smi -L lists the cards")
    return good("driver", told)


def cards(survey: Survey, health: Collection[Health], ours: Collection[int]) -> Iterator[Finding]:
    """`ours`: the pids of llmd's own engines."""
    states = {each.index: each for each in health}
    for reading in survey.readings:
        if reading.device == HOST:
            continue
        if reading.trouble is not None:
            yield fail(_label(reading), reading.trouble, _remedy(reading.trouble))
            continue
        state = states.get(reading.index if reading.index is not None else -1)
        troubles = [*_ailments(reading, state)] if state else []
        yield from troubles or [good(_label(reading), _well(reading, state))]
        yield memory(reading, ours)


def memory(reading: Reading, ours: Collection[int]) -> Finding:
    """Who holds what of a card."""
    check = f"{_label(reading)} memory"
    if reading.unified:
        return good(check, "shared with the host")
    free = f"{gib(reading.free)} of {gib(reading.total)} free"
    foreign = [holder for holder in reading.holders if holder.pid not in ours]
    theirs = sum(holder.used or 0 for holder in foreign)
    if max(theirs, reading.unattributed if not ours else 0) < NOTICED:
        return good(check, free)
    held = ", ".join(map(_holder, foreign)) or "processes that the driver does not name"
    return warn(check, f"{free}; held by {held}", "end them, or let profiles ask for less (vram)")


def _ailments(reading: Reading, health: Health) -> Iterator[Finding]:
    label = _label(reading)
    if health.worn:
        yield fail(label, "its memory has rows that cannot be replaced", "have the card exchanged")
    if health.uncorrected:
        what = f"{health.uncorrected} uncorrected memory errors (ECC) since the driver was loaded"
        yield fail(
            label, what, "stop its engines and reset it (nvidia-smi -r); should they come again, exchange it"
        )
    elif health.pending:
        yield warn(
            label, "rows of its memory wait to be replaced", "reset it when idle (nvidia-smi -r), or reboot"
        )
    if health.slowed:
        yield warn(label, f"slowed down by {', '.join(health.slowed)}", "see to cooling and power")
    elif reading.temperature is not None and reading.temperature >= (health.slows_at or HOT + NEAR) - NEAR:
        yield warn(label, f"{reading.temperature:.0f} °C, near where it slows down", "see to cooling")
    if health.persistent is False:
        yield warn(
            label,
            "persistence mode is off: the driver lets go of the idle card, and each start waits for it",
            "run systemctl enable --now nvidia-persistenced, or nvidia-smi -pm 1 at boot",
        )


def _well(reading: Reading, health: Health | None) -> str:
    heat = "" if reading.temperature is None else f", {reading.temperature:.0f} °C"
    errors = ", no memory errors" if health and health.uncorrected == 0 else ""
    return f"{reading.name}{heat}{errors}"


def _holder(holder: Holder) -> str:
    size = "" if holder.used is None else f" {gib(holder.used)}"
    return f"{holder.name} {holder.pid} ({holder.user}){size}"


def _remedy(trouble: str) -> str:
    return next(
        (remedy for words, remedy in _REMEDIES.items() if words in trouble), "see `dmesg` and nvidia-smi"
    )


def _label(reading: Reading) -> str:
    return f"GPU {reading.index}"
