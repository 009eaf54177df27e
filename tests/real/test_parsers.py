"""The names of parsers that llmd knows are those of the installed vLLM."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from supervisor.config.parsers import REASONING_PARSERS, TOOL_PARSERS
from tests.real.conftest import real_vllm

REGISTERED = re.compile(r'^    "([\w-]+)": \($', flags=re.MULTILINE)


@pytest.mark.real
@pytest.mark.parametrize(
    ("package", "known"), [("tool_parsers", TOOL_PARSERS), ("reasoning", REASONING_PARSERS)]
)
def test_every_parser_of_this_vllm_is_known(package: str, known: frozenset[str]) -> None:
    """Read in its source: to import it takes half a minute."""
    (program, *_), _ = real_vllm()
    (source,) = Path(program).parent.parent.glob(f"lib/python*/site-packages/vllm/{package}/__init__.py")
    registered = set(REGISTERED.findall(source.read_text())) - {"name"}
    assert len(registered) > 10
    assert registered <= known
