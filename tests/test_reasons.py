"""`llmd why` as a person and a script get it: the screen for each history, and the command against a real daemon."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from datetime import time
from io import StringIO
from pathlib import Path
from typing import Any

import openai
import pytest
from rich.console import Console

from supervisor.cli import itinerary, reasons, tables
from supervisor.config import Mode
from supervisor.core import events
from supervisor.core.devices import GIB, Holder
from supervisor.core.orders import Note
from supervisor.core.status import describe
from supervisor.core.why import explain
from tests.core.world import World
from tests.core.world import config as core_config
from tests.core.world import profile as core_profile
from tests.daemon import KEY, QUICK, Llmd, profile, until
from tests.standin.nvml import FakeGpus, build

LLAMA = core_profile("llama_0", 0)


def screen(world: World, name: str = "llama_0") -> str:
    return printed(lambda console: reasons.show(explain(world.fleet, name), console))


def printed(show: Callable[[Console], None]) -> str:
    console = Console(file=StringIO(), width=80, highlight=False)
    show(console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= 80
    assert len(text.splitlines()) <= 24, "one screen"
    return str(text)


def flat(text: str) -> str:
    return " ".join(text.split())


def test_the_screen_of_a_model_that_foreign_memory_keeps_out() -> None:
    world = World(core_config(LLAMA))
    world.foreign[0] = (Holder(4242, 6 * GIB, "blender", "alice"),)
    world.read()
    told = flat(screen(world))
    for words in (
        "llama_0 serves llama: cold",
        "it is not loaded: nobody has asked for it yet",
        "it needs 20.00 GiB of GPU 0, 17.75 GiB is available",
        "a request now would not be served",
        "6.00 GiB PID 4242 blender (alice)",
    ):
        assert words in told


def test_the_screen_of_a_model_that_would_take_an_idle_ones_place() -> None:
    world = World(core_config(LLAMA, core_profile("coder_0", 0)))
    world.up("coder_0")
    world.wait(90)
    told = flat(screen(world))
    assert "a request now would be served in about 1m, once coder_0 has stopped" in told
    assert "20.00 GiB coder_0 (ready, idle for 1m30s)" in told


@pytest.mark.parametrize(
    ("names", "asleep", "said"),
    [
        (["a"], False, "a has stopped"),
        (["a"], True, "a sleeps"),
        (["a", "b"], False, "a and b have stopped"),
        (["a", "b"], True, "a and b sleep or have stopped"),
    ],
)
def test_who_makes_room_is_said_as_people_say_it(names: list[str], asleep: bool, said: str) -> None:
    profile = {"serves_in": 60.0, "refused_now": False, "makes_room": names, "by_sleeping": asleep}
    assert reasons._outlook(profile, "it").endswith(f"once {said}")


def test_the_screen_of_a_ready_one_tells_what_was_learned() -> None:
    world = World(core_config(LLAMA))
    world.send(events.StartAsked("t", "llama_0"))
    world.wait(45)
    world.send(events.Told(world.incarnation("llama_0"), version="0.32.0"))
    world.ready("llama_0")
    told = flat(screen(world))
    assert "0 of 4 in flight, 0 waiting, idle for 0s" in told
    assert "a request now would be served at once" in told
    assert "learned with vLLM 0.32.0: starts in 45s, takes 20.00 GiB of GPU 0" in told


def test_the_screen_of_one_that_failed_has_its_log_in_80_columns() -> None:
    world = World(core_config(LLAMA))
    world.send(events.StartAsked("t", "llama_0"))
    world.crash(
        "llama_0", *(f"line {number} " + "x" * 200 for number in range(60)), "RuntimeError: [red]no[/red]"
    )
    told = screen(world)
    assert "it failed last (transient): the engine exited with status 1 while loading" in flat(told)
    assert "| RuntimeError: [red]no[/red]" in told


def test_a_model_of_several_profiles_is_judged_as_one() -> None:
    world = World(core_config(LLAMA, core_profile("llama_1", 1)))
    world.up("llama_1")
    world.foreign[0] = (Holder(4242, 6 * GIB, "blender", "alice"),)
    world.read()
    told = flat(screen(world, "llama"))
    assert "a request for llama_0 would not be served: nothing that is foreseen would help" in told
    assert "a request for llama would be served at once, by llama_1" in told


def test_a_model_that_the_mode_does_not_have_is_not_promised() -> None:
    day, night = Mode(start=time(6)), Mode(start=time(2), profiles=("big_0",))
    world = World(core_config(LLAMA, core_profile("big_0", 0), modes={"day": day, "night": night}))
    world.send(events.ModeChanged("day", "night", "02:00", next_in=22020.0))
    told = flat(screen(world, "big"))
    assert "a request now would be refused; one in about 6h8m could be served" in told


def test_a_loan_that_nobody_claimed_is_said_to_be_among_the_programs() -> None:
    world = World(core_config(LLAMA))
    world.send(events.LoanAsked("loan", "comfy", (0,), 2 * GIB, 600))
    world.foreign[0] = (Holder(4242, 4 * GIB, "python", "alice"),)
    world.read()
    told = flat(screen(world))
    assert "2.00 GiB loan to comfy (its user is told among the programs, if it is used)" in told
    (note,) = [order for order in world.log if isinstance(order, Note) and order.event == "foreign_grew"]
    assert "from 0.00 GiB to 2.00 GiB, beside 2.00 GiB lent to comfy: PID 4242 python" in note.message
    status = describe(world.fleet, {}, (), Path, world.now)
    shown = flat(printed(lambda console: tables.show(status, console)))
    assert "others 2.00 GiB beside what is lent: python 4242 (alice) 4.00 GiB" in shown


def test_the_history_is_a_table_in_80_columns() -> None:
    entries = [
        {"at": "2026-11-23T10:00:00.000Z", "profile": "llama_0", "message": "llama_0 drains " + "y" * 90},
        {"at": "2026-11-23T10:00:01.000Z", "profile": None, "model": "llama", "message": "[b]full[/b]"},
        {"at": "2026-11-23T10:00:02.000Z", "profile": None, "message": "mode night begins", "level": "ERROR"},
    ]
    told = printed(lambda console: reasons.show_history(entries, console))
    assert told.startswith("TIME")
    assert "[b]full[/b]" in told
    assert "mode night begins" in told
    assert printed(lambda console: reasons.show_history([], console)) == "nothing was decided in that time\n"


# Against a real daemon


@pytest.fixture
def llmd(installed: list[Llmd]) -> Llmd:
    installed.append(
        Llmd({"tiny_0": profile("tiny"), "bad_0": profile("bad", env={"STANDIN_OOM": "1"})}, **QUICK)
    )
    return installed[0].start()


def why(llmd: Llmd, name: str) -> dict[str, Any]:
    (found,) = json.loads(llmd.run("why", name, "--json").stdout)["profiles"]
    return dict(found)


def history(llmd: Llmd, *words: str) -> list[dict[str, Any]]:
    return list(json.loads(llmd.run("why", "--history", "--json", *words).stdout)["decisions"])


def chat(llmd: Llmd, text: str = "Hello") -> int:
    """Prompt tokens as the engine counted them."""
    with openai.OpenAI(base_url=f"{llmd.url}/v1", api_key=KEY, max_retries=0, timeout=60) as api:
        messages: Any = [{"role": "user", "content": text}]
        reply = api.chat.completions.create(model="tiny", messages=messages, max_tokens=2)
    assert reply.usage
    return reply.usage.prompt_tokens


def test_why_before_and_after_a_start(llmd: Llmd) -> None:
    before = why(llmd, "tiny")
    assert (before["profile"], before["loaded"], before["learned"]["start"]) == ("tiny_0", False, None)
    assert llmd.run("start", "tiny_0").returncode == 0
    until(lambda: bool(why(llmd, "tiny_0")["learned"]["peak"]), 10, llmd.text)
    after = why(llmd, "tiny_0")
    assert (after["loaded"], after["serves_in"], after["learned"]["version"]) == (True, 0, "0.32.0")
    assert 0.2 < after["learned"]["start"] < 30
    shown = llmd.run("why", "tiny")
    assert shown.returncode == 0
    assert "a request now would be served at once" in flat(shown.stdout)
    assert max(map(len, shown.stdout.splitlines())) <= 80


def test_why_of_one_that_failed_has_class_and_log(llmd: Llmd) -> None:
    assert llmd.run("start", "bad_0").returncode == 1
    failure = why(llmd, "bad")["failure"]
    assert failure["kind"] == "out of memory"
    assert any("out of memory" in line for line in failure["log"])


def test_an_unknown_name_is_told_the_names(llmd: Llmd) -> None:
    for words in (("why", "gpt-9"), ("why", "gpt-9", "--history")):
        refused = llmd.run(*words)
        assert refused.returncode == 1
        assert "there are: bad, tiny, bad_0, tiny_0" in refused.stderr
    told = json.loads(llmd.run("why", "gpt-9", "--json").stdout)
    assert told["error"]["code"] == "model_not_found"


def test_no_daemon_and_no_name(installed: list[Llmd]) -> None:
    installed.append(Llmd({"tiny_0": profile("tiny")}))
    assert installed[0].run("why", "tiny").returncode == 3
    assert installed[0].run("why", "--history").returncode == 3
    assert installed[0].run("why").returncode == 2


def test_history_outlives_the_daemon(llmd: Llmd) -> None:
    assert llmd.run("start", "tiny_0").returncode == 0
    assert llmd.run("stop", "tiny_0").returncode == 0
    llmd.kill()
    llmd.start()
    told = [entry["event"] for entry in history(llmd, "tiny")]
    assert told == ["engine_starting", "engine_ready", "engine_draining", "engine_stopped"]
    assert [entry["event"] for entry in history(llmd, "tiny", "-n", "1")] == ["engine_stopped"]
    assert history(llmd, "bad") == []
    assert len(history(llmd, "--since", "1h")) == 4
    assert history(llmd, "--since", "0.001s") == []
    start = history(llmd, "tiny")[0]
    assert start["reserved"] == {"host": 32 << 20}
    shown = llmd.run("why", "--history", "tiny")
    assert "tiny_0 is ready" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80


def test_what_was_learned_outlives_the_daemon(llmd: Llmd) -> None:
    for number in range(8):
        chat(llmd, "word " * (5 + 10 * number))
    until(lambda: bool(why(llmd, "tiny")["learned"]["peak"]), 10, llmd.text)
    before = why(llmd, "tiny")["learned"]
    assert before["requests_counted"] == 8
    assert llmd.stop() == 0
    llmd.start()
    after = why(llmd, "tiny")["learned"]
    assert after["start"] == before["start"]
    assert after["version"] == "0.32.0"
    assert after["requests_counted"] == 8
    assert llmd.engine("tiny_0")["eta_s"] == before["start"]


def test_a_version_that_drifts_is_warned_of_in_log_and_history(llmd: Llmd) -> None:
    assert llmd.run("start", "tiny_0").returncode == 0
    until(lambda: bool(why(llmd, "tiny")["learned"]["peak"]), 10, llmd.text)
    assert llmd.stop() == 0
    rows = sqlite3.connect(llmd.home / "state" / "learned.db")
    (figures,) = rows.execute("SELECT figures FROM learned WHERE profile = 'tiny_0'").fetchone()
    earlier = json.loads(figures) | {"version": "0.31.0", "start": 100.0}
    rows.execute("UPDATE learned SET version = '0.31.0', figures = ?", (json.dumps(earlier),))
    rows.commit()
    rows.close()
    llmd.start()
    assert llmd.run("start", "tiny_0").returncode == 0
    until(lambda: any(entry["event"] == "drift" for entry in history(llmd, "tiny")), 10, llmd.text)
    (note,) = [entry for entry in history(llmd, "tiny") if entry["event"] == "drift"]
    assert note["level"] == "WARNING"
    assert note["message"].startswith("tiny_0 differs under vLLM 0.32.0 from 0.31.0: it starts in ")
    assert note["message"].endswith(" s, it took 100 s")


@pytest.mark.parametrize("name", ["learned.db", "decisions.jsonl"])
def test_a_disk_that_fails_is_said_and_serving_goes_on(installed: list[Llmd], name: str) -> None:
    llmd = Llmd({"tiny_0": profile("tiny")}, **QUICK)
    installed.append(llmd)
    (llmd.home / "state").mkdir()
    (llmd.home / "state" / name).symlink_to("/dev/full")
    llmd.start()
    assert chat(llmd) > 0
    until(lambda: bool(llmd.status()["disk_trouble"]), 10, llmd.text)
    assert name in llmd.status()["disk_trouble"][0]
    assert chat(llmd) > 0


def test_junk_in_their_place_is_no_trouble(installed: list[Llmd]) -> None:
    llmd = Llmd({"tiny_0": profile("tiny")}, **QUICK)
    installed.append(llmd)
    (llmd.home / "state").mkdir()
    for name in ("learned.db", "decisions.jsonl", "decisions.jsonl.1"):
        (llmd.home / "state" / name).write_bytes(os.urandom(5000))
    llmd.start()
    assert chat(llmd) > 0
    assert llmd.status()["disk_trouble"] == []
    assert "figures_set_aside" in llmd.text()
    assert [entry["event"] for entry in history(llmd)] == ["engine_starting", "engine_ready"]


def test_who_holds_a_card_is_named(tmp_path: Path, installed: list[Llmd]) -> None:
    gpus = FakeGpus(tmp_path / "nvml", count=1, total=24 * GIB)
    gpus.foreign(os.getpid(), 0, 4 * GIB)
    card: dict[str, Any] = {"weights": "tiny", "max_model_len": 512, "gpus": [0]}
    profiles = {
        "llama_0": card | {"model": "llama", "vram": "22 GiB"},
        "coder_0": card | {"model": "coder", "vram": "8 GiB"},
    }
    llmd = Llmd(profiles, env=gpus.env(build(tmp_path)), **QUICK)
    installed.append(llmd)
    llmd.start()
    assert llmd.run("start", "coder_0").returncode == 0
    answer = json.loads(llmd.run("why", "llama", "--json").stdout)
    (device,) = answer["devices"]
    assert [(holder["profile"], holder["state"]) for holder in device["ours"]] == [("coder_0", "ready")]
    assert [(process["pid"], process["used"]) for process in device["foreign"]] == [(os.getpid(), 4 * GIB)]
    told = flat(llmd.run("why", "llama").stdout)
    assert f"4.00 GiB PID {os.getpid()}" in told
    assert "it needs 22.00 GiB of GPU 0" in told
    assert "a request now would not be served" in told


def test_a_model_that_is_called_like_a_command_to_the_terminal_is_not_obeyed() -> None:
    asked = {"request": "r1", "model": "m\x1b[2J", "source": "webui", "tokens": 3, "max_tokens": 0, "hops": 0}
    console = Console(width=80, color_system=None)
    with console.capture() as shown:
        itinerary.show(asked | {"tries": [], "outcome": None}, console)
    assert shown.get().split()[:4] == ["r1", "asks", "for", "m?[2J"]
