"""What is remembered of the last requests, and for how many."""

from __future__ import annotations

import pytest

from supervisor.core.requests import MOST, Requests
from supervisor.core.routing import Ask, Candidate, Route
from supervisor.errors import EngineDied, ModelNotFound

ROUTE = Route((Candidate("llama_0", "the only profile"),), (Candidate("dgx", "down: gone"),))


def ask(name: str) -> Ask:
    return Ask("llama", "webui", 7, request=name)


def test_a_request_is_told_with_every_try_and_its_outcome():
    requests = Requests()
    requests.routed(ask("a"), ROUTE, 10.0)
    requests.granted("a", "llama_0", "the only profile", 10.5)
    requests.failed("a", EngineDied("it died\nsecrets of its log"), 11.0)
    requests.routed(ask("a"), ROUTE, 11.0)
    requests.granted("a", "llama_0", "the only profile", 11.0)
    requests.ended("a", lambda: {"status": 200})
    told = requests.describe("a")
    assert (told["model"], told["source"], told["tokens"], told["outcome"]) == (
        "llama",
        "webui",
        7,
        {"status": 200},
    )
    first, second = told["tries"]
    assert (first["granted"], first["waited"], first["failed"]) == ("llama_0", 0.5, "it died")
    assert first["candidates"] == [{"name": "llama_0", "reason": "the only profile"}]
    assert first["passed_over"] == [{"name": "dgx", "reason": "down: gone"}]
    assert second["failed"] is None


def test_one_that_had_its_lease_as_it_came_is_told_with_it():
    requests = Requests()
    requests.routed(ask("a"), ROUTE, 10.0, "llama_0", "the only profile")
    requests.failed("a", EngineDied("it died"), 11.0)
    (tried,) = requests.describe("a")["tries"]
    assert (tried["granted"], tried["reason"], tried["waited"], tried["failed"]) == (
        "llama_0",
        "the only profile",
        0.0,
        "it died",
    )


def test_one_that_was_refused_waited_until_then():
    requests = Requests()
    requests.routed(ask("a"), ROUTE, 10.0)
    requests.failed("a", EngineDied("no"), 12.0)
    (tried,) = requests.describe("a")["tries"]
    assert (tried["granted"], tried["waited"], tried["failed"]) == (None, 2.0, "no")


def test_an_id_that_comes_again_is_the_later_request():
    requests = Requests()
    for _ in range(2):
        requests.routed(ask("a"), ROUTE, 10.0)
        requests.ended("a", lambda: {"status": 200})
    assert len(requests.describe("a")["tries"]) == 1


def test_some_thousand_are_kept_and_the_oldest_goes():
    requests = Requests()
    for number in range(MOST + 1):
        requests.routed(ask(str(number)), ROUTE, 0.0)
    assert len(requests) == MOST == 4000
    assert requests.describe(str(MOST))["request"] == "4000"
    with pytest.raises(ModelNotFound, match="no request '0' among the last 4000"):
        requests.describe("0")


def test_what_was_never_routed_is_no_request():
    requests = Requests()
    requests.granted("a", "llama_0", "", 0.0)
    requests.failed("a", EngineDied("no"), 0.0)
    requests.ended("a", lambda: {"status": 401})
    assert len(requests) == 0


def test_one_that_was_granted_at_once_waited_for_nothing():
    """Its clock may have been read before it was routed."""
    requests = Requests()
    requests.routed(ask("a"), ROUTE, 10.00001)
    requests.granted("a", "llama_0", "the only profile", 10.0)
    (tried,) = requests.describe("a")["tries"]
    assert str(tried["waited"]) == "0.0"
