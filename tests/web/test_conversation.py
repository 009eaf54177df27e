"""Turns of one conversation have one name, others another."""

from __future__ import annotations

from typing import Any

import pytest

from supervisor.web.conversation import by_name, by_words

SYSTEM = {"role": "system", "content": "Be kind."}
FIRST = {"role": "user", "content": "Hello"}
REPLY = {"role": "assistant", "content": "Hi"}


def words(*messages: Any, source: str = "webui", model: str = "llama") -> str | None:
    return by_words(list(messages), None, source, model)


def test_a_later_turn_has_the_name_of_the_first() -> None:
    first = words(SYSTEM, FIRST)
    assert first is not None
    assert words(SYSTEM, FIRST, REPLY, {"role": "user", "content": "And now?"}) == first


@pytest.mark.parametrize(
    "other",
    [
        words(SYSTEM, {"role": "user", "content": "Hello!"}),
        words({"role": "system", "content": "Be rude."}, FIRST),
        words(FIRST),
        words(SYSTEM, FIRST, source="n8n"),
        words(SYSTEM, FIRST, model="qwen"),
        by_words(None, "Hello", "webui", "llama"),
    ],
    ids=["words", "system", "no system", "source", "model", "prompt"],  # names differ from run to run
)
def test_other_words_sources_and_models_are_other_conversations(other: str | None) -> None:
    assert other is not None
    assert other != words(SYSTEM, FIRST)


def test_parts_of_text_count_and_images_do_not() -> None:
    parts = [{"type": "text", "text": "Look"}, {"type": "image_url", "image_url": {"url": "data:..."}}]
    assert words({"role": "user", "content": parts}) == words({"role": "user", "content": parts[:1]})


@pytest.mark.parametrize("messages", [None, [], "x", 7, [1], [SYSTEM], [{"content": {"a": 1}}]])
def test_without_a_user_there_is_none(messages: Any) -> None:
    assert by_words(messages, None, "webui", "llama") is None


def test_lone_surrogates_are_letters_too() -> None:
    assert words({"role": "user", "content": "\ud800"}) is not None


def test_a_client_may_name_it() -> None:
    named = by_name({"X-OpenWebUI-Chat-Id": "7"}, "webui", "llama")
    assert named is not None
    assert "7" != named != by_name({"X-Session-ID": "8"}, "webui", "llama")
    assert named != by_name({"X-OpenWebUI-Chat-Id": "7"}, "n8n", "llama")
    assert by_name({}, "webui", "llama") is None
