"""The GPUs' last hour and last day: bounded, with gaps where nothing was read."""

from __future__ import annotations

from typing import Any

from supervisor.web.ui.history import History


def card(used: int = 25, **more: Any) -> dict[str, Any]:
    return {"device": "GPU-1", "total": 100, "used": used, "utilization": 0.5, "trouble": None} | more


def test_points_are_shares_and_a_sick_gpu_is_a_gap() -> None:
    history = History()
    history.add({"devices": [card()]})
    history.add({"devices": [card(trouble="GPU is lost")]})
    history.add({"devices": [card(utilization=None)]})
    assert history.describe()["devices"]["GPU-1"]["hour"] == [(0.25, 0.5), (None, None), (0.25, None)]


def test_four_minutes_of_the_hour_are_one_point_of_the_day() -> None:
    history = History()
    for number in range(24):
        history.add({"devices": [card(used=number % 2 * 100)]})
    assert history.describe()["devices"]["GPU-1"]["day"] == [(0.5, 0.5)]


def test_neither_line_grows_for_ever() -> None:
    history = History()
    for _ in range(24 * 400):
        history.add({"devices": [card()]})
    lines = history.describe()["devices"]["GPU-1"]
    assert (len(lines["hour"]), len(lines["day"])) == (360, 360)
