"""What is no plain request, on its way to a peer: calls that are merged here, and websockets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import aiohttp
import openai
import pytest

from tests.daemon import KEY, QUICK, Llmd, profile, until

THEIRS = "sk-of-the-dgx"


@pytest.fixture(scope="module")
def far() -> Iterator[Llmd]:
    profiles = {
        "emb_9": profile("emb", task="embed"),
        "ear_9": profile("ear", task="transcribe", weights="whisper"),
    }
    llmd = Llmd(profiles, env={"LLMD_TEST_KEY": THEIRS}, **QUICK)
    try:
        yield llmd.start()
    finally:
        llmd.close()


@pytest.fixture(scope="module")
def near(far: Llmd) -> Iterator[Llmd]:
    """It could serve embeddings itself, but its peer comes first."""
    dgx = {"url": far.url, "key_env": "DGX_KEY", "interval": 0.2, "priority": 1, "max_concurrent": 64}
    profiles = {"emb_0": profile("emb", task="embed")}
    llmd = Llmd(profiles, env={"DGX_KEY": THEIRS}, peers={"dgx": dgx}, **QUICK)
    try:
        llmd.start()
        until(lambda: all(found["up"] for found in llmd.status()["peers"]), 20, llmd.text)
        yield llmd
    finally:
        llmd.close()


def test_a_burst_that_a_peer_takes_is_answered(near: Llmd) -> None:
    """Those that gathered here go there one by one: its own llmd merges them."""
    with (
        openai.OpenAI(base_url=f"{near.url}/v1", api_key=KEY, max_retries=0, timeout=20) as api,
        ThreadPoolExecutor(32) as pool,
    ):
        found = list(pool.map(lambda n: api.embeddings.create(model="emb", input=f"text {n}"), range(64)))
    assert len({tuple(answer.data[0].embedding) for answer in found}) == 64
    assert near.engine("emb_0")["starts"] == 0


async def test_a_websocket_for_a_model_of_the_peer_is_relayed_to_it(near: Llmd) -> None:
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as client,
        client.ws_connect(f"{near.url}/v1/realtime?model=ear", timeout=aiohttp.ClientWSTimeout(5)) as socket,
    ):
        assert await socket.receive_json() == {"type": "session.created"}
        await socket.send_json({"type": "session.update"})
        assert (await socket.receive_json())["delta"] == {"type": "session.update"}


async def test_a_websocket_that_goes_round_is_refused(near: Llmd) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "x-llmd-hops": "4"}
    async with aiohttp.ClientSession(headers=headers) as client:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await client.ws_connect(f"{near.url}/v1/realtime?model=ear")
    assert refused.value.status == 508


def test_why_tells_of_every_request_that_went_with_others(far: Llmd) -> None:
    """And the log gives each its reason."""
    names = [f"together-{number}" for number in range(48)]
    with (
        openai.OpenAI(base_url=f"{far.url}/v1", api_key=THEIRS, max_retries=0, timeout=20) as api,
        ThreadPoolExecutor(48) as pool,
    ):
        asked = lambda name: api.embeddings.create(  # noqa: E731
            model="emb", input=name, extra_headers={"X-Request-Id": name}
        )
        list(pool.map(asked, names))
    far.says(names[-1])
    lines = {line.get("request_id"): line for line in far.logged()}
    for name in names[::7]:
        told = json.loads(far.run("why", "--request", name, "--json").stdout)
        assert told["tries"][-1]["granted"] == lines[name]["profile"] == "emb_9"
        assert told["tries"][-1]["reason"] == lines[name]["reason"] == "the only profile"
        assert told["outcome"]["status"] == 200
