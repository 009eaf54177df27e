"""The configuration of a whole daemon, changed while it serves: by command and by SIGHUP, with stand-in engines."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import os
import random
import signal
import socket
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from supervisor.core.devices import GIB
from tests.daemon import KEY, QUICK, Llmd, profile, until
from tests.standin.nvml import FakeGpus, build

SLOW = {"STANDIN_TOKENS_PER_SECOND": "2"}
PROFILES = {
    "calm_0": profile("calm"),
    "tiny_0": profile("tiny", env=SLOW),
}


@pytest.fixture
def llmd() -> Iterator[Llmd]:
    made = Llmd(PROFILES, **QUICK)
    try:
        yield made.start()
    finally:
        made.close()


def write(llmd: Llmd, name: str, fields: dict[str, Any] | None) -> None:
    """A profile's file; None takes it away."""
    file = llmd.home / "profiles" / f"{name}.toml"
    file.unlink(missing_ok=True) if fields is None else file.write_text(tomli_w.dumps(fields))


def edit(llmd: Llmd, **tables: dict[str, Any]) -> None:
    document = tomllib.loads(llmd.config.read_text())
    for table, fields in tables.items():
        document[table] = document.get(table, {}) | fields
    llmd.config.write_text(tomli_w.dumps(document))


def post(url: str, model: str, key: str = KEY, tokens: int = 1) -> int:
    """The status of a chat; its answer has as many tokens as were asked for."""
    ask = {"model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": tokens}
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(ask).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] == tokens
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def hang_up(llmd: Llmd) -> None:
    assert llmd.process
    os.kill(llmd.process.pid, signal.SIGHUP)


def entries(llmd: Llmd, event: str) -> list[dict[str, Any]]:
    lines = (llmd.home / "state" / "llmd.log").read_text().splitlines()
    return [entry for line in lines if (entry := json.loads(line))["event"] == event]


def test_the_difference_is_shown_and_then_made_and_what_did_not_change_keeps_its_process(llmd: Llmd):
    for name in PROFILES:
        assert llmd.run("start", name).returncode == 0
    url, calm, tiny = llmd.url, llmd.engine("calm_0")["pid"], llmd.engine("tiny_0")["pid"]
    with concurrent.futures.ThreadPoolExecutor() as threads:
        running = threads.submit(post, url, "tiny", tokens=60)
        until(lambda: engine(llmd, "tiny_0")["in_flight"] == 1, 10, llmd.text)

        write(llmd, "tiny_0", profile("tiny", max_concurrent=2, env=SLOW))
        write(llmd, "calm_0", profile("calm", idle_ttl="5m"))
        write(llmd, "new_0", profile("new"))
        plan = llmd.run("reload", "--plan").stdout.splitlines()
        assert plan == [
            "profiles.calm_0 changed: idle_ttl 30m -> 5m",
            "profiles.new_0 added",
            "profiles.tiny_0 changed: max_concurrent 4 -> 2",
            "calm_0: its engine runs on",
            "tiny_0: its engine ends after 1 in flight and starts anew",
        ]
        assert engine(llmd, "tiny_0")["state"] == "ready"

        done = llmd.run("reload").stdout.splitlines()
        assert done[:-1] == plan
        assert done[-1].startswith("it holds since 20")
        later = threads.submit(post, url, "tiny", tokens=2)
        assert engine(llmd, "tiny_0")["state"] == "draining"
        assert post(url, "calm") == 200
        assert (running.result(), later.result()) == (200, 200)
    assert llmd.engine("calm_0")["pid"] == calm
    assert llmd.engine("tiny_0")["pid"] != tiny
    assert llmd.engine("tiny_0")["slots"] == 2
    assert post(url, "new") == 200

    history = llmd.run("why", "--history").stdout
    assert "another configuration holds: profiles.calm_0 changed" in history
    assert llmd.run("reload").stdout.startswith("nothing differs from what runs\n")
    assert len(entries(llmd, "reconfigured")) == 1


def test_a_removed_profile_ends_what_runs_on_it_and_is_not_found_from_then_on(llmd: Llmd):
    assert llmd.run("start", "tiny_0").returncode == 0
    url = llmd.url
    with concurrent.futures.ThreadPoolExecutor() as threads:
        running = threads.submit(post, url, "tiny", tokens=30)
        until(lambda: engine(llmd, "tiny_0")["in_flight"] == 1, 10, llmd.text)
        write(llmd, "tiny_0", None)
        answer = json.loads(llmd.run("reload", "--json").stdout)
        assert answer["applied"] is True
        assert answer["changes"][0]["text"] == "profiles.tiny_0 removed"
        assert post(url, "tiny") == 404
        assert running.result() == 200
    until(lambda: [e["profile"] for e in llmd.status()["engines"]] == ["calm_0"], 20, llmd.text)


