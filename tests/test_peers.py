"""Two whole daemons with stand-in engines as each other's peer, and a server that is none of ours."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from tests.daemon import KEY, QUICK, Llmd, profile, until

THEIRS = "sk-of-the-dgx"
"""The key of the far daemon, which only the near one has."""
PASSED = ("it failed this request", "down: it broke off a request")
SLOW = {"STANDIN_TOKENS_PER_SECOND": "20"}


@pytest.fixture
def made() -> Iterator[list[Llmd]]:
    found: list[Llmd] = []
    yield found
    for llmd in found:
        llmd.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def peer(port: int, **fields: Any) -> dict[str, Any]:
    return {"url": f"http://127.0.0.1:{port}/v1", "key_env": "DGX_KEY", "interval": 0.2} | fields


class Pair:
    """`near` and `far` are each other's peers; the far one's models are llama-70b and tiny, the near one's tiny."""

    def __init__(self, made: list[Llmd], **fields: Any) -> None:
        ports = free_port(), free_port()
        self.near = self.daemon(
            made, ports[0], KEY, {"tiny_0": profile("tiny", max_concurrent=1, env=SLOW)},
            {"dgx": peer(ports[1], **fields)}, {"DGX_KEY": THEIRS},
        )  # fmt: skip
        big = {"big_0": profile("llama-70b", env=SLOW), "tiny_9": profile("tiny")}
        self.far = self.daemon(made, ports[1], THEIRS, big, {"near": peer(ports[0])}, {"DGX_KEY": KEY})

    @staticmethod
    def daemon(made: list[Llmd], port: int, key: str, profiles: Any, peers: Any, env: dict[str, str]) -> Llmd:
        llmd = Llmd(profiles, env={"LLMD_TEST_KEY": key, **env}, peers=peers, **QUICK)
        text = llmd.config.read_text().replace("127.0.0.1:0", f"127.0.0.1:{port}")
        llmd.config.write_text(text)
        made.append(llmd)
        return llmd.start()

    def joined(self) -> Pair:
        for llmd in (self.near, self.far):
            until(partial(is_joined, llmd), 20, llmd.text)
        return self


def is_joined(llmd: Llmd) -> bool:
    return all(found["up"] for found in llmd.status()["peers"])


def client(llmd: Llmd, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{llmd.url}/v1", api_key=key, max_retries=0, timeout=60)


def request(llmd: Llmd, model: str, *, tokens: int = 3, **headers: str) -> urllib.request.Request:
    messages = [{"role": "user", "content": f"Hello {uuid.uuid4()}"}]  # a conversation of its own
    body = {"model": model, "messages": messages, "max_tokens": tokens}
    return urllib.request.Request(
        f"{llmd.url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json", **headers},
    )


def post(llmd: Llmd, model: str, *, tokens: int = 3, **headers: str) -> tuple[int, Any, Any]:
    """Status, headers, body."""
    try:
        with urllib.request.urlopen(request(llmd, model, tokens=tokens, **headers), timeout=60) as answer:
            return answer.status, answer.headers, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, error.headers, json.loads(error.read())


