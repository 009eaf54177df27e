"""A real NVIDIA GPU, or a skip that says why."""

from __future__ import annotations

import asyncio

import pytest

from supervisor.core.devices import Reading
from supervisor.host.gpus import Gpus


@pytest.fixture(scope="session")
def card() -> Reading:
    """The first card of this host, as read by the real NVML."""

    async def look() -> Reading:
        gpus = Gpus()
        gpus.start(lambda survey: None)
        try:
            survey = await gpus.read()
        finally:
            gpus.close()
        cards = [reading for reading in survey.readings if reading.index is not None and not reading.unified]
        if not cards:
            pytest.skip(
                f"this host has no NVIDIA GPU with memory of its own: {survey.trouble or 'NVML lists none'}"
            )
        return cards[0]

    return asyncio.run(look())
