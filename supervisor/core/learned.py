"""What a profile's engines have shown of themselves, to expect from the next one instead of guessing. Pure.

Sizes are bytes, durations seconds; None, or a device that is missing, is what was never measured. One record holds
for one profile with one set of arguments under one version of vLLM.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec
from msgspec.structs import replace

from supervisor.core.devices import MIB, gib

NEWEST = 0.5
"""Share of the newest measurement in a moving mean: the first start after a boot reads from a cold disk."""

FADE = 0.99
"""What a request still counts for, among those that teach tokens, when the next one has come."""

USUAL = ((1000, 250), (8000, 2000))
"""(letters, tokens) that stand for what is usual, four letters a token, until enough was counted."""

USUAL_WEIGHT = 0.01
"""What one of them counts for against a request that was counted."""

_WEIGHED = [(letters, tokens, USUAL_WEIGHT / tokens) for letters, tokens in USUAL]
_USUAL = (
    sum(weight for _, _, weight in _WEIGHED),
    sum(weight * letters for letters, _, weight in _WEIGHED),
    sum(weight * tokens for _, tokens, weight in _WEIGHED),
    sum(weight * letters * letters for letters, _, weight in _WEIGHED),
    sum(weight * letters * tokens for letters, tokens, weight in _WEIGHED),
)
"""The weighted sums of those."""

NOTABLE = 0.05
DRIFT = 0.25
DRIFT_SECONDS = 10.0
DRIFT_WAKE = 3.0
DRIFT_BYTES = 512 * MIB


class Tokens(msgspec.Struct, frozen=True, gc=False):
    """A prompt's tokens as a straight line over its letters, by least squares, older requests fading.

    A ratio would not do: the chat template costs every prompt the same tokens. Counts scatter with the square root
    of their size, so each request weighs one over its tokens. The fields are the weighted sums.
    """

    seen: int = 0
    weight: float = 0.0
    letters: float = 0.0
    tokens: float = 0.0
    squares: float = 0.0
    products: float = 0.0

    def count(self, letters: int, tokens: int) -> Tokens:
        """With one more request, whose prompt of `letters` was counted."""
        one, fade = 1.0 / max(tokens, 1), FADE
        each = one * letters
        return Tokens(
            self.seen + 1,
            fade * self.weight + one,
            fade * self.letters + each,
            fade * self.tokens + one * tokens,
            fade * self.squares + each * letters,
            fade * self.products + each * tokens,
        )

    def expect(self, letters: int) -> int:
        """Tokens that a prompt of `letters` is likely to have."""
        per_letter, fixed = self.line()
        return max(0, round(fixed + per_letter * letters))

    def line(self) -> tuple[float, float]:
        """(tokens a letter, tokens that every prompt has)."""
        weight, letters, tokens, squares, products = _USUAL
        weight += self.weight
        x, y = (self.letters + letters) / weight, (self.tokens + tokens) / weight
        spread = (self.squares + squares) / weight - x * x
        slope = ((self.products + products) / weight - x * y) / spread
        per_letter = slope if slope > 0.0 else 0.0
        return per_letter, y - per_letter * x


class Learned(msgspec.Struct, frozen=True):
    version: str | None = None
    """Of vLLM."""
    start: float | None = None
    """From the spawn to the first answer, a moving mean."""
    wake: float | None = None
    """From level 1, a moving mean."""
    reload: float | None = None
    """From level 2, whose weights are loaded again, a moving mean."""
    weights: int | None = None
    peak: Mapping[str, int] = msgspec.field(default_factory=dict)
    """Device -> the most that an engine was seen to hold there."""
    residue: Mapping[str, int] = msgspec.field(default_factory=dict)
    """GPU -> the most that was left there by one asleep."""
    tokens: Tokens = Tokens()
    rung: int | None = None
    """Requests at a time after it ran out of memory while serving; None: what the profile says."""
    sleepless: bool = False
    """Sleeping or waking failed, or gave nothing back."""

    def started(self, seconds: float) -> Learned:
        return replace(self, start=_mean(self.start, seconds))

    def woke(self, level: int, seconds: float) -> Learned:
        if level == 1:
            return replace(self, wake=_mean(self.wake, seconds))
        return replace(self, reload=_mean(self.reload, seconds))

    def grew(self, measured: Mapping[str, int]) -> Learned:
        peak = _highest(self.peak, measured)
        return self if peak == self.peak else replace(self, peak=peak)

    def slept(self, residue: Mapping[str, int]) -> Learned:
        return replace(self, residue=_highest(self.residue, residue))

    def weighed(self, weights: int) -> Learned:
        return replace(self, weights=weights)

    def counted(self, letters: int, tokens: int) -> Learned:
        return replace(self, tokens=self.tokens.count(letters, tokens))

    def of_version(self, version: str) -> Learned:
        """The record of another version begins anew, but for the tokens, which are the model's, and the rung, which
        is kept until the profile changes. It may have learned to sleep."""
        return Learned(version=version, tokens=self.tokens, rung=self.rung)

    def or_else(self, other: Learned) -> Learned:
        """Where this one knows nothing, what `other` knows."""
        return Learned(
            self.version,
            other.start if self.start is None else self.start,
            other.wake if self.wake is None else self.wake,
            other.reload if self.reload is None else self.reload,
            other.weights if self.weights is None else self.weights,
            {**other.peak, **self.peak},
            {**other.residue, **self.residue},
            self.tokens,
            self.rung,
            self.sleepless,
        )

    def figures(self) -> dict[str, float]:
        """All that was measured, under names for people; tokens aside."""
        single = {"start": self.start, "wake": self.wake, "reload": self.reload, "weights": self.weights}
        known: dict[str, float] = {name: value for name, value in single.items() if value is not None}
        return (
            known | {f"peak on {d}": s for d, s in self.peak.items()}
            | {f"residue on {d}": s for d, s in self.residue.items()}
        )  # fmt: skip


def _mean(before: float | None, newest: float) -> float:
    return newest if before is None else (1 - NEWEST) * before + NEWEST * newest


def _highest(before: Mapping[str, int], now: Mapping[str, int]) -> dict[str, int]:
    return {**before, **{device: max(size, before.get(device, 0)) for device, size in now.items()}}


def notable(before: Learned, after: Learned) -> bool:
    """Whether `after` is worth keeping beside `before`: a figure is new, or moved by a twentieth."""
    old, new = before.figures(), after.figures()
    moved = any(_moved(old[name], value) for name, value in new.items() if name in old)
    ways = (before.version, before.rung, before.sleepless) != (after.version, after.rung, after.sleepless)
    return ways or old.keys() != new.keys() or moved or taught(before, after)


def taught(before: Learned, after: Learned) -> bool:
    """Whether `after` knows many more requests' tokens."""
    seen = before.tokens.seen
    return after.tokens.seen >= (max(1, 2 * seen) if seen < 1024 else seen + 1024)