def why(llmd: Llmd, request: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(llmd.run("why", "--request", request, "--json").stdout)
    return answer


def test_a_model_of_the_peer_is_listed_chatted_with_and_streamed(made: list[Llmd]) -> None:
    pair = Pair(made).joined()
    with client(pair.near) as api:
        listed = {model.id: model.owned_by for model in api.models.list()}
        assert (listed["llama-70b"], listed["tiny"], listed["tiny_0"]) == ("dgx", "llmd", "llmd")
        messages: Any = [{"role": "user", "content": "Hello"}]
        chunks = list(
            api.chat.completions.create(model="llama-70b", messages=messages, max_tokens=4, stream=True)
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    status, headers, _ = post(pair.near, "llama-70b", **{"X-Request-Id": "mine"})
    assert (status, headers["x-llmd-profile"], headers["x-request-id"]) == (200, "dgx", "mine")
    assert int(headers["x-llmd-queue-ms"]) >= 0
    told = why(pair.near, "mine")
    assert told["tries"][0]["granted"] == "dgx"
    assert told["outcome"]["status"] == 200
    assert why(pair.far, "mine")["hops"] == 1
    assert '"reason": "a peer of priority -1"' in pair.near.text()


def test_models_that_peers_list_of_each_other_do_not_come_back(made: list[Llmd]) -> None:
    pair = Pair(made).joined()
    with client(pair.far, THEIRS) as api:
        assert {model.id for model in api.models.list() if model.owned_by == "near"} == {"tiny_0"}
        told = {model.id for model in api.models.list(extra_headers={"x-llmd-hops": "1"})}
    assert told == {"big_0", "llama-70b", "tiny", "tiny_9"}, "what a peer is told of"
    (found,) = pair.near.status()["peers"]
    assert found["models"].keys() == told


def test_what_is_full_here_spills_over_at_once(made: list[Llmd]) -> None:
    pair = Pair(made).joined()
    assert pair.near.run("start", "tiny_0").returncode == 0
    assert pair.far.run("start", "tiny_9").returncode == 0
    until(lambda: pair.near.status()["peers"][0]["models"]["tiny"]["warm"], 10, pair.near.text)
    long = request(pair.near, "tiny", tokens=500)
    host, _, port = pair.near.url.removeprefix("http://").partition(":")
    with closing(http.client.HTTPConnection(host, int(port), timeout=60)) as busy:
        busy.request("POST", long.selector, long.data, dict(long.header_items()))
        until(lambda: pair.near.engine("tiny_0")["in_flight"] == 1, 20, pair.near.text)
        status, headers, _ = post(pair.near, "tiny")
    assert (status, headers["x-llmd-profile"]) == (200, "dgx")


def test_a_peer_that_dies_is_no_candidate_and_comes_back(made: list[Llmd]) -> None:
    pair = Pair(made).joined()
    pair.far.kill()
    until(lambda: not pair.near.status()["peers"][0]["up"], 10, pair.near.text)
    status, headers, body = post(pair.near, "llama-70b")
    assert (status, body["error"]["code"]) == (503, "model_not_available")
    assert "dgx: down: cannot be reached" in body["error"]["message"]
    assert headers["Retry-After"] == "10"
    assert "dgx" in pair.near.run("status").stdout
    assert "down" in pair.near.run("why", "llama-70b").stdout
    assert post(pair.near, "tiny")[0] == 200
    pair.far.start()
    until(lambda: pair.near.status()["peers"][0]["up"], 20, pair.near.text)
    assert post(pair.near, "llama-70b")[0] == 200


def test_no_key_is_shown_or_handed_on(made: list[Llmd]) -> None:
    pair = Pair(made).joined()
    assert post(pair.near, "llama-70b")[0] == 200
    assert pair.near.run("start", "tiny_0").returncode == 0
    shown = (
        pair.near.text() + json.dumps(pair.near.status()) + pair.near.run("why", "llama-70b", "--json").stdout
    )
    assert THEIRS not in shown
    assert KEY not in shown
    for process in pair.near.tree("tiny_0"):
        assert THEIRS not in process.environ().values()


def test_a_request_that_goes_round_is_refused(made: list[Llmd]) -> None:
    pair = Pair(made).joined()
    status, _, body = post(pair.near, "tiny", **{"x-llmd-hops": "4"})
    assert (status, body["error"]["code"]) == (508, "loop_detected")
    status, _, body = post(pair.near, "llama-70b", **{"x-llmd-hops": "3"})
    assert (status, "passed on 3 times already" in body["error"]["message"]) == (503, True)
    assert post(pair.near, "tiny", **{"x-llmd-hops": "3"})[0] == 200
    assert post(pair.near, "tiny", **{"x-llmd-hops": "many"})[0] == 400


# Once more, elsewhere


def broken_off(llmd: Llmd, name: str, pool: ThreadPoolExecutor) -> Any:
    """A request whose engine is killed while it works on the answer, of which nothing was sent."""
    asked = pool.submit(post, llmd, "tiny", tokens=200, **{"X-Request-Id": "mine"})
    until(lambda: llmd.engine(name)["in_flight"] == 1, 10, llmd.text)
    os.kill(llmd.engine(name)["pid"], signal.SIGKILL)
    return asked.result()


def test_an_engine_that_dies_before_its_first_byte_leaves_the_request_to_its_twin(made: list[Llmd]) -> None:
    slow = profile("tiny", env=SLOW)
    made.append(Llmd({"tiny_0": slow, "tiny_1": profile("tiny")}, **QUICK).start())
    (llmd,) = made
    for name in ("tiny_0", "tiny_1"):
        assert llmd.run("start", name).returncode == 0
    with ThreadPoolExecutor(1) as pool:
        status, headers, body = broken_off(llmd, "tiny_0", pool)
    assert (status, headers["x-llmd-profile"], body["usage"]["completion_tokens"]) == (200, "tiny_1", 200)
    first, second = why(llmd, "mine")["tries"]
    assert (first["granted"], second["granted"]) == ("tiny_0", "tiny_1")
    assert first["failed"].startswith("the engine of tiny_0 (model 'tiny') did not answer")
    shown = llmd.run("why", "--request", "mine").stdout
    assert "again, elsewhere:" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_without_a_twin_the_next_incarnation_answers(made: list[Llmd]) -> None:
    made.append(Llmd({"tiny_0": profile("tiny", env=SLOW)}, **QUICK).start())
    (llmd,) = made
    assert llmd.run("start", "tiny_0").returncode == 0
    with ThreadPoolExecutor(1) as pool:
        status, headers, _ = broken_off(llmd, "tiny_0", pool)
    assert (status, headers["x-llmd-profile"]) == (200, "tiny_0")
    assert llmd.engine("tiny_0")["starts"] == 2


async def test_an_engine_that_dies_before_it_takes_a_websocket_leaves_it_to_its_twin(
    made: list[Llmd],
) -> None:
    fields: dict[str, Any] = {"task": "transcribe", "weights": "whisper"}
    hangs = profile("tiny", env={"STANDIN_HANG_AT": "request"}, **fields)
    made.append(Llmd({"tiny_0": hangs, "tiny_1": profile("tiny", **fields)}, **QUICK).start())
    (llmd,) = made
    for name in ("tiny_0", "tiny_1"):
        assert llmd.run("start", name).returncode == 0
    asked = asyncio.create_task(first_words(llmd))
    async with asyncio.timeout(20):
        while llmd.engine("tiny_0")["in_flight"] != 1:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.05)
    os.kill(llmd.engine("tiny_0")["pid"], signal.SIGKILL)
    assert await asked == {"type": "session.created"}
    first, second = why(llmd, "mine")["tries"]
    assert (first["granted"], second["granted"]) == ("tiny_0", "tiny_1")
    assert first["failed"].startswith("the engine of tiny_0 (model 'tiny') took no websocket")


# A server that is none of ours


class Foreign(ThreadingHTTPServer):
    """It lists `tiny`, and does to a chat what `how` says."""

    how = "busy"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.chats: list[dict[str, str]] = []
        self.elsewhere = 0
        self.go_on = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class Answer(BaseHTTPRequestHandler):
    server: Foreign

    def do_GET(self) -> None:
        if self.path.startswith("/v1/realtime?"):
            self.misbehave()
            return
        self.server.elsewhere += self.path != "/v1/models"
        if self.server.how == "redirect":
            self.answer(307, {}, Location=f"http://127.0.0.1:{self.server.port}/taken")
        else:
            self.answer(200, {"object": "list", "data": [{"id": "tiny"}]})

    def do_POST(self) -> None:
        self.server.elsewhere += self.path != "/v1/chat/completions"
        self.misbehave()

    def misbehave(self) -> None:
        self.server.chats.append({name.lower(): value for name, value in self.headers.items()})
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        how = self.server.how
        if how == "busy":
            self.answer(503, {"error": {"message": "come back later"}})
        elif how == "redirect":
            self.answer(307, {}, Location=f"http://127.0.0.1:{self.server.port}/taken")
        elif how == "junk":
            self.wfile.write(b"NOT HTTP\r\n\r\n")
        elif how == "mute":
            self.server.go_on.wait(20)
        elif how == "bad":
            self.answer(400, {"error": {"message": "no", "code": "theirs"}})
        self.close_connection = True

    def answer(self, status: int, body: dict[str, Any], **headers: str) -> None:
        self.send_response(status)
        text = json.dumps(body).encode()
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(text)),
            **headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        """Not on stderr."""


