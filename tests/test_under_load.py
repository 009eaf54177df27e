"""What a whole daemon promises when many want much at once: crowds, floods, crash loops, memory that is late."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.daemon import KEY, QUICK, Llmd, profile, until
from tests.standin.nvml import GIB, FakeGpus, build

OTHER = "sk-other"


def run(installed: list[Llmd], profiles: dict[str, dict[str, Any]], **tables: Any) -> Llmd:
    installed.append(Llmd(profiles, **tables))
    return installed[-1].start()


def on_card(model: str, vram: str) -> dict[str, Any]:
    return {"model": model, "weights": "tiny", "max_model_len": 512, "gpus": [0], "vram": vram}


async def say(api: openai.AsyncOpenAI, model: str, tokens: int = 4) -> str:
    messages: Any = [{"role": "user", "content": "Hello"}]
    reply = await api.chat.completions.create(model=model, messages=messages, max_tokens=tokens)
    return reply.choices[0].message.content or ""


def client(llmd: Llmd, key: str = KEY, **headers: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"{llmd.url}/v1", api_key=key, max_retries=0, timeout=120, default_headers=headers
    )


async def test_a_crash_loop_ends_after_five_and_a_sibling_serves_on(installed: list[Llmd]) -> None:
    crashing = profile("bad", env={"STANDIN_CRASH_AT": "ready"})
    llmd = run(installed, {"bad_0": crashing, "good_0": profile("good")}, **QUICK)
    said: list[str] = []
    async with client(llmd) as api:
        while not any("failed 5 times" in words for words in said):
            assert len(said) < 50, said
            with pytest.raises(openai.APIStatusError) as failed:
                await say(api, "bad")
            said.append(str(failed.value))
            assert await say(api, "good")
    found = llmd.engine("bad_0")
    assert (found["state"], found["starts"]) == ("impossible", 5)
    assert llmd.engine("good_0")["starts"] == 1


def test_a_start_waits_until_the_cards_memory_is_back(installed: list[Llmd], tmp_path: Path) -> None:
    linger, gpus = 3.0, FakeGpus(tmp_path / "nvml", count=1)
    gpus.card(0, linger=linger)
    profiles = {"llama_0": on_card("llama", "20 GiB"), "coder_0": on_card("coder", "20 GiB")}
    llmd = run(installed, profiles, env=gpus.env(build(tmp_path)), **QUICK)
    assert llmd.run("start", "llama_0").returncode == 0
    assert llmd.run("start", "coder_0").returncode == 0, llmd.text()
    assert (llmd.engine("coder_0")["starts"], llmd.engine("coder_0")["failure"]) == (1, None)
    decided = json.loads(llmd.run("why", "--history", "--json").stdout)["decisions"]
    at = {(entry["event"], entry["profile"]): datetime.fromisoformat(entry["at"]) for entry in decided}
    back, spawned = at["engine_stopped", "llama_0"], at["engine_starting", "coder_0"]
    assert spawned >= back
    assert (back - at["evict", "llama_0"]).total_seconds() >= linger


def test_twenty_starts_at_once_never_take_more_than_the_card_has(
    installed: list[Llmd], tmp_path: Path
) -> None:
    gpus = FakeGpus(tmp_path / "nvml", count=1)
    names = [f"m{number}_0" for number in range(20)]
    profiles = {name: on_card(name[:-2], "9 GiB") for name in names}
    llmd = run(installed, profiles, env=gpus.env(build(tmp_path)), **QUICK)
    with ThreadPoolExecutor(len(names)) as pool:
        answers = [pool.submit(post, llmd, f"/profiles/{name}/start") for name in names]
        while not all(answer.done() for answer in answers):
            within(llmd)
    within(llmd)
    assert {answer.result() for answer in answers} <= {200, 409, 503}
    assert any(answer.result() == 200 for answer in answers)
    failed = [engine["failure"] for engine in llmd.status()["engines"] if engine["failure"]]
    assert not failed, "an engine found the card taken that was promised to it"


def within(llmd: Llmd) -> None:
    status = llmd.status()
    card = next(device for device in status["devices"] if device["index"] == 0)
    promised = sum(sum(engine["reserved"].values()) for engine in status["engines"])
    assert card["used"] <= card["total"] == 24 * GIB
    assert promised <= card["total"]


def post(llmd: Llmd, path: str) -> int:
    """The status of an answer of the admin socket."""
    with socket.socket(socket.AF_UNIX) as connected:
        connected.connect(str(llmd.home / "admin.sock"))
        connection = http.client.HTTPConnection("llmd")
        connection.sock = connected
        connection.request("POST", path)
        return connection.getresponse().status


async def test_ten_times_too_many_requests_each_end_in_an_answer_or_an_error(installed: list[Llmd]) -> None:
    slow = profile("tiny", max_concurrent=2, max_queue=4, env={"STANDIN_TOKENS_PER_SECOND": "20"})
    llmd = run(installed, {"tiny_0": slow}, **QUICK)
    assert llmd.run("start", "tiny_0").returncode == 0
    async with client(llmd) as api:
        ended = await asyncio.gather(*(say(api, "tiny") for _ in range(60)), return_exceptions=True)
    answers = [end for end in ended if isinstance(end, str)]
    refused = [end for end in ended if isinstance(end, openai.APIStatusError)]
    assert len(answers) + len(refused) == 60, ended
    assert len(answers) >= 6
    assert refused
    assert {error.status_code for error in refused} == {429}
    until(lambda: llmd.status()["waiting"] == llmd.engine("tiny_0")["in_flight"] == 0, 5, llmd.text)


async def test_a_key_that_floods_leaves_another_its_share(installed: list[Llmd]) -> None:
    slow = profile("tiny", max_concurrent=1, max_queue=64, env={"STANDIN_TOKENS_PER_SECOND": "40"})
    keys = {"other": {"env": "LLMD_OTHER_KEY"}}
    llmd = run(installed, {"tiny_0": slow}, env={"LLMD_OTHER_KEY": OTHER}, keys=keys, **QUICK)
    assert llmd.run("start", "tiny_0").returncode == 0
    async with client(llmd) as flooding, client(llmd, OTHER) as other:
        flood = [asyncio.create_task(say(flooding, "tiny", 8)) for _ in range(40)]
        while len([task for task in flood if task.done()]) < 2:
            await asyncio.wait(flood, return_when=asyncio.FIRST_COMPLETED, timeout=0.1)
        before = sum(task.done() for task in flood)
        for _ in range(4):
            assert await say(other, "tiny", 8)
        meanwhile = sum(task.done() for task in flood) - before
        await asyncio.gather(*flood)
    assert meanwhile <= 12, f"4 requests of one key were served beside {meanwhile} of the other's"


async def test_a_person_who_floods_leaves_others_of_the_key_their_turns(installed: list[Llmd]) -> None:
    """Open WebUI has one key for all of its people, and tells who asks."""
    slow = profile("tiny", max_concurrent=1, max_queue=64, env={"STANDIN_TOKENS_PER_SECOND": "40"})
    llmd = run(installed, {"tiny_0": slow}, **QUICK)
    assert llmd.run("start", "tiny_0").returncode == 0
    ann, bob = ({"X-OpenWebUI-User-Id": name} for name in ("ann", "bob"))
    async with client(llmd, **ann) as flooding, client(llmd, **bob) as other:
        flood = [asyncio.create_task(say(flooding, "tiny", 8)) for _ in range(20)]
        async with asyncio.timeout(20):
            while llmd.engine("tiny_0")["queued"] < 15:  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(0.02)
        before = sum(task.done() for task in flood)
        assert await say(other, "tiny", 8)
        meanwhile = sum(task.done() for task in flood) - before
        await asyncio.gather(*flood)
    assert meanwhile <= 4, f"one request was served behind {meanwhile} of another's"
