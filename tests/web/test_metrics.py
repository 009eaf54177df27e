"""What is added up later is there for whoever asks, and goes by what held when the request ended."""

from __future__ import annotations

from pathlib import Path

from fakes import FakeDriver

from supervisor.config import Config, Profile
from supervisor.web.metrics import CROWD, Metrics
from supervisor.web.record import Record


def config(model: str) -> Config:
    profile = Profile(name="llama_0", model=model, weights="w", gpus=(0,))
    return Config(path=Path("llmd.toml"), profiles={"llama_0": profile})


def ended() -> Record:
    record = Record("r", model="llama", profile="llama_0", source="webui", status=200, prompt=5, completion=3)
    record.end()
    return record


async def told(metrics: Metrics, name: str) -> list[str]:
    lines = (await metrics.text()).decode().splitlines()
    return [line.partition("{")[2] for line in lines if line.startswith(name + "{")]


async def test_all_that_ended_is_told_whenever_somebody_asks() -> None:
    metrics, total = Metrics(FakeDriver(config("llama"))), 0
    for number in (1, CROWD, 2 * CROWD + 1):
        for _ in range(number):
            metrics.count(ended())
        total += number
        assert len(metrics._ended) <= CROWD
        requests = f'model="llama",source="webui",status="200"}} {total:.1f}'
        assert await told(metrics, "llmd_requests_total") == [requests]
        assert await told(metrics, "llmd_request_seconds_count") == [f'model="llama"}} {total:.1f}']
    assert await told(metrics, "llmd_tokens_total") == [
        f'kind="prompt",model="llama",source="webui"}} {5.0 * total}',
        f'kind="completion",model="llama",source="webui"}} {3.0 * total}',
    ]


async def test_a_request_goes_by_the_configuration_that_held_when_it_ended() -> None:
    driver = FakeDriver(config("before"))
    metrics = Metrics(driver)
    metrics.count(ended())
    driver.config = config("after")
    metrics.count(ended())
    assert await told(metrics, "llmd_requests_total") == [
        'model="before",source="webui",status="200"} 1.0',
        'model="after",source="webui",status="200"} 1.0',
    ]
