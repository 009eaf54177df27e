"""Makes the pictures in this folder, from a daemon that runs on stand-in cards and engines: `make pictures`.

Two cards, all that can be on them at once (engines ready, loading, asleep and failed, a loan, another program, a
peer), and people who ask. Chromium (Debian's) draws; what the command line prints is drawn from its own words.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import openai
from playwright.sync_api import Browser, Page, sync_playwright
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

from supervisor.cli.screen import Screen
from supervisor.core.devices import GIB
from tests.daemon import Llmd, told, until
from tests.standin.nvml import FakeGpus, build
from tests.standin.peer import serving

HERE = Path(__file__).parent
ADMIN = "sk-admin"
PEOPLE = {"webui": "sk-webui", "n8n": "sk-n8n"}
LOOK = 100.0
"""Seconds of the scene before it is drawn: the lines on the cards have a point each 10 s."""

SHOTS = (("dark", 1440, "dark", 1500), ("light", 1440, "light", 4800), ("phone", 390, "light", 2400))
"""Name, width, theme and the height that is kept: one of them shows all there is."""

NO_FONT = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
"""Nothing is fetched from elsewhere: this host's own monospaced font."""


def of(hours: int) -> str:
    return (datetime.now(UTC) + timedelta(hours=hours)).strftime("%H:00")


def profiles() -> dict[str, dict[str, Any]]:
    talks = {"STANDIN_TOKENS_PER_SECOND": "38", "STANDIN_WEIGHTS": "8"}
    loads = {"STANDIN_LOAD_SECONDS": "160", "STANDIN_WEIGHTS": "6"}
    fails = {"STANDIN_CRASH_AT": "Available KV", "STANDIN_WEIGHTS": "1"}
    card = {"weights": "tiny", "max_model_len": 32768}
    return {
        "llama_0": card
        | {"model": "llama", "gpus": [0], "vram": "14 GiB", "max_concurrent": 3, "env": talks},
        "llama_1": card | {"model": "llama", "gpus": [1], "vram": "14 GiB", "env": talks},
        "embed_0": card
        | {"model": "nomic-embed", "task": "embed", "gpus": [0], "vram": "3 GiB", "pin": True},
        "coder_1": card | {"model": "qwen-coder", "gpus": [1], "vram": "12 GiB", "sleep": True, "env": talks},
        "mistral_1": card | {"model": "mistral-small", "gpus": [1], "vram": "8 GiB", "env": loads},
        "gemma_0": card | {"model": "gemma", "gpus": [0], "vram": "3 GiB", "env": fails},
        "qwen_72b_dual": card | {"model": "qwen-72b", "gpus": [0, 1], "vram": "22 GiB"},
    }


