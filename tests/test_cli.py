"""The command line against a pretended daemon on a real Unix socket."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from click.testing import CliRunner, Result

from supervisor.cli import main, tables
from supervisor.core.spans import span

GIB = 1 << 30
STATUS = {
    "daemon": {"version": "0.1.0", "pid": 7, "uptime_s": 90, "listening": ["http://127.0.0.1:8000"]},
    "devices": [
        {
            "device": "GPU-0",
            "index": 0,
            "name": "Card",
            "total": 24 * GIB,
            "used": 14 * GIB,
            "free": 10 * GIB,
            "others": 4 * GIB,
            "ours": {"llama_0": 16 * GIB},
            "foreign": [{"pid": 99, "name": "python", "user": "ann", "used": None}],
        }
    ],
    "engines": [
        {
            "profile": "llama_0",
            "model": "llama",
            "state": "starting",
            "stage": "loading weights",
            "percent": 40,
        }
    ],
    "strays": [{"profile": "old", "pid": 5, "reason": "no key"}],
}


@asynccontextmanager
async def daemon(*routes: web.RouteDef) -> AsyncIterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="llmd-", dir="/tmp"))
    app = web.Application()
    app.add_routes(routes)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(folder / "s")).start()
    yield folder / "s"
    await runner.cleanup()
    shutil.rmtree(folder)


@pytest.fixture
async def socket() -> AsyncIterator[Path]:
    routes = (
        web.get("/status", _answers(STATUS)),
        web.post("/profiles/llama_0/start", _answers({"message": "ready"})),
        web.post("/profiles/bad/start", _answers(REFUSAL, 502)),
        web.post("/profiles/llama_0/stop", _stop),
        web.get("/profiles/llama_0/logs", _log),
        web.post("/gpus/1/release", _answers({"message": "GPU 1 is released"})),
    )
    async with daemon(*routes) as path:
        yield path


class Patient:
    """An engine that is ready once it was looked at in each stage, between which the daemon stumbles."""

    def __init__(self) -> None:
        self.asked, self.ready = 0, asyncio.Event()
        stages = [{"state": "reserved"}, {"state": "starting", "stage": "loading weights", "percent": 40}]
        reserved, loading = ({"engines": [{"profile": "patient_0"} | stage]} for stage in stages)
        self.looks = [_answers(reserved), _answers(BUG, 500), _answers(loading)]

    async def start(self, request: web.Request) -> web.Response:
        await self.ready.wait()
        return web.json_response({"message": "ready at last"})

    async def status(self, request: web.Request) -> web.Response:
        self.asked += 1
        if self.asked > len(self.looks):
            self.ready.set()
        return await self.looks[min(self.asked, len(self.looks)) - 1](request)


BUG = {"error": {"message": "internal error of llmd", "code": "internal_error"}}
REFUSAL = {"error": {"message": "it died", "code": "engine_failed", "log": ["CUDA out of memory"]}}


def _answers(value: object, status: int = 200) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(request: web.Request) -> web.Response:
        return web.json_response(value, status=status)

    return answer


async def _stop(request: web.Request) -> web.Response:
    return web.json_response({"message": request.query_string})


async def _log(request: web.Request) -> web.Response:
    return web.Response(text=f"{request.query['lines']} lines\n")


async def llmd(*args: object) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, main, [str(arg) for arg in args])


async def test_status_fits_80_columns_without_colours(socket: Path) -> None:
    result = await llmd("--socket", socket, "status")
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    for words in (
        "llama_0 16.00 GiB",
        "4.00 GiB free",
        "others 4.00 GiB: python 99",
        "starting 40 %",
        "stray: pid 5",
    ):
        assert words in result.stdout


async def test_status_for_scripts(socket: Path) -> None:
    result = await llmd("--socket", socket, "status", "--json")
    assert json.loads(result.stdout) == STATUS


async def test_a_quarantined_gpu_is_released(socket: Path) -> None:
    result = await llmd("--socket", socket, "release", 1)
    assert (result.exit_code, result.stdout) == (0, "GPU 1 is released\n")


async def test_start_tells_that_it_is_ready(socket: Path) -> None:
    result = await llmd("--socket", socket, "start", "llama_0")
    assert (result.exit_code, result.stdout) == (0, "ready\n")


async def test_a_start_outlives_a_status_that_fails() -> None:
    """And tells what it saw before and after."""
    patient = Patient()
    routes = web.get("/status", patient.status), web.post("/profiles/patient_0/start", patient.start)
    async with daemon(*routes) as socket:
        result = await llmd("--socket", socket, "start", "patient_0")
    assert (result.exit_code, result.stdout) == (0, "ready at last\n")
    assert result.stderr == "patient_0: reserved\npatient_0: 40 % loading weights\n"


async def test_refused_start_shows_reason_and_log(socket: Path) -> None:
    result = await llmd("--socket", socket, "start", "bad")
    assert result.exit_code == 1
    assert "it died\n  CUDA out of memory\n" in result.stderr
    result = await llmd("--socket", socket, "start", "bad", "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (1, REFUSAL)


async def test_stop_now(socket: Path) -> None:
    assert (await llmd("--socket", socket, "stop", "llama_0", "--now")).stdout == "now=1\n"


async def test_logs(socket: Path) -> None:
    assert (await llmd("--socket", socket, "logs", "llama_0", "-n", 3)).stdout == "3 lines\n"


async def test_no_daemon(tmp_path: Path) -> None:
    result = await llmd("--socket", tmp_path / "s", "status")
    assert result.exit_code == 3
    assert result.stderr.startswith(f"nobody answers at {tmp_path / 's'}; start it with")


async def test_usage() -> None:
    assert (await llmd("start")).exit_code == 2


async def test_check(tmp_path: Path) -> None:
    (tmp_path / "profiles").mkdir()
    file = tmp_path / "llmd.toml"
    file.write_text("")
    good = await llmd("--config", file, "check")
    assert (good.exit_code, good.stdout) == (0, f"{file}: good, 0 profiles\n")
    file.write_text("\n[sever]\n")
    bad = await llmd("--config", file, "check")
    assert bad.exit_code == 1
    assert f"{file}:2: unknown key sever; write server" in bad.stderr


def test_the_list_of_commands_tells_each_in_a_whole_line() -> None:
    told = CliRunner().invoke(main, ["--help"], terminal_width=80).output
    listed = told.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in listed] == sorted(main.commands)
    assert [line for line in listed if line.endswith("...")] == []


def test_spans() -> None:
    assert [span(None), span(0), span(5400), span(90061)] == ["-", "0s", "1h30m", "1d1h"]


def test_an_old_refusal_has_its_age_and_no_name_twice() -> None:
    engine = {
        "profile": "llama_0",
        "available": False,
        "reason": "llama_0 needs 18.00 GiB",
        "reason_age_s": 90.0,
    }
    (line,) = tables.troubles({"engines": [engine]})
    assert line.plain == "llama_0, 1m30s ago: needs 18.00 GiB"


def test_the_last_lines_of_an_engine_that_failed_stand_under_its_failure() -> None:
    failed = {
        "profile": "llama_0",
        "failure": "transient: it ended",
        "failure_log": ["a", "b", "c", "d\x1b[31m"],
    }
    status = {"engines": [failed]}
    shown = [text.plain for text in tables.troubles(status, log_lines=3)]
    assert shown == ["llama_0: transient: it ended", "  | b", "  | c", "  | d?[31m"]
    assert len(tables.troubles(status)) == 1, "where there is room for one line"
