"""The dashboard in a real Chromium, on a whole daemon with stand-in engines and cards: what a person clicks and sees."""

from __future__ import annotations

import datetime
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from supervisor.core.devices import GIB
from tests.daemon import KEY, QUICK, Llmd, until
from tests.standin.nvml import FakeGpus, build

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this host (Debian: apt install chromium)")

LOOKER, ADMIN = "sk-looker", "sk-admin"
PATIENCE = 20_000
"""Milliseconds that the page is given to show something."""

CARD: dict[str, Any] = {"weights": "tiny", "max_model_len": 4096}
SLOW = {"STANDIN_LOAD_SECONDS": "4", "STANDIN_WEIGHTS": "0.01"}
TALKS = {"STANDIN_TOKENS_PER_SECOND": "20", "STANDIN_WEIGHTS": "0.01"}


def of(hours: int) -> str:
    """A time of day some hours from now, so that no test runs across a change."""
    return (datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=hours)).strftime("%H:%M")


@pytest.fixture(scope="module")
def gpus(tmp_path_factory: pytest.TempPathFactory) -> FakeGpus:
    made = FakeGpus(tmp_path_factory.mktemp("nvml"), count=2, total=24 * GIB)
    for index in range(2):
        made.card(index, utilization=37 + index, temperature=61, power=284_000)
    return made


@pytest.fixture(scope="module")
def llmd(gpus: FakeGpus, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llmd]:
    profiles = {
        "llama_0": CARD | {"model": "llama", "gpus": [0], "vram": "12 GiB", "sleep": True, "env": TALKS},
        "llama_1": CARD | {"model": "llama", "gpus": [1], "vram": "12 GiB", "env": SLOW},
        "qwen_coder_1": CARD
        | {"model": "qwen-coder", "gpus": [1], "vram": "5 GiB", "env": {"STANDIN_CRASH_AT": "Available KV"}},
        "qwen_72b_dual": CARD | {"model": "qwen-72b", "gpus": [0, 1], "vram": "20 GiB"},
    }
    modes = {
        "day": {"start": of(-6), "timezone": "UTC"},
        "night": {"start": of(6), "timezone": "UTC", "profiles": ["qwen_72b_dual"], "drain": "2s"},
    }
    keys = {
        "ann": {"env": "LLMD_ADMIN_KEY", "scope": "admin"},
        "wall": {"env": "LLMD_LOOKER_KEY", "scope": "read"},
    }
    env = gpus.env(build(tmp_path_factory.mktemp("library"))) | {
        "LLMD_ADMIN_KEY": ADMIN,
        "LLMD_LOOKER_KEY": LOOKER,
    }
    made = Llmd(profiles, env=env, keys=keys, modes=modes, **QUICK)
    try:
        yield made.start()
    finally:
        made.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        flags = ["--no-sandbox"] if os.getuid() == 0 else []
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A window of its own; whatever its console complains of fails the test."""
    context = browser.new_context(viewport={"width": 1440, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    yield page
    context.close()
    assert [text for text in complaints if "401" not in text] == []  # before signing in


def sign_in(page: Page, llmd: Llmd, key: str = ADMIN) -> None:
    page.goto(f"{llmd.url}/ui/")
    page.wait_for_url("**/ui/signin")
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/ui/")
    expect(page.locator("#line")).to_have_text("live")


def row(page: Page, profile: str) -> Any:
    return page.locator(f"[data-profile={profile}]")


def state(page: Page, profile: str) -> Any:
    return row(page, profile).locator(".state")


class Chat(threading.Thread):
    """One streamed chat, as a client has it; `error` is how it ended, if badly."""

    def __init__(self, llmd: Llmd, tokens: int = 3000) -> None:
        super().__init__(daemon=True)
        self.api = openai.OpenAI(base_url=f"{llmd.url}/v1", api_key=KEY, max_retries=0, timeout=60)
        self.tokens, self.error, self.words = tokens, "", 0
        self.start()

    def run(self) -> None:
        messages: Any = [{"role": "user", "content": "Tell me a long story"}]
        try:
            with self.api.chat.completions.create(
                model="llama_0", messages=messages, max_tokens=self.tokens, stream=True
            ) as stream:
                for _ in stream:
                    self.words += 1
        except openai.APIError as error:
            self.error = str(error)
        finally:
            self.api.close()


def shoot(page: Page, name: str) -> None:
    """Keep a picture for people, where one is wanted."""
    if folder := os.environ.get("LLMD_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def test_a_wrong_key_and_one_without_the_scope_are_told_so(page: Page, llmd: Llmd) -> None:
    for key, says in (("sk-wrong", "not known"), (KEY, "scope =")):
        page.goto(f"{llmd.url}/ui/signin")
        page.get_by_label("API key").fill(key)
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_contain_text(says)


def test_signing_in_shows_the_cards_and_whose_memory_is_whose(page: Page, llmd: Llmd, gpus: FakeGpus) -> None:
    gpus.foreign(os.getpid(), 1, 3 * GIB)
    sign_in(page, llmd)
    first, second = page.locator(".gpu").nth(0), page.locator(".gpu").nth(1)
    expect(first).to_contain_text("GPU 0 · NVIDIA GeForce RTX 4090")
    for value in ("37 %", "61 °C", "284 W"):
        expect(first).to_contain_text(value)
    expect(second.locator(".legend")).to_contain_text(f"(PID {os.getpid()})3.0 GiB")
    gpus.release(os.getpid())
    expect(second.locator(".legend")).not_to_contain_text("PID")
