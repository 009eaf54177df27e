"""The dashboard behind a real runner: who gets in, what may be done, what its headers forbid, what its stream costs."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from aiohttp import web
from fakes import FakeDriver, engine_of

from supervisor.config import Config, Key, Profile
from supervisor.config import Server as Settings
from supervisor.config.secrets import digest
from supervisor.errors import Forbidden, Unauthorized
from supervisor.web.auth import Keyring
from supervisor.web.server import Server as Port
from supervisor.web.ui import gate, stream
from supervisor.web.ui.gate import Gate
from tests.standin.launch import until

STATIC = Path(stream.__file__).parent / "static"
SCOPES = {"ann": "admin", "wall": "read", "webui": "api"}
READS = ("events", "history", "decisions", "why/llama_0", "mode/day/plan", "logs/llama_0", "me", "reload")
ACTS = (
    "profiles/llama_0/start",
    "profiles/llama_0/pin",
    "profiles/llama_0/stop",
    "mode/auto",
    "gpus/GPU-1/release",
    "requests/1/cancel",
    "reload",
)
ENGINE: dict[str, Any] = {
    "profile": "llama_0", "model": "llama", "task": "generate", "state": "ready", "stage": None, "percent": None,
    "pid": 7, "in_flight": 0, "slots": 4, "queued": 0, "reserved": {}, "measured": {}, "starts": 1, "failure": None,
    "reason": None, "available": True, "asleep": 0, "pinned": False, "ttl_left_s": 60.0, "since_s": 5.0, "eta_s": 0.0,
    "max_model_len": 4096,
}  # fmt: skip
CARD: dict[str, Any] = {
    "device": "GPU-1", "index": 0, "name": "NVIDIA L4", "total": 100, "used": 40, "free": 60, "foreign": [],
    "trouble": None, "quarantined": "memory of llama_0 did not come back", "age_s": 2.0, "utilization": 0.5,
    "temperature": 50, "power": 70.0, "xids": [{"xid": 63, "meaning": "a row is remapped", "count": 2, "ago_s": 9.0}],
}  # fmt: skip


PEER: dict[str, Any] = {
    "peer": "dgx",
    "url": "https://dgx:8000",
    "up": False,
    "trouble": "it has not answered yet",
}


class Driver(FakeDriver):
    """Its status has what the dashboard shows; `padding` makes every picture a new and long one."""

    padding = 0
    looks = 0

    def status(self) -> dict[str, Any]:
        self.looks += 1
        engine = ENGINE | {"failure": f"{self.looks}" + "x" * self.padding if self.padding else None}
        whole = {
            "gpu_trouble": None,
            "disk_trouble": [],
            "strays": [],
            "loans": [],
            "peers": [PEER],
            "waiting": 0,
        }
        return {**whole, "daemon": {"uptime_s": 9.0}, "devices": [CARD], "engines": [engine | self.more]}

    @property
    def more(self) -> dict[str, Any]:
        return {"in_flight": len(self.calls)}

    async def set_mode(self, name: str, seconds: float | None = None) -> str:
        self.calls.append(("mode", name, bool(seconds)))
        return f"mode {name}"


def configured(**more: Any) -> Config:
    return Config(
        path=Path("llmd.toml"),
        server=Settings(listen=("127.0.0.1:0",), drain=5),
        profiles={"llama_0": Profile(name="llama_0", model="llama", weights="w", gpus=(0,))},
        **more,
    )


@asynccontextmanager
async def opened(keys: bool = True) -> AsyncIterator[tuple[str, Driver]]:
    """The dashboard's address and what lies below it."""
    named = {name: Key(env="X", scope=scope) for name, scope in SCOPES.items()} if keys else {}
    driver = Driver(configured(keys=named))
    port = Port(driver, Keyring({digest(f"sk-{name}"): name for name in named}, open=not keys))
    await port.open()
    try:
        yield f"{port.listening[0]}/ui/", driver
    finally:
        async with asyncio.timeout(2):  # open streams do not hold up the end
            await port.close()


@pytest.fixture
async def place() -> AsyncIterator[tuple[str, Driver]]:
    async with opened() as made:
        yield made


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        yield session


def origin(url: str) -> dict[str, str]:
    return {"Origin": url.removesuffix("/ui/")}


