"""openai's client for Node against cold models: held streams, failures in them, refusals that it retries."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import KEY, QUICK, Llmd, profile

SCRIPT = Path(__file__).parent / "openai_node.mjs"
VERSION = "6"
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
RESPONSE: dict[str, Any] = {"model": "tiny", "input": "Hello", "max_output_tokens": 4}


@pytest.fixture(scope="session")
def script() -> Path:
    """The script beside its module, fetched once for all runs."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not on this machine")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "llmd" / f"openai-node-{VERSION}"
    if not (folder / "node_modules" / "openai" / "package.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), f"openai@{VERSION}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        if done.returncode != 0:
            pytest.skip(f"npm cannot fetch openai: {done.stderr.strip()[-200:]}")
    return Path(shutil.copy(SCRIPT, folder))


@pytest.fixture
def cold(installed: list[Llmd]) -> Callable[..., Llmd]:
    def make(seconds: float = 2.0, hold: str = "comment", **knobs: str) -> Llmd:
        env = {"STANDIN_LOAD_SECONDS": str(seconds), **knobs}
        server = {"hold_after": 0.2, "keepalive": 0.3, "hold": hold}
        installed.append(Llmd({"tiny_0": profile("tiny", env=env)}, server=server, **QUICK))
        return installed[-1].start()

    return make


def ask(
    script: Path, llmd: Llmd, *, options: dict[str, Any] | None = None, silence: str = "", **body: Any
) -> dict[str, Any]:
    """`silence`: milliseconds of it that fetch bears; 300 s unless told."""
    asked = (RESPONSE if "input" in body else CHAT) | body
    words = [f"{llmd.url}/v1", KEY, json.dumps(options or {}), json.dumps(asked), silence]
    done = subprocess.run(
        ["node", str(script), *words], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("more", [{}, {"input": "Hello"}], ids=["chat", "response"])
def test_a_cold_model_answers_without_a_retry(
    script: Path, cold: Callable[..., Llmd], more: dict[str, str], stream: bool
) -> None:
    told = ask(script, cold(), stream=stream, **more)
    assert told["error"] is None
    assert told["text"]


@pytest.mark.parametrize("more", [{}, {"input": "Hello"}], ids=["chat", "response"])
def test_a_load_that_fails_in_a_held_stream_throws(
    script: Path, cold: Callable[..., Llmd], more: dict[str, str]
) -> None:
    told = ask(script, cold(STANDIN_OOM="1"), stream=True, **more)
    assert "out of memory" in told["error"]
    assert told["status"] is None, "the head was out"


def test_it_comes_back_when_it_was_told_to(script: Path, cold: Callable[..., Llmd]) -> None:
    """A start was measured, so it is refused at once for its timeout of 2 s."""
    llmd = cold(3)
    assert llmd.run("start", "tiny_0").returncode == 0
    assert llmd.run("stop", "tiny_0").returncode == 0
    refused = ask(script, llmd, options={"timeout": 2000})
    assert refused["status"] == 503
    assert "longer than the 1 s that this request can wait" in refused["error"]
    told = ask(script, llmd, options={"timeout": 2000, "maxRetries": 3})
    assert (told["error"], bool(told["text"])) == (None, True)


@pytest.mark.parametrize("hold", ["comment", "off"])
@pytest.mark.parametrize(
    "silent", [{"seconds": 3}, {"seconds": 0, "STANDIN_READING_SECONDS": "3"}], ids=["loads", "reads"]
)
def test_a_stream_outlives_the_silence_that_fetch_bears_by_signs_of_life_alone(
    script: Path, cold: Callable[..., Llmd], silent: dict[str, Any], hold: str
) -> None:
    """Fetch gives up after 300 s of its own accord; here after one, of three."""
    llmd = cold(hold=hold, **silent)
    if not silent["seconds"]:
        assert llmd.run("start", "tiny_0").returncode == 0
    told = ask(script, llmd, silence="1000", stream=True)
    if hold == "off":
        assert (told["error"], told["text"]) == ("Request timed out.", "")
    else:
        assert (told["error"], bool(told["text"])) == (None, True)
