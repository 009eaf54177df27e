"""A profile that fits: which GPUs, how long a context, how many requests, how much memory. Pure.

What is tried is judged by `plan.outlook`, the same that `llmd plan` asks, so what is proposed is what fits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from supervisor.config import Config, Profile, Task
from supervisor.config.warnings import CHAT_WITH_TOOLS
from supervisor.core.devices import HOST, MIB, Reading, Survey
from supervisor.errors import OperatorError
from supervisor.planning import nature
from supervisor.planning.nature import Model
from supervisor.planning.plan import (
    Known,
    Outlook,
    Verdict,
    devices_of,
    largest_asked,
    limit,
    outlook,
    size_holding,
)

LONGEST: Mapping[Task, int] = {"generate": 32768, "transcribe": 32768}
"""Of a proposed max_model_len, in tokens; 8192 for what reads its input in one piece, whose memory grows with it."""

SEATS = (8, 6, 4, 3, 2, 1)
POOLING_SEATS = (32, 8, 1)
"""max_concurrent to try: requests of half the context at once, or inputs of one batch."""

WORTHWHILE = 4096
"""Tokens of context for which a single card is taken rather than several."""

SHARE = 0.92
"""At most of a card, as vLLM takes where it is not told otherwise."""

CPU_OWN = 1 << 30
"""Bytes of host memory for vLLM's own processes, which its CPU backend counts in what it may take: a start with
192 MiB for a tiny model logged 0.72 GiB more than that as taken before the KV cache."""

_SHORTER = (1, 0.75, 0.5, 0.375, 0.25, 0.1875, 0.125, 0.0625)
_GROUPS = (2, 4, 8)

Fields = dict[str, Any]
"""A profile as it is written."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a person has said; the rest is proposed."""

    gpus: tuple[int, ...] = ()
    cpu: bool = False
    name: str | None = None
    model: str | None = None
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class Proposal:
    """`fields` in the order in which a person would write them."""

    name: str
    fields: Fields
    outlook: Outlook
    cards: tuple[Reading, ...]
    """What it runs on; the host for the CPU."""
    remarks: tuple[str, ...] = ()

    @property
    def profile(self) -> Profile:
        return self.outlook.profile


def propose(model: Model, wish: Wish, config: Config, survey: Survey) -> Proposal:
    """The best profile for `model` on the devices of `survey`. Raises OperatorError, with why none fits."""
    purpose = nature.task(model)
    enough = min(WORTHWHILE, _windows(model, purpose)[0])
    found: list[Proposal] = []
    refused: list[str] = []
    for tier in _tiers(wish, config, survey):
        for gpus in tier:
            tried = _on(gpus, model, purpose, wish, config, survey)
            if isinstance(tried, str):
                refused.append(tried)
            else:
                found.append(tried)
        if any(_window(each) >= enough for each in found):
            break
    if not found:
        widest = refused[-1] if refused else "there is no GPU"
        raise OperatorError(f"{model.weights} fits nowhere here; {widest}")
    return max(found, key=_window)


def _tiers(wish: Wish, config: Config, survey: Survey) -> Iterator[list[tuple[int, ...]]]:
    """Groups of GPUs, those to be preferred first: each card alone, then two, four and eight of the largest."""
    if wish.cpu or wish.gpus:
        yield [wish.gpus]
        return
    cards = [card for card in survey.readings if card.device != HOST and not card.trouble]
    indices = {card.index: card for card in cards if card.index is not None}
    named = [gpu for profile in config.profiles.values() for gpu in profile.gpus]
    yield [(index,) for index in sorted(indices, key=lambda index: (named.count(index), index))]
    by_size = sorted(indices, key=lambda index: (-indices[index].total, index))
    yield from ([tuple(sorted(by_size[:count]))] for count in _GROUPS if count <= len(by_size))


def _on(
    gpus: tuple[int, ...], model: Model, purpose: Task, wish: Wish, config: Config, survey: Survey
) -> Proposal | str:
    """The longest context that fits on `gpus` with as many requests as it bears; or why nothing fits there."""
    public = wish.model or public_name(model.weights)
    name = wish.name or f"{re.sub(r'[^a-z0-9_-]+', '-', public.lower())}_{_suffix(gpus)}"
    base = _base(model, public, purpose, gpus, wish)
    refused = Outlook(_profile(name, base), Verdict.NEVER)
    for fields in _attempts(name, base, model, purpose, config, survey):
        seen = outlook(_profile(name, fields), Known(model.checkpoint), config, survey)
        if seen.verdict in (Verdict.FITS, Verdict.STATED):
            return Proposal(name, fields, seen, _found(seen.profile, survey), _remarks(model, purpose, seen))
        refused = seen
    where = f"GPU {', '.join(map(str, gpus))}" if gpus else "the CPU"
    return f"{where}: {refused.reason}"


