"""The whole daemon as a process, on stand-in engines and stand-in GPUs: what an operator and a client see."""

from __future__ import annotations

import json
import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from supervisor.core.devices import GIB
from tests.daemon import KEY, QUICK, Llmd, profile, until
from tests.standin.nvml import FakeGpus, build


@pytest.fixture
def llmd(installed: list[Llmd]) -> Llmd:
    profiles = {"tiny_0": profile("tiny"), "emb": profile("emb", task="embed")}
    installed.append(Llmd(profiles, **QUICK))
    return installed[0].start()


def client(llmd: Llmd, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{llmd.url}/v1", api_key=KEY, max_retries=0, timeout=60, **options)


def say(api: openai.OpenAI, model: str = "tiny", tokens: int = 4) -> str:
    messages: Any = [{"role": "user", "content": "Hello"}]
    reply = api.chat.completions.create(model=model, messages=messages, max_tokens=tokens)
    return reply.choices[0].message.content or ""


def test_the_openai_sdk_lists_chats_streams_and_embeds(llmd: Llmd) -> None:
    with client(llmd) as api:
        assert {"tiny", "tiny_0", "emb"} <= {model.id for model in api.models.list()}
        assert say(api)
        assert say(api, "tiny_0")
        messages: Any = [{"role": "user", "content": "Hello"}]
        chunks = list(api.chat.completions.create(model="tiny", messages=messages, max_tokens=3, stream=True))
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert len(api.embeddings.create(model="emb", input=["a", "b"]).data) == 2


def test_a_daemon_with_a_ready_engine_is_light(llmd: Llmd) -> None:
    """Below 90 MB resident; its share of a core is for benchmarks/idle.py to tell."""
    assert llmd.run("start", "tiny_0").returncode == 0
    assert llmd.process
    assert psutil.Process(llmd.process.pid).memory_info().rss < 90e6


def test_a_wrong_key_and_an_unknown_model_are_refused_in_openais_shape(llmd: Llmd) -> None:
    stranger = openai.OpenAI(base_url=f"{llmd.url}/v1", api_key="wrong", max_retries=0)
    with stranger as api, pytest.raises(openai.AuthenticationError) as refused:
        say(api)
    assert refused.value.code == "invalid_api_key"
    with client(llmd) as api, pytest.raises(openai.NotFoundError) as missing:
        say(api, "gpt-9")
    assert missing.value.code == "model_not_found"


def test_why_of_a_request_that_could_go_nowhere(llmd: Llmd) -> None:
    """Only a name that nobody has is not remembered: whoever asks could have anything kept."""
    messages: Any = [{"role": "user", "content": "x " * 9000}]
    for model, kind in (("tiny", openai.BadRequestError), ("nobody", openai.NotFoundError)):
        with client(llmd, default_headers={"X-Request-Id": f"to-{model}"}) as api, pytest.raises(kind):
            api.chat.completions.create(model=model, messages=messages)
    said = " ".join(llmd.run("why", "--request", "to-tiny").stdout.split())
    assert "failed: the prompt has at least 2250 tokens; the context of 'tiny' is 512" in said
    assert "ended with 400" in said
    assert llmd.engine("tiny_0")["starts"] == 0
    assert llmd.run("why", "--request", "to-nobody").returncode == 1


def test_a_killed_daemon_leaves_its_engines_to_the_next_one(llmd: Llmd) -> None:
    assert llmd.run("start", "tiny_0", "--pin").returncode == 0
    before = llmd.engine("tiny_0")
    llmd.kill()
    assert alive(before["pid"])
    llmd.start()
    until(lambda: llmd.engine("tiny_0")["state"] == "ready", 10, llmd.text)
    after = llmd.engine("tiny_0")
    assert (after["pid"], after["incarnation"], after["starts"]) == (before["pid"], before["incarnation"], 0)
    assert after["pinned"] is True
    with client(llmd) as api:
        assert say(api)
    assert llmd.run("stop", "tiny_0").returncode == 0
    assert not alive(before["pid"])


def test_a_killed_engine_leaves_nobody_and_the_next_request_gets_a_new_one(llmd: Llmd) -> None:
    assert llmd.run("start", "tiny_0").returncode == 0
    before = llmd.engine("tiny_0")
    tree = [p.pid for p in psutil.Process(before["pid"]).children(recursive=True)]
    assert tree
    os.kill(before["pid"], signal.SIGKILL)
    until(lambda: not any(alive(pid) for pid in tree), 2, llmd.text)
    with client(llmd) as api:
        assert say(api)
    assert llmd.engine("tiny_0")["incarnation"] not in (None, before["incarnation"])


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_an_engine_that_dies_while_the_daemon_is_down_is_noticed(llmd: Llmd) -> None:
    assert llmd.run("start", "tiny_0").returncode == 0
    pid = llmd.engine("tiny_0")["pid"]
    children = [p.pid for p in psutil.Process(pid).children(recursive=True)]
    llmd.kill()
    os.kill(pid, signal.SIGKILL)
    llmd.start()
    until(lambda: not any(alive(child) for child in children), 5, llmd.text)
    with client(llmd) as api:
        assert say(api)


def test_stop_ends_engines_in_order_and_keep_engines_leaves_them(installed: list[Llmd]) -> None:
    llmd = Llmd({"tiny_0": profile("tiny")}, **QUICK)
    installed.append(llmd)
    llmd.start("--keep-engines")
    assert llmd.run("start", "tiny_0").returncode == 0
    pid = llmd.engine("tiny_0")["pid"]
    assert llmd.stop() == 0
    assert alive(pid)
    llmd.start()
    until(lambda: llmd.engine("tiny_0")["state"] == "ready", 10, llmd.text)
    assert llmd.engine("tiny_0")["pid"] == pid
    assert llmd.stop() == 0
    assert not alive(pid)
    assert llmd.leftovers() == []


def test_a_second_daemon_on_one_state_directory_refuses_to_start(llmd: Llmd) -> None:
    second = llmd.run("serve")
    assert second.returncode == 1
    assert "another llmd" in second.stderr
    assert llmd.status()["daemon"]["listening"]


def test_the_concurrency_limit_and_the_queue_bound_answer_429_with_retry_after(installed: list[Llmd]) -> None:
    slow = profile("tiny", max_concurrent=1, max_queue=1, env={"STANDIN_TOKENS_PER_SECOND": "4"})
    llmd = Llmd({"tiny_0": slow}, **QUICK)
    installed.append(llmd)
    llmd.start()
    with client(llmd) as api, ThreadPoolExecutor(4) as pool:
        replies = [pool.submit(say, api, "tiny", 8) for _ in range(4)]
        errors = [reply.exception() for reply in replies]
    refused = [error for error in errors if error]
    assert len(refused) == 2, llmd.text()
    for error in refused:
        assert isinstance(error, openai.RateLimitError)
        assert error.status_code == 429
        assert 1 <= int(error.response.headers["retry-after"]) <= 60
        assert "at its limit" in str(error)


def test_a_client_that_leaves_cancels_its_request_in_the_engine_at_once(installed: list[Llmd]) -> None:
    slow = profile("tiny", env={"STANDIN_TOKENS_PER_SECOND": "5"})
    llmd = Llmd({"tiny_0": slow}, **QUICK)
    installed.append(llmd)
    llmd.start()
    host, port = llmd.url.removeprefix("http://").split(":")
    body = json.dumps(
        {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 400, "stream": True}
    )
    raw = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    )
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(raw.encode())
        told = b""
        while b"data: {" not in told:  # comes from the engine; the head may come before
            told += (piece := connection.recv(4096))
            assert piece, told
        assert llmd.engine("tiny_0")["in_flight"] == 1
    until(lambda: llmd.engine("tiny_0")["in_flight"] == 0, 2, llmd.text)


