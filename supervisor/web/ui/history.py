"""How used the GPUs were: the last hour and the last day, in as many points as a line on a card has room for."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

EVERY = 10.0
"""Seconds between two points of the hour."""

_POINTS = 360
_COARSER = 24
"""Points of the hour that make one of the day."""

Point = tuple[float | None, float | None]
"""Shares, 0 to 1: of memory in use, of time computing. None where it was not to be had."""


class Line:
    """One GPU's. Both lines end now and have a point for each of the last 360 steps."""

    def __init__(self) -> None:
        self.hour: deque[Point] = deque(maxlen=_POINTS)
        self.day: deque[Point] = deque(maxlen=_POINTS)
        self._gathered: list[Point] = []

    def add(self, point: Point) -> None:
        self.hour.append(point)
        self._gathered.append(point)
        if len(self._gathered) == _COARSER:
            self.day.append(
                (_mean([used for used, _ in self._gathered]), _mean([at for _, at in self._gathered]))
            )
            self._gathered.clear()


class History:
    def __init__(self) -> None:
        self._lines: dict[str, Line] = {}

    def add(self, status: Mapping[str, Any]) -> None:
        for device in status["devices"]:
            line = self._lines.setdefault(device["device"], Line())
            line.add(_point(device))

    def describe(self) -> dict[str, Any]:
        """Device -> its lines, oldest point first, and the seconds between two points."""
        steps = {"hour": EVERY, "day": EVERY * _COARSER}
        lines = {name: {"hour": list(line.hour), "day": list(line.day)} for name, line in self._lines.items()}
        return {"steps": steps, "devices": lines}


def _point(device: Mapping[str, Any]) -> Point:
    if device["trouble"] or not device["total"]:
        return None, None
    busy = device["utilization"]
    return round(device["used"] / device["total"], 4), None if busy is None else round(busy, 4)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 4) if known else None