@contextmanager
def scene() -> Iterator[tuple[Llmd, FakeGpus]]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        gpus = FakeGpus(folder / "nvml", count=2, total=24 * GIB)
        for index in range(2):
            gpus.card(index, name="NVIDIA GeForce RTX 3090")
        blender = stack.enter_context(running(folder / "blender"))
        gpus.foreign(blender, 1, 3 * GIB // 2)
        dgx = stack.enter_context(serving("llama-70b", "qwen-235b"))
        llmd = daemon(gpus.env(build(folder)), dgx.url)
        stack.callback(llmd.close)
        yield llmd.start(), gpus


def daemon(env: dict[str, str], peer: str) -> Llmd:
    env |= {"ANN": ADMIN} | {name.upper(): key for name, key in PEOPLE.items()}
    priority = {"webui": "interactive", "n8n": "batch"}
    keys: dict[str, Any] = {name: {"env": name.upper(), "priority": priority[name]} for name in PEOPLE}
    keys["ann"] = {"env": "ANN", "scope": "admin"}
    modes = {
        "day": {"start": of(-8), "timezone": "UTC"},
        "night": {"start": of(5), "timezone": "UTC", "profiles": ["qwen_72b_dual"]},
    }
    return Llmd(profiles(), env=env, keys=keys, modes=modes, peers={"dgx": {"url": peer}})


@contextmanager
def running(program: Path) -> Iterator[int]:
    """Another program, by its name."""
    program.symlink_to(shutil.which("sleep") or "/bin/sleep")
    process = subprocess.Popen([program, "3600"])
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def ask(llmd: Llmd, source: str, model: str, tokens: int) -> None:
    """One chat after another, until the daemon ends."""
    messages: Any = [{"role": "user", "content": f"Tell {source} a story " * 40}]
    with openai.OpenAI(base_url=f"{llmd.url}/v1", api_key=PEOPLE[source], max_retries=0) as api:
        while True:
            try:
                create = api.chat.completions.create
                with create(model=model, messages=messages, max_tokens=tokens, stream=True) as answer:
                    for _ in answer:
                        pass
            except openai.APIError:
                return


def live(llmd: Llmd, gpus: FakeGpus) -> None:
    """Bring the scene to what is drawn."""
    for profile in ("embed_0", "gemma_0", "coder_1"):
        llmd.run("start", profile)
    for source, model, tokens in (("webui", "llama", 1200), ("webui", "llama", 700), ("n8n", "llama", 400),
                                  ("n8n", "qwen-coder", 900), ("webui", "qwen-coder", 150)):  # fmt: skip
        threading.Thread(target=ask, args=(llmd, source, model, tokens), daemon=True).start()
    llmd.run("lease", "2GiB", "--gpu", "0", "--ttl", "2h", "--as", "whisper")
    until(lambda: llmd.engine("llama_0")["state"] == "ready", 60, llmd.text)
    start = partial(llmd.run, "start", "mistral_1", timeout=600)
    threading.Thread(target=start, daemon=True).start()
    ends, second = time.monotonic() + LOOK, 0
    while time.monotonic() < ends:
        for index, busy in enumerate((58 + second * 7 % 38, 22 + second * 11 % 45)):
            heat = {"temperature": 52 + busy // 4, "power": 1000 * (120 + 2 * busy)}
            gpus.card(index, utilization=busy, **heat)
        time.sleep(1)
        second += 1


def dashboard(browser: Browser, llmd: Llmd) -> None:
    context = browser.new_context(viewport={"width": 1440, "height": 1000})
    page = context.new_page()
    page.goto(f"{llmd.url}/ui/signin")
    page.get_by_label("API key").fill(ADMIN)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_selector("#decisions li")
    page.wait_for_selector("#flights tr")
    page.get_by_role("button", name="Plan night").click()
    page.wait_for_selector("#plan-buttons:visible")
    for name, size, theme, height in SHOTS:
        page.set_viewport_size({"width": size, "height": 1000})
        page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
        page.evaluate("document.activeElement.blur(); window.scrollTo({top: 0, behavior: 'instant'})")
        page.wait_for_timeout(1500)
        page.screenshot(
            path=HERE / f"dashboard-{name}.png",
            full_page=True,
            clip={"x": 0, "y": 0, "width": size, "height": height},
        )
    context.close()


def terminal(browser: Browser, llmd: Llmd) -> None:
    env = llmd.env | {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "80"}
    words = subprocess.run(llmd.command("status"), env=env, capture_output=True, text=True, check=True).stdout
    draw(browser, "status", Text.from_ansi(words), 80)
    draw(browser, "top", watched(llmd), 80, height=42)


def watched(llmd: Llmd) -> Screen:
    screen = Screen(llmd.status(), cursor="llama_0")
    screen.note(json.loads(told(llmd.home / "admin.sock", "/requests"))["requests"])
    return screen


def draw(browser: Browser, name: str, shown: Any, width: int, height: int = 25) -> None:
    """As a terminal of this size would."""
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=width, height=height, file=nowhere, color_system="truecolor")
        console.print(shown)
        svg = console.export_svg(title=f"llmd {name}", code_format=NO_FONT)
    page: Page = browser.new_page(viewport={"width": 1000, "height": 1000})
    page.set_content(f"<body style='margin:0'><div style='width:1000px'>{svg}</div>")
    page.locator("svg").first.screenshot(path=HERE / f"{name}.png", omit_background=True)
    page.close()


def main() -> None:
    flags = ["--no-sandbox"] if os.getuid() == 0 else []
    with scene() as (llmd, gpus), sync_playwright() as playwright:
        live(llmd, gpus)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        dashboard(browser, llmd)
        terminal(browser, llmd)
        browser.close()


if __name__ == "__main__":
    main()