def test_sighup_takes_up_what_is_written_and_says_so_in_the_log(llmd: Llmd):
    loaded = llmd.status()["daemon"]["config_loaded"]
    assert llmd.status()["daemon"]["config_newer"] is False
    edit(llmd, server={"max_wait": "7s"})
    until(lambda: llmd.status()["daemon"]["config_newer"], 10, llmd.text)
    hang_up(llmd)
    until(lambda: bool(entries(llmd, "reconfigured")), 10, llmd.text)
    (entry,) = entries(llmd, "reconfigured")
    assert entry["changes"] == ["server changed: max_wait 4m50s -> 7s"]
    until(lambda: not llmd.status()["daemon"]["config_newer"], 10, llmd.text)
    assert llmd.status()["daemon"]["config_loaded"] >= loaded


def test_what_lasts_until_a_restart_is_named_and_left_as_it_is(llmd: Llmd):
    url = llmd.url
    edit(llmd, server={"state_dir": str(llmd.home / "other"), "listen": ["127.0.0.1:1"]})
    told = llmd.run("reload").stdout
    assert "state_dir" in told.splitlines()[0]
    assert told.splitlines()[0].endswith("(kept as it is until llmd is started again)")
    assert llmd.url == url
    assert post(url, "calm") == 200
    assert not (llmd.home / "other").exists()


def test_keys_are_rotated_and_revoked_live(llmd: Llmd):
    file = llmd.home / "key"
    file.write_text("sk-first\n")
    file.chmod(0o600)
    edit(llmd, keys={"bob": {"file": str(file)}})
    assert llmd.run("reload").returncode == 0
    url = llmd.url
    assert llmd.run("start", "tiny_0").returncode == 0
    assert post(url, "calm", "sk-first") == 200
    with concurrent.futures.ThreadPoolExecutor() as threads:
        running = threads.submit(post, url, "tiny", "sk-first", tokens=60)
        until(lambda: engine(llmd, "tiny_0")["in_flight"] == 1, 10, llmd.text)
        file.write_text("sk-second\n")
        told = llmd.run("reload").stdout
        assert told.splitlines()[0] == "keys.bob changed: secret is another"
        assert (post(url, "calm", "sk-first"), post(url, "calm", "sk-second")) == (401, 200)

        document = tomllib.loads(llmd.config.read_text())
        del document["keys"]["bob"]
        llmd.config.write_text(tomli_w.dumps(document))
        assert llmd.run("reload").stdout.startswith("keys.bob removed\n")
        assert post(url, "calm", "sk-second") == 401
        assert running.result() == 200  # what was let in ends well
    assert post(url, "calm") == 200
    logs = llmd.text() + (llmd.home / "state" / "llmd.log").read_text()
    assert "sk-first" not in logs
    assert "sk-second" not in logs


def test_a_mistake_changes_nothing_and_is_said_with_its_line(llmd: Llmd):
    assert llmd.run("start", "calm_0").returncode == 0
    pid, url = llmd.engine("calm_0")["pid"], llmd.url
    good = (llmd.home / "profiles" / "calm_0.toml").read_text()
    broken = llmd.home / "profiles" / "calm_0.toml"
    broken.write_text(good + "max_concurent = 8\n")
    line = len(good.splitlines()) + 1
    said = f"{broken}:{line}: unknown key max_concurent; write max_concurrent"

    done = llmd.run("reload")
    assert (done.returncode, done.stderr, done.stdout) == (1, f"{said}\n", "")
    hang_up(llmd)
    until(lambda: bool(entries(llmd, "reload_failed")), 10, llmd.text)
    assert entries(llmd, "reload_failed")[0]["message"] == f"the configuration that runs is kept: {said}"
    assert llmd.status()["daemon"]["config_error"] == said
    until(lambda: llmd.status()["daemon"]["config_newer"], 10, llmd.text)

    assert (post(url, "calm"), llmd.engine("calm_0")["pid"]) == (200, pid)
    broken.write_text(good)
    assert llmd.run("reload").returncode == 0
    assert llmd.status()["daemon"]["config_error"] is None