@pytest.fixture
def foreign() -> Iterator[Foreign]:
    server = Foreign()
    yield server
    server.go_on.set()
    server.shutdown()
    server.server_close()


def preferring(made: list[Llmd], foreign: Foreign, **fields: Any) -> Llmd:
    """A daemon that would rather have the foreign server's tiny than its own."""
    peers = {"cloud": peer(foreign.port, priority=1, interval=60, timeout=1)}
    made.append(Llmd({"tiny_0": profile("tiny", **fields)}, env={"DGX_KEY": THEIRS}, peers=peers, **QUICK))
    made[0].start()
    until(lambda: made[0].status()["peers"][0]["up"], 10, made[0].text)
    return made[0]


@pytest.fixture
def beside(made: list[Llmd], foreign: Foreign) -> Llmd:
    return preferring(made, foreign)


@pytest.fixture
def hearing(made: list[Llmd], foreign: Foreign) -> Llmd:
    return preferring(made, foreign, task="transcribe", weights="whisper")


@pytest.mark.parametrize("how", ["busy", "redirect", "junk", "cut"])
def test_a_peer_that_fails_before_the_first_byte_leaves_the_request_to_the_next(
    beside: Llmd, foreign: Foreign, how: str
) -> None:
    foreign.how = how
    status, headers, _ = post(beside, "tiny", **{"X-Request-Id": "mine", "X-OpenWebUI-User-Email": "a@b.c"})
    assert (status, headers["x-llmd-profile"]) == (200, "tiny_0")
    (sent,) = foreign.chats
    assert sent["authorization"] == f"Bearer {THEIRS}"
    assert (sent["x-llmd-hops"], sent["x-request-id"]) == ("1", "mine")
    assert "x-openwebui-user-email" not in sent
    assert foreign.elsewhere == 0
    tries = why(beside, "mine")["tries"]
    assert [tried["granted"] for tried in tries] == ["cloud", "tiny_0"]
    (passed,) = tries[1]["passed_over"]
    assert (passed["name"], passed["reason"] in PASSED) == ("cloud", True)


