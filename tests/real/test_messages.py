"""What llmd reads in a GPU's start log is what the installed vLLM writes there; the CPU's never says it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from supervisor.core.devices import GIB
from supervisor.core.progress import read_totals
from tests.real.conftest import real_vllm

FREE = "Free memory on device"


def messages(source: str) -> list[str]:
    """Its f-strings about free memory, a device's name and 23.58 in their holes."""
    strings = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.JoinedStr)]
    return [text for node in strings if FREE in (text := "".join(map(_filled, node.values)))]


def _filled(part: ast.expr) -> str:
    if isinstance(part, ast.Constant):
        return str(part.value)
    return "cuda:0" if "device_" in ast.unparse(part) else "23.58"


@pytest.mark.real
@pytest.mark.parametrize("module", ["utils", "gpu_worker"])
def test_cudas_total_is_said_as_it_is_read(module: str) -> None:
    (program, *_), _ = real_vllm()
    (source,) = Path(program).parent.parent.glob(f"lib/python*/site-packages/vllm/v1/worker/{module}.py")
    said = messages(source.read_text())
    assert said
    for text in said:
        (total,) = read_totals([f"(EngineCore pid=7) INFO 11-23 09:45:25 [{module}.py:1] {text}"]).values()
        assert total == pytest.approx(23.58 * GIB, rel=0.001)