def test_an_engine_that_fails_to_start_says_why_with_its_log(installed: list[Llmd]) -> None:
    llmd = Llmd({"tiny_0": profile("tiny", env={"STANDIN_OOM": "1"})}, **QUICK)
    installed.append(llmd)
    llmd.start()
    started = llmd.run("start", "tiny_0")
    assert started.returncode == 1
    assert "out of memory" in started.stderr + started.stdout
    shown = llmd.run("status").stdout
    assert "tiny_0: out of memory: " in shown
    assert "| RuntimeError: Engine core initialization failed." in shown
    assert llmd.engine("tiny_0")["failure_log"]
    with client(llmd) as api, pytest.raises(openai.InternalServerError) as failed:
        say(api)
    assert "out of memory" in str(failed.value)


def test_no_secret_is_told(llmd: Llmd) -> None:
    assert llmd.run("start", "tiny_0").returncode == 0
    record = next((llmd.home / "state" / "engines").glob("*/record.json"))
    secret = json.loads(record.read_text())["key"]
    told = llmd.text() + llmd.run("status", "--json").stdout
    told += "".join(map(_cmdline, llmd.leftovers()))
    assert "--uds" in told
    for key in (secret, KEY):
        assert key not in told


def _cmdline(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


@pytest.fixture
def gpus(tmp_path: Path) -> FakeGpus:
    return FakeGpus(tmp_path / "nvml", count=2, total=24 * GIB)


def on_cards(gpus: FakeGpus, tmp_path: Path, installed: list[Llmd]) -> Llmd:
    card: dict[str, Any] = {"weights": "tiny", "max_model_len": 512, "max_concurrent": 2}
    profiles = {
        "llama_0": card | {"model": "llama", "gpus": [0], "gpu_memory_utilization": 0.92},
        "llama_1": card | {"model": "llama", "gpus": [1], "vram": "18 GiB", "env": {"STANDIN_TOKENS_PER_SECOND": "5"}},
        "qwen_72b_dual": card | {"model": "qwen_72b", "gpus": [0, 1], "gpu_memory_utilization": 0.95},
    }  # fmt: skip
    llmd = Llmd(profiles, env=gpus.env(build(tmp_path)), **QUICK)
    installed.append(llmd)
    return llmd.start()


def test_foreign_memory_refuses_a_start_with_numbers_and_pid(
    gpus: FakeGpus, tmp_path: Path, installed: list[Llmd]
) -> None:
    gpus.foreign(os.getpid(), 0, 4 * GIB)
    llmd = on_cards(gpus, tmp_path, installed)
    refused = llmd.run("start", "llama_0")
    assert refused.returncode == 1
    for part in ("22.08 GiB", "19.75 GiB", f"PID {os.getpid()}", "4.00 GiB"):
        assert part in " ".join((refused.stdout + refused.stderr).split())
    assert llmd.engine("llama_0")["starts"] == 0


def test_a_dual_model_is_refused_while_one_card_is_busy_and_gets_both_when_idle(
    gpus: FakeGpus, tmp_path: Path, installed: list[Llmd]
) -> None:
    llmd = on_cards(gpus, tmp_path, installed)
    with client(llmd) as api:
        messages: Any = [{"role": "user", "content": "x"}]
        stream = api.chat.completions.create(model="llama_1", messages=messages, max_tokens=300, stream=True)
        next(iter(stream))
        refused = llmd.run("start", "qwen_72b_dual")
        assert refused.returncode == 1
        assert "llama_1 is busy" in " ".join((refused.stdout + refused.stderr).split())
        stream.close()
        until(lambda: llmd.engine("llama_1")["in_flight"] == 0, 5, llmd.text)
    assert llmd.run("start", "qwen_72b_dual").returncode == 0, llmd.text()
    assert llmd.engine("llama_1")["state"] == "cold"
    status = llmd.status()
    assert [d["ours"].keys() for d in status["devices"] if d["index"] is not None] == [{"qwen_72b_dual"}] * 2
