"""The first request to an engine of each task, on stand-ins started as llmd starts them."""

from __future__ import annotations

from typing import get_args

import pytest

from supervisor.config.models import Task
from supervisor.core.command import POOLING
from supervisor.host.probe import ProbeFailed, tiny_request
from tests.standin.launch import KEY, STANDIN, Engine

WEIGHTS = {"transcribe": "whisper"}
"""The stand-in hears what it is by its name."""


@pytest.mark.parametrize("task", get_args(Task))
async def test_an_engine_of_each_task_answers_it(task: str) -> None:
    with Engine(STANDIN, WEIGHTS.get(task, "weights"), "--served-model-name", "m", *POOLING[task]) as engine:
        await engine.ready()
        await tiny_request(engine.socket, KEY, task, "m", 10)


@pytest.mark.parametrize(("task", "other"), [("classify", "embed"), ("transcribe", "generate")])
async def test_an_engine_of_another_task_does_not(task: str, other: str) -> None:
    with Engine(STANDIN, "weights", "--served-model-name", "m", *POOLING[other]) as engine:
        await engine.ready()
        with pytest.raises(ProbeFailed, match=f"of task '{task}' with 404"):
            await tiny_request(engine.socket, KEY, task, "m", 10)