def test_what_a_peer_says_of_the_request_is_the_answer(beside: Llmd, foreign: Foreign) -> None:
    foreign.how = "bad"
    status, headers, body = post(beside, "tiny")
    assert (status, headers["x-llmd-profile"], body["error"]["code"]) == (400, "cloud", "theirs")


def test_a_peer_that_is_silent_is_not_asked_twice_nor_another(beside: Llmd, foreign: Foreign) -> None:
    """It may be at work on it."""
    foreign.how = "mute"
    status, _, body = post(beside, "tiny")
    assert (status, body["error"]["code"]) == (504, "engine_timeout")
    assert "the peer cloud did not begin to answer within 1 s" in body["error"]["message"]
    assert len(foreign.chats) == 1


async def first_words(llmd: Llmd) -> Any:
    """What a websocket for tiny hears first."""
    async with (
        asyncio.timeout(30),
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}", "X-Request-Id": "mine"}) as client,
        client.ws_connect(f"{llmd.url}/v1/realtime?model=tiny") as socket,
    ):
        return await socket.receive_json()


@pytest.mark.parametrize("how", ["busy", "redirect", "junk", "cut"])
async def test_a_peer_that_takes_no_websocket_leaves_it_to_the_next(
    hearing: Llmd, foreign: Foreign, how: str
) -> None:
    foreign.how = how
    assert await first_words(hearing) == {"type": "session.created"}
    assert {(sent["authorization"], sent["x-llmd-hops"]) for sent in foreign.chats} == {
        (f"Bearer {THEIRS}", "1")
    }
    assert foreign.elsewhere == 0, "no redirect is followed"
    tries = why(hearing, "mine")["tries"]
    assert [tried["granted"] for tried in tries] == ["cloud", "tiny_0"]


@pytest.mark.parametrize(("how", "status"), [("mute", 504), ("bad", 502)])
async def test_a_peer_that_is_silent_or_refuses_a_websocket_is_the_last_that_is_asked(
    hearing: Llmd, foreign: Foreign, how: str, status: int
) -> None:
    foreign.how = how
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await first_words(hearing)
    assert (refused.value.status, len(foreign.chats)) == (status, 1)


def test_a_list_of_models_that_is_elsewhere_is_not_fetched(made: list[Llmd], foreign: Foreign) -> None:
    """The key would go there too."""
    foreign.how = "redirect"
    peers = {"cloud": peer(foreign.port)}
    made.append(Llmd({"tiny_0": profile("tiny")}, env={"DGX_KEY": THEIRS}, peers=peers, **QUICK).start())
    trouble = "GET /v1/models was answered 307"
    until(lambda: made[0].status()["peers"][0]["trouble"] == trouble, 10, made[0].text)
    assert foreign.elsewhere == 0


def test_a_certificate_that_nobody_signed_is_not_believed(
    made: list[Llmd], foreign: Foreign, tmp_path: Path
) -> None:
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1"]
    files = ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "cert")]
    subprocess.run(
        [*words, *files, "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    foreign.socket = context.wrap_socket(foreign.socket, server_side=True)
    url = f"https://127.0.0.1:{foreign.port}"
    made.append(Llmd({"tiny_0": profile("tiny")}, peers={"cloud": {"url": url, "interval": 0.2}}, **QUICK))
    made[0].start()
    trouble = "its certificate is not valid"
    until(lambda: made[0].status()["peers"][0]["trouble"] == trouble, 10, made[0].text)


def test_why_of_a_request_that_nobody_remembers(beside: Llmd) -> None:
    done = beside.run("why", "--request", "nothing")
    assert done.returncode == 1
    assert "no request 'nothing' among the last 0" in done.stderr
    assert beside.run("why", "--request", "x", "tiny").returncode == 2
