"""How often engines came and went, why, and how long that took: counted from the core's own notes. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from supervisor.core.lifecycle import Reason
from supervisor.core.orders import Note

WAYS = {"engine_starting": "cold", "engine_waking": "waking"}
"""Note -> how an engine comes up; one that was adopted came up by neither."""

LEAVING = frozenset({"engine_draining", "engine_stopping"})
REASONS = (*Reason, "failed", "other")
KINDS = ("idle", "swap")
MODES = {"mode_ready": "begun", "mode_failed": "failed", "mode_rolled_back": "rolled_back"}


@dataclass(slots=True)
class Total:
    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds


@dataclass(slots=True)
class Tally:
    """Every key begins with a profile; its other part is one of a few words of ours, so it cannot grow."""

    starts: dict[tuple[str, str], Total] = field(default_factory=dict)
    """(profile, "cold" or "waking") -> starts that ended in ready."""
    stops: dict[tuple[str, str], Total] = field(default_factory=dict)
    """(profile, reason) -> ends, from the decision until the memory was back."""
    sleeps: dict[tuple[str, str], Total] = field(default_factory=dict)
    """The same of those that went to sleep instead."""
    evictions: dict[tuple[str, str], Total] = field(default_factory=dict)
    """(profile, "idle" or "swap"), until the memory was back: a swap costs an engine that was in use."""
    restarts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(profile, class of the failure)."""
    modes: Counter[str] = field(default_factory=Counter)
    """How changes of mode ended."""
    _coming: dict[str, tuple[str, float]] = field(default_factory=dict)
    _going: dict[str, tuple[str, float]] = field(default_factory=dict)
    _evicted: dict[str, Total] = field(default_factory=dict)
    _ways: dict[str, str] = field(default_factory=dict)

    def take(self, note: Note, now: float) -> None:
        """Count one decision. `now`: monotonic seconds."""
        self.modes.update([MODES[note.event]] if note.event in MODES else [])
        if note.profile is not None:
            self._of_an_engine(note, note.profile, now)

    def way(self, profile: str) -> str:
        """How its engine came up last: "cold", "waking", or "warm" for one that an earlier daemon left."""
        return self._ways.get(profile, "warm")

    def _of_an_engine(self, note: Note, profile: str, now: float) -> None:
        if note.event in WAYS:
            self._coming[profile] = WAYS[note.event], now
        elif note.event == "engine_ready":
            self._came_up(profile, now)
        elif note.event in LEAVING:
            self._going.setdefault(profile, (str(note.facts["reason"]), now))
        elif note.event in ("engine_stopped", "engine_asleep"):
            self._went(self.stops if note.event == "engine_stopped" else self.sleeps, profile, now)
        elif note.event == "evict":
            self._makes_room(profile, "swap" if note.facts.get("swap") else "idle")
        elif note.event == "engine_failed":
            self._coming.pop(profile, None)
            self._going.setdefault(profile, ("failed", now))
        elif note.event == "engine_restart_policy":
            self.restarts[profile, str(note.facts["kind"]).replace(" ", "_")] += 1
            self._went(self.stops, profile, now, "failed")

    def _makes_room(self, profile: str, kind: str) -> None:
        self._evicted[profile] = self.evictions.setdefault((profile, kind), Total())
        self._evicted[profile].count += 1

    def _came_up(self, profile: str, now: float) -> None:
        self._going.pop(profile, None)
        if coming := self._coming.pop(profile, None):
            way, since = coming
            self._ways[profile] = way
            self.starts.setdefault((profile, way), Total()).add(now - since)
        else:
            self._ways.pop(profile, None)

    def _went(
        self, totals: dict[tuple[str, str], Total], profile: str, now: float, better: str | None = None
    ) -> None:
        """`better`: a reason that outdoes the one with which it began to go."""
        why, since = self._going.pop(profile, ("other", now))
        if evicted := self._evicted.pop(profile, None):
            evicted.seconds += now - since
        totals.setdefault((profile, better or why), Total()).add(now - since)
