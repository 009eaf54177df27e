"""The dashboard in a real Chromium, on a whole daemon with stand-in engines and cards: what a person clicks and sees."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from supervisor.core.devices import GIB
from tests.daemon import KEY, QUICK, Llmd, until
from tests.standin.nvml import FakeGpus, build
from tests.standin.peer import Other, serving

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on this host (Debian: apt install chromium)"
)

PATIENCE = 20_000
"""Milliseconds that the page is given to show something: GPUs are read every 5 s."""
expect.set_options(timeout=PATIENCE)

LOOKER, ADMIN = "sk-looker", "sk-admin"
CARD: dict[str, Any] = {"weights": "tiny", "max_model_len": 4096}
LONG = "deepseek_r1_distill_qwen_32b_awq_w4a16_long_context_131072_0"
"""Names are as long as people make them."""

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
def dgx() -> Iterator[Other]:
    with serving("llama-70b", f"somebody/{LONG}-far") as server:
        yield server


@pytest.fixture(scope="module")
def llmd(gpus: FakeGpus, dgx: Other, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llmd]:
    profiles = {
        "llama_0": CARD | {"model": "llama", "gpus": [0], "vram": "12 GiB", "sleep": True, "env": TALKS},
        "llama_1": CARD | {"model": "llama", "gpus": [1], "vram": "12 GiB", "env": SLOW},
        "qwen_coder_1": CARD
        | {"model": "qwen-coder", "gpus": [1], "vram": "5 GiB", "env": {"STANDIN_CRASH_AT": "Available KV"}},
        LONG: CARD | {"model": f"somebody/{LONG}", "gpus": [0], "vram": "1 GiB"},
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
    limits = QUICK | {"engine": QUICK["engine"] | {"settle_timeout": 3}}
    peers = {"dgx": {"url": dgx.url, "interval": 0.2}}
    made = Llmd(profiles, env=env, keys=keys, modes=modes, peers=peers, **limits)
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
    """A window of its own. What its console complains of fails the test, but for refusals, which the page shows."""
    context = browser.new_context(viewport={"width": 1440, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    yield page
    context.close()
    assert [text for text in complaints if not text.startswith("Failed to load resource")] == []


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
    expect(first.get_by_role("heading")).to_have_text("GPU 0")
    expect(first).to_contain_text("GeForce RTX 4090")
    for value in ("37 %", "61 °C", "284 W"):
        expect(first).to_contain_text(value)
    expect(second.locator(".legend")).to_contain_text(f"(PID {os.getpid()})3.0 GiB")
    gpus.release(os.getpid())
    expect(second.locator(".legend")).not_to_contain_text("PID")
    assert llmd.run("lease", "2GiB", "--gpu", "1", "--ttl", "1m", "--as", "blender").returncode == 0
    expect(second.locator(".legend")).to_contain_text("lent to blender2.0 GiB")
    expect(second.locator(".bar")).to_have_attribute("aria-label", "lent to blender 2.0 GiB, free 22.0 GiB")
    gpus.card(0, memory="lost")
    expect(first).to_contain_text("Trouble: GPU is lost")
    gpus.card(0, memory="ok")
    expect(first).not_to_contain_text("Trouble")
    expect(first.locator("path.used")).to_have_attribute("d", re.compile(r"^M[\d.]+ [\d.]+L"))
    expect(first.locator(".when")).to_have_text(re.compile(r"^last \d+ (s|min)$"))
    page.get_by_role("button", name="24 h").click()
    expect(first.locator(".when")).not_to_have_text(re.compile(r"^last \d+ s$"))  # a point each 4 minutes
    gpus.xid(1, 63)
    expect(second.locator(".reported")).to_contain_text("XID 63")


def test_a_model_is_started_its_percentage_moves_and_it_is_stopped(page: Page, llmd: Llmd) -> None:
    sign_in(page, llmd)
    row(page, "llama_1").get_by_role("button", name="Start llama_1").click()
    expect(state(page, "llama_1")).to_have_text("starting")
    expect(page.locator(".gpu").nth(1).locator(".legend")).to_contain_text("llama_1, reserved")
    seen: set[float] = set()
    until(lambda: moved(page, seen), 20, llmd.text)
    shoot(page, "loading-light")
    expect(row(page, "llama_1").locator(".doing")).to_have_text(
        re.compile(r"^.+, \d+ %, \d+ s so far(, about \d+ s to go|, longer than usual)?$")
    )
    expect(state(page, "llama_1")).to_have_text("ready")
    expect(row(page, "llama_1")).to_contain_text("12.0 / 12.0")
    expect(row(page, "llama_1").locator(".doing")).to_contain_text("idle, stops in 30 min")
    expect(page.locator(".gpu").nth(1).locator(".legend")).to_contain_text("llama_112.0 GiB")
    expect(page.locator("#decisions")).to_contain_text("llama_1")
    row(page, "llama_1").get_by_role("button", name="Pin llama_1").click()
    expect(state(page, "llama_1")).to_have_text("ready, pinned")
    expect(row(page, "llama_1").locator(".doing")).not_to_contain_text("stops in")
    assert llmd.engine("llama_1")["pinned"]
    row(page, "llama_1").get_by_role("button", name="Unpin llama_1").click()
    expect(row(page, "llama_1").locator(".doing")).to_contain_text("idle, stops in 30 min")
    row(page, "llama_1").get_by_role("button", name="Stop llama_1").click()
    expect(state(page, "llama_1")).to_have_text("cold")
    assert llmd.engine("llama_1")["state"] == "cold"


def moved(page: Page, seen: set[float]) -> bool:
    """Whether the bar has stood at three places."""
    seen.add(row(page, "llama_1").locator("progress").evaluate("bar => bar.value"))
    return len(seen) > 2


def test_a_request_is_seen_and_cancelled_and_its_client_hears_of_it(page: Page, llmd: Llmd) -> None:
    sign_in(page, llmd)
    chat = Chat(llmd)
    flight = page.locator("#flights tr")
    expect(flight).to_have_count(1)
    expect(flight).to_contain_text("webui")
    expect(flight).to_contain_text("llama_0")
    until(lambda: int(flight.locator("td").nth(4).text_content().replace("–", "0")) > 5, 20, llmd.text)
    for place, shape in ((3, r"^~\d+$"), (5, r"^[\d.]+ m?s$"), (6, r"^\d+ s$")):  # prompt, TTFT and age
        expect(flight.locator("td").nth(place)).to_have_text(re.compile(shape))
    until(lambda: float(_figure(page, "llama_0", "tokens/s")) > 1, 20, llmd.text)
    shoot(page, "busy-light")
    page.set_viewport_size({"width": 390, "height": 844})
    button = flight.get_by_role("button").bounding_box()
    assert button
    assert button["x"] + button["width"] <= 390
    shoot(page, "busy-phone")
    flight.get_by_role("button", name="Cancel the request of webui").click()
    chat.join(10)
    assert "cancelled by an operator" in chat.error
    expect(flight).to_have_count(0)
    expect(page.locator("#recent tr").first).to_contain_text("503 cancelled by an operator")
    until(lambda: llmd.engine("llama_0")["in_flight"] == 0, 10, llmd.text)
    page.locator("#by-end").select_option("good")
    expect(page.locator("#recent")).not_to_contain_text("cancelled")
    page.locator("#by-end").select_option("")
    page.locator("#by-model").select_option("llama_0")
    expect(page.locator("#recent tr").first).to_contain_text("cancelled")
    for name in ("TTFT", "total", "queue"):
        expect(page.locator(f"#percentiles div:has(dt:text-is('{name} p50 / p95 / p99')) dd")).to_have_text(
            THREE
        )


def test_requests_that_wait_are_counted_beside_their_profile(page: Page, llmd: Llmd) -> None:
    sign_in(page, llmd)
    chats, flights = [Chat(llmd) for _ in range(6)], page.locator("#flights tr")
    expect(flights).to_have_count(6)
    expect(flights.filter(has_text="waits")).to_have_count(2)
    for name, told in (("in flight", "4 / 4"), ("queued", "2")):
        expect(row(page, "llama_0").locator(f".numbers div:has(dt:text-is('{name}')) dd")).to_have_text(told)
    for left in reversed(range(6)):
        flights.last.get_by_role("button").click()
        expect(flights).to_have_count(left)
    for chat in chats:
        chat.join(10)
        assert "cancelled by an operator" in chat.error


THREE = re.compile(r"^[\d.]+ m?s / [\d.]+ m?s / [\d.]+ m?s$")
"""Times: half of the requests, all but one in twenty, all but one in a hundred were done by then."""


def _figure(page: Page, profile: str, name: str) -> str:
    return row(page, profile).locator(f".numbers div:has(dt:text-is('{name}')) dd").text_content() or ""


def test_a_model_that_may_sleep_is_put_to_sleep_and_woken(page: Page, llmd: Llmd) -> None:
    sign_in(page, llmd)
    if llmd.engine("llama_0")["state"] != "ready":
        row(page, "llama_0").get_by_role("button", name="Start llama_0").click()
    expect(state(page, "llama_0")).to_have_text("ready")
    row(page, "llama_0").get_by_role("button", name="Sleep llama_0").click()
    expect(state(page, "llama_0")).to_have_text("sleeping")
    row(page, "llama_0").get_by_role("button", name="Start llama_0").click()
    expect(state(page, "llama_0")).to_have_text("ready")


def test_a_failed_start_is_one_line_and_its_log_a_click_away(page: Page, llmd: Llmd) -> None:
    sign_in(page, llmd)
    row(page, "qwen_coder_1").get_by_role("button", name="Start qwen_coder_1").click()
    failure = row(page, "qwen_coder_1").locator(".failure")
    expect(failure).to_be_visible()
    assert "\n" not in (failure.text_content() or "")
    expect(page.locator("#decisions .error").first).to_have_text(
        re.compile("qwen_coder_1: .*exited with status 1")
    )
    failure.click()
    expect(page.locator("#log-of")).to_have_value("qwen_coder_1")
    expect(page.locator("#log")).to_contain_text("Starting to load model")


def test_logs_are_live_filtered_and_held_back(page: Page, llmd: Llmd) -> None:
    sign_in(page, llmd)
    log, held = page.locator("#log"), page.locator("#log-pause")
    expect(log).to_contain_text("serving")
    page.get_by_label("Containing").fill("sign_in_refused")
    expect(log.locator("div:visible").filter(has_text="serving")).to_have_count(0)
    held.click()
    llmd.run("mode", "dusk")
    page.request.post(f"{llmd.url}/ui/signin", form={"key": "x"}, headers={"Origin": llmd.url})
    expect(held).to_contain_text("held)")
    lines = log.locator("div:visible").count()
    held.click()
    expect(log.locator("div:visible")).to_have_count(lines + 1)


def test_night_is_planned_dropped_forced_and_given_back(page: Page, llmd: Llmd) -> None:
    sign_in(page, llmd)
    expect(page.locator("#now-mode")).to_have_text("day, by the calendar")
    expect(page.locator("#next-mode")).to_contain_text("Next: night at")
    expect(page.locator("#plan")).to_contain_text("What a change to night would do now")  # it is the next one
    expect(page.get_by_role("button", name="Change to night")).to_have_count(0)
    page.get_by_role("button", name="Plan night").click()
    expect(page.locator("#plan")).to_contain_text("serve qwen_72b_dual")
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(page.get_by_role("button", name="Change to night")).to_have_count(0)
    assert llmd.status()["daemon"]["mode"]["name"] == "day"
    page.get_by_role("button", name="Plan night").click()
    page.get_by_role("button", name="Change to night").click()
    expect(page.locator("#now-mode")).to_have_text("night, forced by a person")
    expect(page.locator("#mode")).to_have_text("night, forced")
    assert llmd.status()["daemon"]["mode"]["name"] == "night"
    page.get_by_role("button", name="Back to the calendar").click()
    expect(page.locator("#now-mode")).to_have_text("day, by the calendar")


def test_what_differs_on_disk_is_shown_and_then_changed(page: Page, llmd: Llmd) -> None:
    sign_in(page, llmd)
    expect(page.locator("#loaded")).to_contain_text("Holds since")
    expect(page.get_by_role("button", name="Change that now")).to_be_hidden()
    file = llmd.home / "profiles" / "extra_0.toml"
    file.write_text('model = "extra"\nweights = "tiny"\ngpus = [0]\nvram = "1 GiB"\n')
    expect(page.locator("#loaded")).to_contain_text("The files have changed since.")
    page.get_by_role("button", name="Show what differs on disk").click()
    expect(page.locator("#differences")).to_contain_text("profiles.extra_0 added")
    expect(row(page, "extra_0")).to_have_count(0)
    page.get_by_role("button", name="Change that now").click()
    expect(row(page, "extra_0")).to_be_visible()

    file.write_text("model = 1\n")
    page.get_by_role("button", name="Show what differs on disk").click()
    expect(page.locator("#toasts")).to_contain_text("extra_0.toml:1: model cannot be 1")
    file.unlink()
    page.get_by_role("button", name="Show what differs on disk").click()
    expect(page.locator("#differences")).to_contain_text("profiles.extra_0 removed")
    page.get_by_role("button", name="Change that now").click()
    expect(row(page, "extra_0")).to_have_count(0)


def test_a_peer_has_a_card_with_its_models_and_is_seen_to_go(page: Page, llmd: Llmd, dgx: Other) -> None:
    sign_in(page, llmd)
    card = page.locator("[data-peer=dgx]")
    for said in ("up", f"127.0.0.1:{dgx.server_port}", "0 / 8 in flight", "llama-70b131,072 tokens"):
        expect(card).to_contain_text(said)
    dgx.ill = True
    expect(card.locator(".pill")).to_have_text("down")
    expect(card.locator(".note")).to_contain_text("500")
    shoot(page, "peer-down")
    dgx.ill = False
    expect(card.locator(".pill")).to_have_text("up")
    expect(card.locator(".note")).to_be_hidden()


def test_who_may_only_look_has_no_buttons(page: Page, llmd: Llmd) -> None:
    sign_in(page, llmd, LOOKER)
    expect(page.locator("#who")).to_have_text("wall, may only look")
    expect(row(page, "llama_1").get_by_role("button", name="Log llama_1")).to_be_visible()
    for name in ("Start", "Stop", "Sleep", "Cancel", "Change"):
        expect(page.get_by_role("button", name=name)).to_have_count(0)


def test_it_fits_a_telephone_in_light_and_dark(page: Page, llmd: Llmd, gpus: FakeGpus) -> None:
    gpus.foreign(os.getpid(), 1, 3 * GIB)
    page.emulate_media(color_scheme="dark")
    sign_in(page, llmd)
    expect(page.locator(".gpu").nth(1).locator(".legend")).to_contain_text("PID")
    assert _brightness(page) < 60
    expect(page.locator("#decisions li")).not_to_have_count(0)
    shoot(page, "dark")
    expect(row(page, LONG)).to_be_visible()
    for width in (390, 768, 1100, 1440):
        page.set_viewport_size({"width": width, "height": 844})
        assert page.evaluate(TOO_WIDE) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        shoot(page, f"{width}-dark")
    page.set_viewport_size({"width": 390, "height": 844})
    page.get_by_role("button", name="Theme").click()
    assert _brightness(page) > 200
    page.reload()
    expect(page.locator("#line")).to_have_text("live")
    assert _brightness(page) > 200  # it is remembered
    shoot(page, "phone-light")
    gpus.release(os.getpid())


TOO_WIDE = """[...document.querySelectorAll("body *")].filter((node) => !node.closest(".wide, nav, .skip")
  && node.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map((node) => node.outerHTML)"""
"""What stands out beyond the window's edge, but for tables and links, which scroll for themselves."""


def _brightness(page: Page) -> int:
    shade: int = page.evaluate("parseInt(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])")
    return shade


def test_a_button_keeps_the_keyboard_while_all_around_it_changes(page: Page, llmd: Llmd) -> None:
    sign_in(page, llmd)
    page.get_by_label("Containing").focus()
    page.keyboard.press("Tab")
    expect(page.locator("#log-pause")).to_be_focused()
    log = row(page, "llama_1").get_by_role("button", name="Log llama_1")
    log.focus()
    llmd.run("start", "llama_1")
    expect(state(page, "llama_1")).to_have_text("ready")
    expect(log).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#log-of")).to_have_value("llama_1")


def test_all_of_it_is_done_without_a_mouse(page: Page, llmd: Llmd) -> None:
    page.goto(f"{llmd.url}/ui/signin")
    expect(page.get_by_label("API key")).to_be_focused()
    page.keyboard.type(ADMIN)
    page.keyboard.press("Enter")
    expect(page.locator("#line")).to_have_text("live")
    expect(state(page, "llama_0")).to_have_text(llmd.engine("llama_0")["state"])
    press(page, "Start llama_1" if llmd.engine("llama_1")["state"] == "cold" else "Pin llama_1")
    expect(state(page, "llama_1")).to_have_text(re.compile("^ready"))
    press(page, "Stop llama_1")
    expect(state(page, "llama_1")).to_have_text("cold")
    press(page, "Plan night")
    expect(page.get_by_role("button", name="Change to night")).to_be_visible()
    press(page, "Cancel")
    expect(page.get_by_role("button", name="Change to night")).to_have_count(0)


def press(page: Page, name: str) -> None:
    """Tab to what is called so, which must be seen to have the focus, and Enter."""
    for _ in range(150):
        page.keyboard.press("Tab")
        found = page.evaluate(FOCUS)
        if found["name"] == name:
            assert found["outlined"], f"{name}: nobody sees where the focus is"
            page.keyboard.press("Enter")
            return
    raise AssertionError(f"the Tab key does not lead to {name}")


FOCUS = """() => {
  const at = document.activeElement;
  return { name: at.ariaLabel || at.textContent, outlined: getComputedStyle(at).outlineStyle === "solid" };
}"""


def test_names_and_numbers_are_read_from_two_metres(page: Page, llmd: Llmd) -> None:
    """A good eye reads capitals of 2.9 mm there (5 minutes of arc); they are 0.7 of a letter's size, which CSS tells
    in pixels of a 96th of an inch."""
    sign_in(page, llmd)
    expect(row(page, "llama_0")).to_be_visible()
    for shown in (
        ".gpu h3",
        ".gpu .big",
        ".legend .name",
        ".legend b",
        ".numbers dd",
        "h4",
        ".state",
        "#recent td",
    ):
        sizes = page.locator(shown).evaluate_all(
            "all => all.map((one) => parseFloat(getComputedStyle(one).fontSize))"
        )
        assert sizes, shown
        assert min(sizes) * 0.7 * 25.4 / 96 >= 2.9, shown


def test_a_tab_that_nobody_sees_holds_no_stream(page: Page, llmd: Llmd) -> None:
    """A browser has six connections for all its tabs; actions need one too."""
    sign_in(page, llmd)
    see(page, False)
    expect(page.locator("#line")).to_have_text("resting")
    llmd.run("start" if llmd.engine("llama_1")["state"] == "cold" else "stop", "llama_1")
    see(page, True)
    expect(page.locator("#line")).to_have_text("live")
    expect(state(page, "llama_1")).to_have_text(llmd.engine("llama_1")["state"])


def see(page: Page, seen: bool) -> None:
    hide = (
        f"Object.defineProperty(document, 'hidden', {{value: {str(not seen).lower()}, configurable: true}})"
    )
    page.evaluate(f"{hide}; document.dispatchEvent(new Event('visibilitychange'))")


def test_a_line_that_was_lost_comes_back_by_itself(page: Page, llmd: Llmd) -> None:
    """The daemon never noticed, and the sign-in still holds."""
    with Wire(int(llmd.url.rpartition(":")[2])) as wire:
        page.goto(f"http://127.0.0.1:{wire.port}/ui/signin")
        page.get_by_label("API key").fill(ADMIN)
        page.keyboard.press("Enter")
        expect(page.locator("#line")).to_have_text("live")
        wire.cut()
        expect(page.locator("#line")).to_have_text("lost, coming back")
        llmd.run("start" if llmd.engine("llama_1")["state"] == "cold" else "stop", "llama_1")
        wire.mend()
        expect(page.locator("#line")).to_have_text("live")
        expect(state(page, "llama_1")).to_have_text(llmd.engine("llama_1")["state"])


class Wire:
    """Between a browser and a port of this host: can be cut and mended."""

    def __init__(self, to: int) -> None:
        self._to, self._ends = to, list[socket.socket]()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Wire:
        threading.Thread(target=self._serve, args=(self._listener,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()

    def cut(self) -> None:
        for end in (self._listener, *self._ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._ends.clear()

    def mend(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.__enter__()

    def _serve(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
                self._ends += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=_carry, args=(one, other), daemon=True).start()


def _carry(one: socket.socket, other: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := one.recv(1 << 16):
            other.sendall(data)
        other.shutdown(socket.SHUT_WR)


def test_a_card_whose_memory_does_not_come_back_is_quarantined_until_it_is_released(
    page: Page, llmd: Llmd, gpus: FakeGpus
) -> None:
    """Then that memory counts as foreign for a minute or longer: whoever wants the card comes before this test."""
    llmd.run("start", "llama_1")
    gpus.card(1, linger=30)
    sign_in(page, llmd)
    row(page, "llama_1").get_by_role("button", name="Stop llama_1").click()
    expect(page.locator(".gpu").nth(1)).to_contain_text("Quarantined: memory of llama_1 did not come back")
    expect(page.locator(".gpu").nth(1).locator(".legend")).to_contain_text("llama_1, not back yet12.0 GiB")
    shoot(page, "quarantine")
    page.get_by_role("button", name="Release GPU 1").click()
    expect(page.locator("#toasts")).to_contain_text("counts as foreign")
    expect(page.locator(".gpu").nth(1)).not_to_contain_text("Quarantined")
    assert llmd.engine("llama_1")["state"] == "cold"
    gpus.card(1, linger=0)


def test_a_daemon_that_comes_back_is_found_again(page: Page, llmd: Llmd, gpus: FakeGpus) -> None:
    """Its sessions went with it, so a person signs in again. Before that its readings have grown old."""
    sign_in(page, llmd)
    gpus.card(0, hang=60)
    expect(page.locator(".gpu").first).to_contain_text("Stale: last read", timeout=2 * PATIENCE)
    gpus.card(0, hang=0)
    address = llmd.url.removeprefix("http://")
    llmd.stop()
    expect(page.locator("#line")).to_have_text("lost, coming back")
    text = llmd.config.read_text().replace("127.0.0.1:0", address)
    llmd.config.write_text(text)
    llmd.start()
    page.wait_for_url("**/ui/signin")