async def sign_in(client: aiohttp.ClientSession, url: str, who: str = "ann") -> dict[str, str]:
    """The headers that an action needs."""
    form = {"key": f"sk-{who}"}
    async with client.post(url + "signin", data=form, headers=origin(url), allow_redirects=False) as answer:
        assert (answer.status, answer.headers["Location"]) == (303, "/ui/")
    async with client.get(url + "me") as answer:
        return {**origin(url), gate.TOKEN: (await answer.json())["token"]}


async def status(client: aiohttp.ClientSession, method: str, url: str, **more: Any) -> int:
    async with client.request(method, url, allow_redirects=False, **more) as answer:
        return answer.status


async def test_nobody_reads_or_acts_without_signing_in(place: Any, client: aiohttp.ClientSession) -> None:
    url, driver = place
    assert {path: await status(client, "GET", url + path) for path in READS} == dict.fromkeys(READS, 401)
    found = {path: await status(client, "POST", url + path, headers=origin(url)) for path in ACTS}
    assert found == dict.fromkeys(ACTS, 401)
    assert driver.calls == []


@pytest.mark.parametrize(("key", "why"), [("sk-wrong", "key"), ("sk-webui", "scope"), ("", "key")])
async def test_who_is_not_let_in(place: Any, client: aiohttp.ClientSession, key: str, why: str) -> None:
    url, _ = place
    async with client.post(
        url + "signin", data={"key": key}, headers=origin(url), allow_redirects=False
    ) as answer:
        assert answer.headers["Location"] == f"/ui/signin?refused={why}"
        assert "Set-Cookie" not in answer.headers


async def test_the_cookie_is_for_the_dashboard_alone(place: Any, client: aiohttp.ClientSession) -> None:
    url, _ = place
    form = {"key": "sk-wall"}
    async with client.post(url + "signin", data=form, headers=origin(url), allow_redirects=False) as answer:
        cookie = answer.cookies[gate.COOKIE]
    assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "Strict", "/ui/")
    assert int(cookie["max-age"]) == gate.LASTS
    assert len(cookie.value) >= 32


