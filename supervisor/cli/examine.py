"""What `llmd check` finds: contradictions, what is likely not meant, and what could not be looked at."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from supervisor.cli.survey import read_devices
from supervisor.config import Config, locate, warnings
from supervisor.core.devices import Survey
from supervisor.core.fit import check_devices, gpu_reading
from supervisor.errors import Problem

AGAIN = "run llmd check again when they can be read"


def examine(config: Config, survey: Survey | None = None) -> tuple[list[Problem], list[Problem]]:
    """Problems and warnings. Without a `survey` reads this host's devices, for at most a few seconds."""
    survey = survey or asyncio.run(read_devices(config=config))
    problems = locate(check_devices(config, survey))
    return problems, [*warnings(config), *unchecked(config, survey)]


def unchecked(config: Config, survey: Survey) -> Iterator[Problem]:
    """That profiles passed unseen: all GPUs could not be read, or some could not."""
    gpus = {gpu: None for profile in config.profiles.values() for gpu in profile.gpus}
    if gpus and survey.trouble is not None:
        what = f"GPU profiles could not be checked against the cards: {survey.trouble}"
        yield Problem(config.path, what, AGAIN)
        return
    for gpu in gpus:
        reading = gpu_reading(gpu, survey)
        if reading is not None and reading.trouble is not None:
            what = f"profiles could not be checked against GPU {gpu}: {reading.trouble}"
            yield Problem(config.path, what, AGAIN)
