"""Requests as the dashboard has them: under way, cancelled, ended, and how fast they write."""

from __future__ import annotations

import asyncio

import pytest

from supervisor.core.routing import Ask
from supervisor.errors import ModelNotFound, Withdrawn
from supervisor.web.record import Record
from supervisor.web.traffic import REMEMBERED, Traffic

ASK = Ask("llama", "webui", tokens=12)


def record(name: str = "one", **fields: object) -> Record:
    made = Record(name, model="llama", source="webui", profile="llama_0")
    for key, value in fields.items():
        setattr(made, key, value)
    return made


async def wait(traffic: Traffic) -> None:
    async with traffic.watched(record(), ASK):
        await asyncio.Event().wait()


async def test_a_request_is_there_while_it_is_under_way() -> None:
    traffic = Traffic()
    async with traffic.watched(record(counter=lambda: 7), ASK):
        (one,) = traffic.in_flight().values()
        assert (one["source"], one["model"], one["prompt"], one["output"]) == ("webui", "llama", 12, 7)
        assert traffic.written() == {"llama_0": 7}
    assert traffic.in_flight() == {}


async def test_two_requests_may_bear_one_id() -> None:
    traffic = Traffic()
    async with traffic.watched(record(), ASK), traffic.watched(record(), ASK):
        assert len(traffic.in_flight()) == 2


async def test_one_that_waits_is_cancelled_with_a_word() -> None:
    traffic = Traffic()
    waiting = asyncio.create_task(wait(traffic))
    await asyncio.sleep(0)
    traffic.cancel(next(iter(traffic.in_flight())))
    with pytest.raises(Withdrawn, match="cancelled by an operator"):
        await waiting
    assert traffic.in_flight() == {}


async def test_one_that_is_answered_is_cut_by_the_relay() -> None:
    traffic, cuts = Traffic(), list[str]()
    async with traffic.watched(record(cut=lambda: cuts.append("cut")), ASK):
        assert traffic.cancel(next(iter(traffic.in_flight()))) == "cancelled"
        await asyncio.sleep(0)
    assert cuts == ["cut"]


async def test_a_time_limit_of_its_own_is_no_cancel() -> None:
    with pytest.raises(TimeoutError):
        async with Traffic().watched(record(), ASK), asyncio.timeout(0):
            await asyncio.Event().wait()


def test_one_that_has_ended_cannot_be_cancelled() -> None:
    with pytest.raises(ModelNotFound):
        Traffic().cancel("1")


def test_those_that_ended_are_kept_but_not_for_ever() -> None:
    traffic = Traffic()
    for number in range(REMEMBERED + 5):
        traffic.ended(record(str(number), completion=2, status=200))
    kept = list(traffic.recent().values())
    assert [kept[0]["id"], kept[-1]["id"], len(kept)] == ["5", str(REMEMBERED + 4), REMEMBERED]
    assert traffic.written() == {"llama_0": 2 * (REMEMBERED + 5)}


def test_a_stream_that_nobody_counted_is_told_about() -> None:
    streamed: dict[str, object] = {"streamed": True, "first": 1.0, "guess": 12, "counter": lambda: 7}
    uncounted, counted = record(**streamed), record(**streamed, prompt=10, completion=8)
    refused = record(guess=12, status=503)  # it never reached an engine
    for one in (uncounted, counted, refused):
        one.end()
    tokens = [(one.prompt, one.completion) for one in (uncounted, counted, refused)]
    assert tokens == [(12, 7), (10, 8), (None, None)]
    assert [one.line().tokens for one in (uncounted, counted, refused)] == [19, 18, None]
    assert [one.guessed for one in (uncounted, counted, refused)] == [True, False, False]


def test_what_asked_for_no_model_is_no_traffic() -> None:
    traffic = Traffic()
    traffic.ended(Record("x"))
    assert traffic.recent() == {}


def test_a_long_error_is_cut_short() -> None:
    traffic = Traffic()
    traffic.ended(record(error="x" * 5000))
    assert len(next(iter(traffic.recent().values()))["error"]) == 300