def mangled(text: str, dice: random.Random) -> bytes:
    """One of the ways in which a file goes wrong under somebody's hands."""
    data, at = bytearray(text.encode()), dice.randrange(len(text))
    kind = dice.randrange(5)
    if kind == 0:
        data[at:] = b""
    elif kind == 1:
        data[at] = dice.randrange(256)
    elif kind == 2:
        data[at:at] = bytes(dice.randrange(256) for _ in range(dice.randrange(1, 40)))
    elif kind == 3:
        lines = data.splitlines(keepends=True)
        data = bytearray(b"".join([*lines, dice.choice(lines)]))
    else:
        del data[at : at + dice.randrange(1, 30)]
    return bytes(data)


def test_after_any_broken_file_the_daemon_serves_as_before(llmd: Llmd):
    """What is broken beyond reading is refused; what still makes sense is taken; the engine lives through both."""
    assert llmd.run("start", "calm_0").returncode == 0
    url, pid, dice = llmd.url, llmd.engine("calm_0")["pid"], random.Random(7)
    file = llmd.home / "profiles" / "tiny_0.toml"
    good = file.read_text()
    refused = 0
    for _ in range(100):
        broken = mangled(good, dice)
        file.write_bytes(broken)
        status, answer = ask(llmd, "POST", "/reload")
        assert status in (200, 409), (broken, answer)
        if status == 409:
            refused += 1
            assert answer["error"]["message"].startswith(str(file)), broken
        assert post(url, "calm") == 200
    assert refused > 50
    file.write_text(good)
    assert llmd.run("reload").returncode == 0
    assert llmd.engine("calm_0")["pid"] == pid


def engine(llmd: Llmd, profile: str) -> dict[str, Any]:
    """At once: a command line takes a second to start where the host is busy."""
    found: dict[str, Any] = next(
        e for e in ask(llmd, "GET", "/status")[1]["engines"] if e["profile"] == profile
    )
    return found


def ask(llmd: Llmd, method: str, path: str) -> tuple[int, Any]:
    """Of the daemon itself, without a command line that reads the files too."""
    with socket.socket(socket.AF_UNIX) as connected:
        connected.connect(str(llmd.home / "admin.sock"))
        connection = http.client.HTTPConnection("llmd")
        connection.sock = connected
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, json.load(answer)


def test_a_missing_directory_or_document_changes_nothing(llmd: Llmd):
    (llmd.home / "profiles").rename(llmd.home / "elsewhere")
    assert llmd.run("reload").returncode == 1
    (llmd.home / "elsewhere").rename(llmd.home / "profiles")
    llmd.config.rename(llmd.home / "gone.toml")
    hang_up(llmd)
    until(lambda: bool(entries(llmd, "reload_failed")), 10, llmd.text)
    (llmd.home / "gone.toml").rename(llmd.config)
    assert post(llmd.url, "calm") == 200


def test_without_a_daemon_there_is_nothing_to_reload(llmd: Llmd):
    llmd.stop()
    assert llmd.run("reload").returncode == 3


def test_a_gpu_that_this_host_lacks_is_an_error_and_the_other_engines_never_notice(tmp_path: Path):
    gpus = FakeGpus(tmp_path / "nvml", count=2, total=24 * GIB)
    card = {"weights": "tiny", "max_model_len": 512, "vram": "8 GiB", "env": {"STANDIN_WEIGHTS": "0.01"}}
    llmd = Llmd(
        {"one_0": card | {"model": "one", "gpus": [0]}, "two_1": card | {"model": "two", "gpus": [1]}},
        env=gpus.env(build(tmp_path)),
        **QUICK,
    )
    try:
        llmd.start()
        for name in ("one_0", "two_1"):
            assert llmd.run("start", name).returncode == 0, llmd.text()
        pids = {name: llmd.engine(name)["pid"] for name in ("one_0", "two_1")}
        write(llmd, "two_1", card | {"model": "two", "gpus": [7]})
        done = llmd.run("reload")
        assert done.returncode == 1
        assert "two_1.toml:" in done.stderr
        assert "there is no GPU 7; write some of 0, 1" in done.stderr
        assert {name: llmd.engine(name)["pid"] for name in pids} == pids

        write(llmd, "two_1", card | {"model": "two", "gpus": [1], "vram": "9 GiB"})
        assert llmd.run("reload").returncode == 0
        until(lambda: llmd.engine("two_1")["state"] == "ready", 30, llmd.text)
        until(lambda: sum(llmd.engine("two_1")["reserved"].values()) == 9 * GIB, 10, llmd.text)
        assert llmd.engine("two_1")["pid"] != pids["two_1"]
        assert llmd.engine("one_0")["pid"] == pids["one_0"]
    finally:
        llmd.close()
