"""The devices of this host, read once without a daemon."""

from __future__ import annotations

from dataclasses import replace

from supervisor.config import Config
from supervisor.core.devices import Reading, Survey
from supervisor.host.almanac import learned_totals
from supervisor.host.gpus import Gpus
from supervisor.host.memory import read_host_memory


async def read_devices(cards: tuple[Reading, ...] | None = None, config: Config | None = None) -> Survey:
    """Host memory, and the GPUs: `cards` where they are given, else as NVML tells, and the daemon of `config` knows."""
    survey = Survey(cards) if cards is not None else await _gpus()
    if config is not None:
        survey = survey.with_cuda(learned_totals(config.server.state_dir))
    return replace(survey, readings=(*survey.readings, read_host_memory()))


async def _gpus() -> Survey:
    gpus = Gpus()
    gpus.start(lambda survey: None)
    try:
        survey = await gpus.read()
    finally:
        gpus.close()
    if not survey.at:  # none was finished in time
        survey = replace(survey, trouble="the NVIDIA driver does not answer")
    return survey
