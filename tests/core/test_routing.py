"""Which profile a request goes to: the rules of a host with two cards, and the words of each choice."""

from __future__ import annotations

import math

import pytest

from supervisor.config import Config, Key, Profile, Routing
from supervisor.core.routing import Ask, candidates, reach
from supervisor.errors import ModelNotFound, WrongTask
from tests.core.world import config, profile

LONG = profile("llama_0", 0, max_model_len=32768)
SHORT = profile("llama_1", 1, max_model_len=8192)
EMBED = profile("bge_m3_1", 1, task="embed")


def two_cards(*more: Profile) -> Config:
    prefer = {"webui": ("gpu:0",), "n8n": ("gpu:1",), "default": ("gpu:1",)}
    keys = {"webui": Key(env="A"), "n8n": Key(env="B")}
    return config(LONG, SHORT, *more, keys=keys, routing=Routing(long_context_tokens=4096, prefer=prefer))


@pytest.mark.parametrize(
    ("source", "tokens", "first", "why"),
    [
        ("webui", 100, "llama_0", "webui prefers gpu:0"),
        ("n8n", 100, "llama_1", "n8n prefers gpu:1"),
        ("default", 100, "llama_1", "default prefers gpu:1"),
        ("a stranger", 100, "llama_1", "default prefers gpu:1"),
        ("n8n", 4096, "llama_1", "n8n prefers gpu:1"),
        ("n8n", 4097, "llama_0", "about 4097 tokens, over 4096: longest context first"),
    ],
)
def test_source_and_length_choose_the_card(source: str, tokens: int, first: str, why: str):
    found = candidates(Ask("llama", source, tokens), two_cards(), {"llama_0", "llama_1"})
    assert [found[0].profile, found[0].reason] == [first, why]
    assert {candidate.profile for candidate in found} == {"llama_0", "llama_1"}


def test_a_profile_can_be_asked_for_by_its_own_name():
    found = candidates(Ask("llama_0", "n8n"), two_cards(), {"llama_0", "llama_1"})
    assert [(candidate.profile, candidate.reason) for candidate in found] == [("llama_0", "the only profile")]


def test_a_route_of_another_task_is_told_which_models_do_it():
    with pytest.raises(
        WrongTask, match=r"'llama' \(generate\) does not serve this route; models that do: bge_m3"
    ):
        candidates(Ask("llama", tasks=frozenset({"embed"})), two_cards(EMBED), {"llama_0", "llama_1"})


def test_an_unknown_model_is_told_those_there_are():
    with pytest.raises(ModelNotFound, match="'gpt' is not configured here; there are: llama"):
        candidates(Ask("gpt"), two_cards(), set())


def test_a_name_without_an_end_is_not_repeated():
    with pytest.raises(ModelNotFound) as caught:
        candidates(Ask("x" * 1_000_000), two_cards(), set())
    assert len(caught.value.message) < 300


def test_a_model_outside_its_mode_has_no_candidate():
    assert candidates(Ask("llama"), two_cards(), set()) == ()


def test_an_adapter_goes_to_the_profiles_that_have_it():
    french = SHORT.model_copy(update={"lora": {"french": "/lora/french"}})
    both = config(LONG, french)
    found = candidates(Ask("french"), both, {"llama_0", "llama_1"})
    assert [candidate.profile for candidate in found] == ["llama_1"]
    with pytest.raises(ModelNotFound, match="there are: french, llama"):
        candidates(Ask("german"), both, set())


@pytest.mark.parametrize(
    ("model", "longest", "most"),
    [("llama", 4096, 8192), ("llama_1", math.inf, 8192), ("bge_m3", math.inf, math.inf)],
)
def test_all_up_to_some_length_are_routed_alike(model: str, longest: float, most: float):
    known = two_cards(EMBED)
    assert reach(Ask(model), known) == (longest, most)
