"""A peer's list of models, as OpenAI, vLLM and llmd write it, and as nobody should."""

from __future__ import annotations

import json
from typing import Any

import pytest

from supervisor.core.peer import Listed
from supervisor.host.peers import MOST_MODELS, Unfit, listed


def test_what_others_leave_out_is_unknown_and_taken_for_loaded() -> None:
    entries: list[dict[str, Any]] = [
        {"id": "gpt", "object": "model", "owned_by": "openai"},
        {"id": "vllm", "max_model_len": 8192},
        {"id": "llmd", "max_model_len": None, "status": {"value": "cold"}},
        {"id": "warm", "max_model_len": True, "status": {"value": "ready"}},
    ]
    assert listed(json.dumps({"object": "list", "data": entries}).encode()) == {
        "gpt": Listed(None, True),
        "vllm": Listed(8192, True),
        "llmd": Listed(None, False),
        "warm": Listed(None, True),
    }


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"{}", b'{"data": 7}', b'{"data": [{}]}', b'{"data": [7]}', b'{"data": [{"id": []}]}'],
)
def test_what_is_no_list(body: bytes) -> None:
    with pytest.raises(Unfit, match="its list of models is none"):
        listed(body)


def test_a_list_is_bounded_and_names_are_text() -> None:
    entries = [{"id": 7}, *({"id": f"m{n}"} for n in range(MOST_MODELS + 5))]
    assert len(listed(json.dumps({"data": entries}).encode())) == MOST_MODELS - 1