def _attempts(
    name: str, base: Fields, model: Model, purpose: Task, config: Config, survey: Survey
) -> Iterator[Fields]:
    """Settings to try, the best first: a long context, then many requests, then no more memory than these need."""
    smallest = min(_found(_profile(name, base), survey), key=lambda reading: reading.total, default=None)
    if smallest is None:
        yield base
        return
    room = limit(smallest, config)
    for window in _windows(model, purpose):
        for seats in SEATS if purpose in LONGEST else POOLING_SEATS:
            fields = {**base, "max_model_len": window, "max_concurrent": seats}
            yield from _asking(name, fields, model, smallest, room, config, survey)


def _asking(
    name: str, fields: Fields, model: Model, smallest: Reading, room: int, config: Config, survey: Survey
) -> Iterator[Fields]:
    """`fields` with the memory to ask for: what its requests need, else all that there is."""
    whole = {**fields, **_all_of(_profile(name, fields), smallest, room)}
    counted = outlook(_profile(name, whole), Known(model.checkpoint), config, survey).footprint
    if counted is None:
        yield whole
        return
    seats = int(fields["max_concurrent"])
    if counted.requests is not None and 2 * counted.requests < seats and seats > 1:
        return  # they would crowd each other out of the KV cache all the time
    full = counted.kv.pages(counted.window) * counted.kv.block_size if counted.kv else 0
    least = counted.least + (seats - 1) * full + (CPU_OWN if "memory" in whole else 0)
    asked = _rounded(size_holding(_profile(name, whole), least, smallest))
    if asked < counted.budget:
        yield {**fields, "memory" if "memory" in whole else "vram": written(asked)}
    yield whole


def _all_of(profile: Profile, smallest: Reading, room: int) -> Fields:
    mend = next(iter(largest_asked(profile, smallest, room)), {})
    share = mend.get("gpu_memory_utilization")
    if share is not None:
        return {"gpu_memory_utilization": min(SHARE, share)}
    return {key: written(int(size) - int(size) % (64 * MIB)) for key, size in mend.items()}


def _base(model: Model, public: str, purpose: Task, gpus: tuple[int, ...], wish: Wish) -> Fields:
    fields: Fields = {"model": public, "weights": model.weights}
    fields |= {"revision": wish.revision} if wish.revision else {}
    fields |= {"task": purpose} if purpose != "generate" else {}
    fields |= {"gpus": list(gpus)} if gpus else {"device": "cpu"}
    return fields


def finished(proposal: Proposal, model: Model) -> Fields:
    """With the parsers of the model's family: they take no memory, so they are not tried."""
    fields = dict(proposal.fields)
    if fields.get("task", "generate") == "generate":
        tool, reasoning = nature.parsers(model)
        fields |= {"tool_parser": tool} if tool and _window(proposal) >= CHAT_WITH_TOOLS else {}
        fields |= {"reasoning_parser": reasoning} if reasoning else {}
    return fields


def public_name(weights: str) -> str:
    """`meta-llama/Llama-3.1-8B-Instruct` -> `llama-3.1-8b-instruct`."""
    last = re.sub(r"[^a-z0-9._-]+", "-", weights.rstrip("/").rpartition("/")[2].lower()).strip("-._")
    return last or "model"


def written(size: int) -> str:
    """As a person writes it: `"18.5 GiB"`, `"192 MiB"`."""
    mib = size // MIB
    return f"{mib / 1024:g} GiB" if mib % 512 == 0 else f"{mib} MiB"


def _rounded(size: int) -> int:
    """Up to half a GiB, or 64 MiB where it is small."""
    step = (512 if size >= 1024 * MIB else 64) * MIB
    return size + -size % step


def _windows(model: Model, purpose: Task) -> list[int]:
    """Contexts to try, the longest first, in round numbers."""
    longest = min(nature.length(model), LONGEST.get(purpose, 8192))
    shorter = (int(longest * part) for part in _SHORTER)
    return list(dict.fromkeys(tokens - tokens % (256 if tokens >= 256 else 1) for tokens in shorter))


def _window(proposal: Proposal) -> int:
    return proposal.profile.max_model_len or 0


def _found(profile: Profile, survey: Survey) -> tuple[Reading, ...]:
    """None of them where one is missing."""
    found = devices_of(profile, survey)
    return () if isinstance(found, str) else found


def _suffix(gpus: tuple[int, ...]) -> str:
    if len(gpus) == 2:
        return "dual"
    return "cpu" if not gpus else str(gpus[0]) if len(gpus) == 1 else f"x{len(gpus)}"


def _profile(name: str, fields: Fields) -> Profile:
    memory = {} if fields.get("device") != "cpu" or "memory" in fields else {"memory": 1}
    try:
        return Profile.model_validate({**fields, **memory, "name": name})
    except ValidationError as error:  # what a person wished for
        raise OperatorError("; ".join(details["msg"] for details in error.errors())) from error


def _remarks(model: Model, purpose: Task, seen: Outlook) -> tuple[str, ...]:
    return (*nature.remarks(model, purpose), *filter(None, [seen.reason]), *seen.notes)
