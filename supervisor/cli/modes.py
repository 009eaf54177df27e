"""Modes, and plans of their changes, as sentences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from supervisor.core.spans import span


def told(answer: dict[str, Any]) -> str:
    """What `llmd mode` prints for an answer of the daemon: a message, the present mode, or a plan."""
    if "message" in answer:
        return str(answer["message"])
    return "\n".join(_plan(answer) if "serves" in answer else _present(answer["mode"]))


def _present(mode: dict[str, Any] | None) -> Iterator[str]:
    if mode is None:
        yield "no modes are configured: every profile is available at any time"
        return
    how = "forced" if mode["forced"] else "by the calendar"
    following = f"; {mode['next']} begins {mode['until']}" if mode["next"] else ""
    yield f"mode {mode['name']}, {how}{following}"
    if mode["warming"]:
        yield f"still coming up: {', '.join(mode['warming'])}"
    if mode["rolled_back"]:
        yield str(mode["rolled_back"])


def _plan(plan: dict[str, Any]) -> Iterator[str]:
    yield f"mode {plan['mode']} would serve {', '.join(plan['serves']) or 'nothing'}"
    for drained in plan["drains"]:
        yield f"drain {drained['profile']}: {drained['in_flight']} in flight, cut after {plan['drain_s']:g} s"
    for stopped in plan["stops"]:
        yield f"stop  {stopped}: idle"
    for started in plan["starts"]:
        seconds = f", about {started['seconds']:.0f} s" if started["fits"] and started["seconds"] else ""
        misfit = "" if started["fits"] else "does not fit: "
        yield f"start {started['profile']}: {misfit}{started['verdict']}{seconds}"
    if misfits := [started["profile"] for started in plan["starts"] if not started["fits"]]:
        yield _back(plan, misfits)


def _back(plan: dict[str, Any], misfits: list[str]) -> str:
    what = f"{', '.join(misfits)} would not come up: mode {plan['mode']} would be given up"
    back = plan["back_to"]
    after = f", after {span(plan['within_s'])} at the latest"
    return what + after + (f", and mode {back} come back" if back and back != plan["mode"] else "")