async def test_a_form_of_another_site_signs_nobody_in(place: Any, client: aiohttp.ClientSession) -> None:
    url, _ = place
    for headers in ({}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
        assert await status(client, "POST", url + "signin", data={"key": "sk-ann"}, headers=headers) == 403


@pytest.mark.parametrize("lacking", ["Origin", gate.TOKEN])
async def test_a_cookie_alone_does_nothing(place: Any, client: aiohttp.ClientSession, lacking: str) -> None:
    url, driver = place
    good = await sign_in(client, url)
    for bad in ({}, {lacking: "http://evil.example"}):
        headers = {name: value for name, value in good.items() if name != lacking} | bad
        assert await status(client, "POST", url + "profiles/llama_0/stop", headers=headers) == 403
    assert driver.calls == []
    assert await status(client, "POST", url + "profiles/llama_0/stop", headers=good) == 200
    assert driver.calls == [("stop", "llama_0", False)]


async def test_read_looks_and_admin_acts(place: Any, client: aiohttp.ClientSession) -> None:
    url, driver = place
    looker = await sign_in(client, url, "wall")
    assert await status(client, "GET", url + "decisions") == 200
    assert {await status(client, "POST", url + path, headers=looker) for path in ACTS} == {403}
    assert driver.calls == []
    admin = await sign_in(client, url)
    assert await status(client, "POST", url + "mode/night?hours=2", headers=admin) == 200
    assert await status(client, "POST", url + "mode/night?hours=-2", headers=admin) == 400
    assert await status(client, "POST", url + "requests/9/cancel", headers=admin) == 404
    assert await status(client, "POST", url + "profiles/nope/start", headers=admin) == 404
    assert await status(client, "POST", url + "profiles/llama_0/pin", headers=admin) == 200
    assert await status(client, "POST", url + "profiles/llama_0/unpin", headers=admin) == 200
    assert driver.calls == [("mode", "night", True), ("start", "llama_0", True), ("start", "llama_0", False)]


async def test_who_signs_out_is_out(place: Any, client: aiohttp.ClientSession) -> None:
    url, _ = place
    await sign_in(client, url)
    kept = {cookie.key: cookie.value for cookie in client.cookie_jar}
    assert await status(client, "POST", url + "signout", headers=origin(url)) == 200
    assert await status(client, "GET", url + "me", cookies=kept) == 401


def test_sessions_end_and_are_bounded() -> None:
    clock = [0.0]
    keys = {"ann": Key(env="X", scope="admin"), "webui": Key(env="Y")}
    config = configured(keys=keys)
    door = Gate(lambda: config, Keyring({digest("sk"): "ann", digest("s"): "webui"}), lambda: clock[0])
    first = door.sign_in("sk")
    assert "sk" not in repr(first)
    assert first.name not in repr(first)
    assert [door.alive(door.sign_in("sk")) for _ in range(gate.MOST)] == [True] * gate.MOST
    assert not door.alive(first)
    last = door.sign_in("sk")
    clock[0] = gate.LASTS
    assert not door.alive(last)
    with pytest.raises(Forbidden):
        door.sign_in("s")
    with pytest.raises(Unauthorized):
        door.sign_in("what")


async def test_without_keys_it_opens_on_this_host_alone(client: aiohttp.ClientSession) -> None:
    async with opened(keys=False) as (url, driver):
        assert await status(client, "GET", url + "me", headers={"Host": "evil.example"}) == 401
        assert await status(client, "GET", url + "me", headers={"X-Forwarded-For": "8.8.8.8"}) == 401
        async with client.get(url + "me") as answer:
            token = (await answer.json())["token"]
        act = url + "profiles/llama_0/start"
        assert await status(client, "POST", act, headers=origin(url)) == 403
        assert await status(client, "POST", act, headers={**origin(url), gate.TOKEN: token}) == 200
        assert driver.calls == [("start", "llama_0", None)]


# Requests


@asynccontextmanager
async def engine(driver: Driver, begins: bool) -> AsyncIterator[asyncio.Event]:
    """One that `begins` an answer, or does not, and never ends it. The event: a request has come that far."""
    here = asyncio.Event()

    async def chat(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        if begins:
            await response.prepare(request)
            for _ in range(3):
                await response.write(b'data: {"choices": []}\n\n')
        here.set()
        await asyncio.Event().wait()
        return response

    async with engine_of({"POST /v1/chat/completions": chat}) as driver.engine:
        yield here


@asynccontextmanager
async def cancelled(place: Any, client: aiohttp.ClientSession, begins: bool) -> AsyncIterator[Any]:
    """The answer to a chat that is cancelled at the dashboard."""
    url, driver = place
    admin = await sign_in(client, url)
    ask = {"model": "llama", "messages": [], "stream": True}
    chat = url.removesuffix("ui/") + "v1/chat/completions"
    async with engine(driver, begins) as here, client.get(url + "events") as shown:
        events = Events(shown)
        await events.next()
        key = {"Authorization": "Bearer sk-webui"}
        waiting = asyncio.create_task(client.post(chat, json=ask, headers=key).__aenter__())
        await here.wait()
        number, flight = await flying(events)
        assert (flight["source"], flight["model"]) == ("webui", "llama")
        assert flight["output"] in ((0, 1, 2) if begins else (None,))
        assert await status(client, "POST", f"{url}requests/{number}/cancel", headers=admin) == 200
        answer = await waiting
        yield answer
        answer.close()


async def gather(answer: aiohttp.ClientResponse, into: list[bytes]) -> None:
    async for piece in answer.content.iter_any():
        into.append(piece)


async def flying(events: Events) -> tuple[str, dict[str, Any]]:
    """The first request that the stream tells of."""
    while not (found := (await events.next())[1].get("flights")):
        continue
    number, flight = next(iter(found.items()))
    return number, flight


async def test_a_request_cancelled_before_its_answer_is_refused(
    place: Any, client: aiohttp.ClientSession
) -> None:
    async with cancelled(place, client, begins=False) as answer:
        assert (answer.status, answer.headers["x-should-retry"]) == (503, "false")
        assert (await answer.json())["error"]["code"] == "cancelled"


async def test_an_answer_cancelled_on_the_way_ends_with_an_error_and_a_cut(
    place: Any, client: aiohttp.ClientSession
) -> None:
    async with cancelled(place, client, begins=True) as answer:
        seen: list[bytes] = []
        with pytest.raises(aiohttp.ClientPayloadError):
            await gather(answer, seen)
    told = b"".join(seen)
    assert b'data: {"error"' in told
    assert b"cancelled by an operator" in told
    assert b"[DONE]" not in told


# What browsers are told


@pytest.mark.parametrize("path", ["", "signin", "static/app.js", "static/app.css", "me", "nowhere", "events"])
async def test_every_answer_is_under_a_strict_policy(
    place: Any, client: aiohttp.ClientSession, path: str
) -> None:
    async with client.get(place[0] + path) as answer:
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Frame-Options"] == "DENY"


async def test_the_bare_path_leads_there(place: Any, client: aiohttp.ClientSession) -> None:
    async with client.get(place[0].removesuffix("/")) as answer:
        assert (str(answer.url), answer.content_type) == (place[0], "text/html")


@pytest.mark.parametrize("file", sorted(STATIC.iterdir()), ids=lambda file: file.name)
def test_files_keep_to_the_policy_and_to_this_host(file: Path) -> None:
    text = file.read_text().replace("http://www.w3.org/2000/svg", "")  # a name, nothing that is loaded
    assert not re.search(r"https?:|//\w+\.\w", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text)
    if file.suffix == ".html":
        assert not re.search(r"\sstyle=|<style|\son\w+=|<script(?![^>]*\ssrc=)", text)


# The stream


class Events:
    """A browser's side of the stream."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self._content = answer.content

    async def next(self) -> tuple[str, dict[str, Any]]:
        name = ""
        async with asyncio.timeout(5):
            while line := (await self._content.readline()).decode():
                if line.startswith("event: "):
                    name = line[7:].strip()
                if line.startswith("data: "):
                    return name, json.loads(line[6:])["sections"]
        raise EOFError

    async def to_the_end(self) -> None:
        while True:
            await self.next()


async def test_a_whole_picture_then_what_changed(place: Any, client: aiohttp.ClientSession) -> None:
    url, driver = place
    await sign_in(client, url)
    async with client.get(url + "events") as answer:
        events = Events(answer)
        name, whole = await events.next()
        assert (name, sorted(whole)) == (
            "snapshot",
            ["daemon", "devices", "engines", "flights", "loans", "peers", "recent"],
        )
        assert whole["peers"] == {"dgx": PEER}
        (xid,) = whole["devices"]["GPU-1"]["xids"]
        assert (xid["xid"], xid["meaning"], xid["count"]) == (63, "a row is remapped", 2)
        assert whole["devices"]["GPU-1"]["quarantined"] == CARD["quarantined"]
        assert whole["engines"]["llama_0"]["planned"] == 92
        await driver.operators.start("llama_0")
        name, told = await events.next()
        while "engines" not in told:  # a clock's second turned just now
            name, told = await events.next()
        assert (name, told["engines"]["llama_0"]["in_flight"]) == ("change", 1)
        assert "flights" not in told


async def test_no_more_than_two_a_second_however_much_happens(
    place: Any, client: aiohttp.ClientSession
) -> None:
    url, driver = place
    driver.padding = 1
    await sign_in(client, url)
    async with client.get(url + "events") as answer:
        events = Events(answer)
        await events.next()
        began = asyncio.get_running_loop().time()
        for _ in range(4):
            await events.next()
        assert asyncio.get_running_loop().time() - began >= 3 * stream.PAUSE


async def test_while_nobody_looks_nothing_is_painted(
    place: Any, client: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "PAUSE", 0.01)
    url, driver = place
    await sign_in(client, url)
    async with client.get(url + "events") as answer:
        await Events(answer).next()
        await until(lambda: driver.looks > 5)
    await until(lambda: not [task for task in asyncio.all_tasks() if task.get_name() == "dashboard"])


async def test_a_browser_that_does_not_read_is_let_go_and_holds_up_nobody(
    place: Any, client: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "PAUSE", 0.01)
    monkeypatch.setattr(stream, "STUCK", 0.5)
    url, driver = place
    driver.padding = 1 << 20
    await sign_in(client, url)
    cookie = next(iter(client.cookie_jar))
    stuck = socket.create_connection((cookie["domain"] or "127.0.0.1", int(re.findall(r":(\d+)/", url)[0])))
    head = f"GET /ui/events HTTP/1.1\r\nHost: {url[7:-4]}\r\nCookie: {cookie.key}={cookie.value}\r\n\r\n"
    stuck.sendall(head.encode())
    async with client.get(url + "events", max_line_size=1 << 22, read_bufsize=1 << 22) as answer:
        reader = asyncio.create_task(gather(answer, []))
        await until(lambda: not served(stuck), 20)
        before = driver.looks
        await until(lambda: driver.looks > before + 3)
        assert not reader.done()
        reader.cancel()
    stuck.close()


def served(browser: socket.socket) -> bool:
    """Whether this process still holds the other end."""
    here = psutil.Process().net_connections("tcp")
    return any(c.raddr == browser.getsockname() and c.status == psutil.CONN_ESTABLISHED for c in here)


async def test_only_so_many_look_at_once(
    place: Any, client: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "MOST", 1)
    url, _ = place
    await sign_in(client, url)
    async with client.get(url + "events") as answer:
        await Events(answer).next()
        assert await status(client, "GET", url + "events") == 429


async def test_a_stream_ends_with_its_session(
    place: Any, client: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "PAUSE", 0.01)
    url, _ = place
    await sign_in(client, url)
    async with client.get(url + "events") as answer:
        events = Events(answer)
        await events.next()
        assert await status(client, "POST", url + "signout", headers=origin(url)) == 200
        with pytest.raises((EOFError, aiohttp.ClientError)):
            await events.to_the_end()


async def test_a_log_is_shown_and_followed(place: Any, client: aiohttp.ClientSession, tmp_path: Path) -> None:
    url, driver = place
    driver.log = tmp_path / "llama_0.log"
    driver.log.write_text("\x1b[1mone\x1b[0m\ntwo\n")
    await sign_in(client, url)
    async with client.get(url + "logs/llama_0") as answer:
        assert await lines(answer) == ["one", "two"]
        with driver.log.open("a") as log:
            log.write("three\n")
        assert await lines(answer) == ["three"]
    assert await status(client, "GET", url + "logs/..%2Fllmd") == 404


async def lines(answer: aiohttp.ClientResponse) -> list[str]:
    async with asyncio.timeout(5):
        while not (line := await answer.content.readline()).startswith(b"data: "):
            assert line
    found: list[str] = json.loads(line[6:])
    return found


async def test_a_reload_is_shown_and_done_by_admins_alone(place: Any, client: aiohttp.ClientSession) -> None:
    url, driver = place
    headers = await sign_in(client, url, "wall")
    assert await status(client, "GET", url + "reload") == 403
    assert await status(client, "POST", url + "reload", headers=headers) == 403
    assert driver.calls == []
    headers = await sign_in(client, url, "ann")
    async with client.get(url + "reload") as answer:
        assert [change["text"] for change in (await answer.json())["changes"]] == ["keys.bob added"]
    assert await status(client, "POST", url + "reload", headers=headers) == 200
    assert driver.calls == [("reload", "", True), ("reload", "", False)]


def test_a_session_ends_with_its_key_and_with_its_scope() -> None:
    configs = [configured(keys={"ann": Key(env="X", scope="admin")})]
    ring = Keyring({digest("sk"): "ann"})
    door = Gate(lambda: configs[-1], ring)
    session = door.sign_in("sk")
    assert door.may_act(session)
    configs.append(configured(keys={"ann": Key(env="X", scope="read")}))
    assert door.alive(session)
    assert not door.may_act(session)
    configs.append(configured(keys={"ann": Key(env="X")}))
    assert not door.alive(session)
    del configs[1:]
    ring.change({digest("another"): "ann"}, open=False)
    assert not door.alive(session)
    ring.change({}, open=True)
    assert not door.alive(session)


def test_who_came_in_without_a_key_is_out_once_there_are_keys() -> None:
    configs, ring = [configured()], Keyring({}, open=True)
    door = Gate(lambda: configs[-1], ring)
    session = door._begin("default")
    assert door.alive(session)
    configs.append(configured(keys={"ann": Key(env="X", scope="admin")}))
    ring.change({digest("sk"): "ann"}, open=False)
    assert not door.alive(session)
