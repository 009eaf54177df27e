"""Whether a request fits: estimates choose the place, only certainty refuses."""

from __future__ import annotations

import pytest

from supervisor.core import context, events
from supervisor.core.routing import Ask, route
from supervisor.errors import ContextExceeded
from tests.core.world import World, config, profile

LONG = profile("llama_0", 0, max_model_len=32768)
SHORT = profile("llama_1", 1, max_model_len=8192)
BOTH = config(LONG, SHORT)
NAMES = {"llama_0", "llama_1"}


def names(ask: Ask) -> list[str]:
    return [candidate.profile for candidate in route(ask, BOTH, NAMES).candidates]


@pytest.mark.parametrize(
    ("tokens", "reply", "expected"),
    [
        (3000, None, ["llama_0", "llama_1"]),
        (3000, 5192, ["llama_0", "llama_1"]),
        (3000, 5193, ["llama_0"]),
        (9000, None, ["llama_0"]),
        (40000, None, ["llama_0"]),  # a guess: the engine counts, and knows
    ],
)
def test_what_is_likely_too_long_goes_to_the_longer_context(
    tokens: int, reply: int | None, expected: list[str]
):
    assert names(Ask("llama", tokens=tokens, max_tokens=reply)) == expected


def test_a_batch_of_embeddings_has_the_context_for_each_of_them():
    world = World(config(profile("bge_0", 0, task="embed", max_model_len=512)))
    lease = world.ask("bge", tokens=32 * 400, least=200, tasks=frozenset({"embed"}))
    assert lease not in world.refused


def test_a_batch_goes_by_its_longest_text_and_a_chat_by_all_of_it():
    pair = config(
        profile("bge_0", 0, task="embed", max_model_len=512),
        profile("bge_1", 1, task="embed", max_model_len=8192),
    )
    found = route(Ask("bge", tokens=3200, least=200, tasks=frozenset({"embed"})), pair, pair.profiles)
    assert {candidate.profile for candidate in found.candidates} == {"bge_0", "bge_1"}
    assert names(Ask("llama", tokens=9000, least=200, tasks=frozenset({"generate"}))) == ["llama_0"]


def test_who_fell_short_is_told_with_the_numbers():
    (short,) = route(Ask("llama", tokens=9000, max_tokens=100), BOTH, NAMES).passed_over
    assert (short.profile, short.reason) == (
        "llama_1",
        "its context of 8192 tokens is too short for about 9000 and a reply of 100",
    )


def test_too_long_for_all_is_refused_with_the_numbers_and_starts_nothing():
    world = World(BOTH)
    lease = world.ask("llama", tokens=70000, least=32769)
    error = world.refused[lease]
    assert isinstance(error, ContextExceeded)
    assert (error.status, error.code) == (400, "context_length_exceeded")
    assert error.message == (
        "the prompt has at least 32769 tokens; the context of 'llama' is 32768 (llama_0 32768, llama_1 8192)"
    )
    assert not any(engine.claims() for engine in world.fleet.engines.values())


def test_what_just_fits_is_never_refused():
    world = World(BOTH)
    assert world.ask("llama", tokens=70000, least=32768) not in world.refused


def test_a_context_that_nobody_told_refuses_nothing():
    world = World(config(LONG, profile("llama_1", 1)))
    assert world.ask("llama", tokens=10**6, least=10**6) not in world.refused


def test_a_profile_by_its_own_name_has_its_own_context():
    with pytest.raises(ContextExceeded, match="at least 8193 tokens; the context of 'llama_1' is 8192"):
        route(Ask("llama_1", least=8193), BOTH, NAMES)


def test_a_learned_line_lowers_the_certainty_and_never_raises_it():
    """A model that was asked in one language may be asked in another, with twice the letters to a token."""
    world = World(config(SHORT))
    world.up("llama_1")
    for letters in (1000, 2000, 4000):  # ten letters a token
        lease = world.ask("llama", letters=letters, least=context.least(letters))
        world.send(events.Left(lease, letters // 10, 1))
    letters = 100_000
    lease = world.ask("llama", letters=letters, least=context.least(letters))
    assert context.least(letters) == 12500
    assert lease not in world.refused