def _moved(before: float, after: float) -> bool:
    return abs(after - before) > NOTABLE * before


def drift(before: Learned, after: Learned) -> dict[str, str]:
    """Figures in which a version is far off the one before it, both numbers in words. Its record may still be
    incomplete."""
    return dict((*_slower(before, after), *_larger(before, after)))


def _slower(before: Learned, after: Learned) -> Iterator[tuple[str, str]]:
    for figure, least, verb in (
        ("start", DRIFT_SECONDS, "starts"),
        ("wake", DRIFT_WAKE, "wakes"),
        ("reload", DRIFT_SECONDS, "reloads"),
    ):
        old, new = getattr(before, figure), getattr(after, figure)
        if old and new and _far(old, new, least):
            yield figure, f"it {verb} in {new:.0f} s, it took {old:.0f} s"


def _larger(before: Learned, after: Learned) -> Iterator[tuple[str, str]]:
    for device, was in before.peak.items():
        now = after.peak.get(device)
        if now is not None and _far(was, now, DRIFT_BYTES):
            yield f"peak on {device}", f"it takes {gib(now)} of {device}, it took {gib(was)}"
    for device, was in before.residue.items():
        now = after.residue.get(device)
        if now is not None and _far(was, now, DRIFT_BYTES):
            yield f"residue on {device}", f"it leaves {gib(now)} of {device} asleep, it left {gib(was)}"


def _far(before: float, after: float, least: float) -> bool:
    return abs(after - before) > max(DRIFT * before, least)
