"""Tokens a second, from counters."""

from __future__ import annotations

from supervisor.core.speed import WINDOW, Speed


def test_speed_is_of_the_last_seconds() -> None:
    speed = Speed()
    assert speed.look({}, 0.0) == {}
    assert speed.look({"llama_0": 100}, 2.0) == {"llama_0": 50.0}
    speed.look({"llama_0": 100}, 2.0 + WINDOW)
    assert speed.look({"llama_0": 100}, 3.0 + WINDOW) == {"llama_0": 0.0}


def test_a_daemon_that_began_anew_counts_from_nothing() -> None:
    speed = Speed()
    speed.look({"llama_0": 100}, 0.0)
    assert speed.look({"llama_0": 3}, 1.0) == {"llama_0": 0.0}
