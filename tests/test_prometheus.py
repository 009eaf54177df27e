"""What is told to Prometheus, by Prometheus itself: its linter, its rules, its server, and every panel's query."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from supervisor.core.devices import GIB
from tests.daemon import KEY, QUICK, Llmd, until
from tests.standin.nvml import FakeGpus, build

PACKAGING = Path(__file__).parent.parent / "packaging"
RULES = PACKAGING / "prometheus"
DASHBOARD = json.loads((PACKAGING / "grafana" / "llmd.json").read_text())
QUERIES = [
    (panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel.get("targets", ())
]
NEW_ENOUGH = 60
"""Seconds for what takes two scrapes of a second each, on a host that does much else."""

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is missing (Debian's package prometheus)"
)
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="Prometheus is missing (Debian's package prometheus)"
)


def promtool(*words: str, text: str | None = None) -> str:
    done = subprocess.run(
        ["promtool", *words], input=text, cwd=RULES, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@needs_promtool
def test_every_alert_fires_when_it_should_and_else_not() -> None:
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yml")
    alerts = set(re.findall(r"- alert: (\w+)", (RULES / "alerts.yml").read_text()))
    tested = re.findall(r"alertname: (\w+)\n(\s+exp_alerts)?", (RULES / "alerts_test.yml").read_text())
    assert {name for name, fires in tested if fires} == alerts
    assert {name for name, fires in tested if not fires} == alerts


@needs_promtool
def test_the_scrape_configuration_is_one() -> None:
    assert "SUCCESS" in promtool("check", "config", "prometheus.yml")


@pytest.fixture(scope="module")
def llmd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llmd]:
    """Has served both models of one card in turns, and refused a request."""
    directory = tmp_path_factory.mktemp("prometheus")
    gpus = FakeGpus(directory / "nvml", count=1, total=24 * GIB)
    gpus.card(0, utilization=40, temperature=55, power=210_000)
    card = {"weights": "tiny", "gpus": [0], "vram": "18 GiB", "max_model_len": 512}
    peers = {"dgx": {"url": f"http://127.0.0.1:{free_port()}/v1"}}  # nobody is there
    llmd = Llmd(
        {"llama_0": card | {"model": "llama"}, "coder_0": card | {"model": "coder"}},
        env=gpus.env(build(directory)),
        server={"engine_metrics": True},
        peers=peers,
        **QUICK,
    )
    try:
        llmd.start()
        exercise(llmd)
        yield llmd
    finally:
        llmd.close()


def exercise(llmd: Llmd) -> None:
    for model in ("llama", "coder", "coder"):
        assert b"[DONE]" in chat(llmd, model, stream=True)
    for wrong in ({"messages": 3, "max_tokens": "x" * 3}, {"model": "gone"}):
        with pytest.raises(urllib.error.HTTPError):
            chat(llmd, **({"model": "coder"} | wrong))


def chat(llmd: Llmd, model: str, **more: Any) -> bytes:
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8, **more}
    body |= {"stream_options": {"include_usage": True}} if more.get("stream") else {}
    head = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    request = urllib.request.Request(
        f"{llmd.url}/v1/chat/completions", json.dumps(body).encode(), headers=head
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return bytes(answer.read())


def exposed(llmd: Llmd) -> str:
    with urllib.request.urlopen(f"{llmd.url}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def sample(text: str, name: str, **labels: str) -> float:
    """The only sample of this name with these labels, among others."""
    lines = [line for line in text.splitlines() if re.match(rf"{name}[{{ ]", line)]
    found = [line for line in lines if all(f'{k}="{v}"' in line for k, v in labels.items())]
    assert len(found) == 1, (name, labels, found or lines)
    return float(found[0].rpartition(" ")[2])


def test_requests_are_counted_by_what_they_found_and_how_they_ended(llmd: Llmd) -> None:
    text = exposed(llmd)
    found = {"model": "coder", "source": "webui"}
    assert sample(text, "llmd_requests_total", status="200", **found) == 2
    assert sample(text, "llmd_errors_total", source="webui", code="model_not_found", model="") == 1
    assert sample(text, "llmd_hits_total", model="coder", engine="cold") == 1
    assert sample(text, "llmd_hits_total", model="coder", engine="warm") >= 1
    assert sample(text, "llmd_tokens_total", kind="completion", **found) == 16
    for name in ("time_to_first_token", "inter_token"):
        assert sample(text, f"llmd_{name}_seconds_count", model="coder") == 2
    assert sample(text, "llmd_queue_seconds_count", model="llama") == 1


TOLD = """
in_flight queued slots waiting engine_state
requests_total errors_total tokens_total hits_total
request_seconds first_byte_seconds time_to_first_token_seconds inter_token_seconds
queue_seconds loop_lag_seconds
engine_starts_total engine_start_seconds_total engine_stops_total engine_stop_seconds_total engine_sleeps_total
evictions_total eviction_seconds_total engine_failures_total mode_changes_total
device_utilization_ratio device_temperature_celsius device_power_watts device_reading_age_seconds device_trouble
device_quarantined device_xids_total memory_bytes memory_owner_bytes ledger_bytes
log_lines_suppressed_total dropped_total disk_trouble gpu_trouble strays peer_up build_info
"""


def test_all_that_people_rely_on_is_told(llmd: Llmd) -> None:
    families = set(re.findall(r"^# TYPE llmd_(\w+) ", exposed(llmd), re.MULTILINE))
    assert [name for name in TOLD.split() if name not in families] == []


def test_nobody_who_asks_can_make_up_a_label(llmd: Llmd) -> None:
    before = series(exposed(llmd))
    for number in range(20):
        with pytest.raises(urllib.error.HTTPError):
            chat(llmd, f"made-up-{number}", user=f"somebody-{number}")
    assert series(exposed(llmd)) == before


def series(text: str) -> set[str]:
    """Names with their labels, of those that are ours."""
    return {line.rpartition(" ")[0] for line in text.splitlines() if line.startswith("llmd_")}


def test_starts_swaps_and_stops_are_counted(llmd: Llmd) -> None:
    text = exposed(llmd)
    assert sample(text, "llmd_engine_starts_total", profile="llama_0", way="cold") == 1
    assert sample(text, "llmd_engine_start_seconds_total", profile="llama_0", way="cold") > 0
    assert sample(text, "llmd_engine_stops_total", profile="llama_0", reason="room") == 1
    evicted = [sample(text, "llmd_evictions_total", profile="llama_0", kind=k) for k in ("idle", "swap")]
    assert sum(evicted) == 1
    took = [sample(text, "llmd_eviction_seconds_total", profile="llama_0", kind=k) for k in ("idle", "swap")]
    assert sum(took) == sample(text, "llmd_engine_stop_seconds_total", profile="llama_0", reason="room")


def test_a_peer_is_told_of(llmd: Llmd) -> None:
    text = exposed(llmd)
    assert sample(text, "llmd_peer_up", peer="dgx") == 0
    assert sample(text, "llmd_peer_slots", peer="dgx") == 8


def test_memory_by_owner_is_the_whole_card(llmd: Llmd) -> None:
    text = exposed(llmd)
    owners = re.findall(r'llmd_memory_owner_bytes\{.*gpu="0",owner="(\w+)",profile="(\w*)"\} (\S+)', text)
    shares = {(owner, profile): float(size) for owner, profile, size in owners}
    assert sum(shares.values()) == sample(text, "llmd_memory_bytes", gpu="0", kind="total") == 24 * GIB
    assert shares["engine", "coder_0"] > 0
    assert sample(text, "llmd_ledger_bytes", gpu="0", kind="promised") == 18 * GIB
    assert sample(text, "llmd_device_utilization_ratio", gpu="0") == 0.4


def test_the_engines_own_metrics_bear_their_profile(llmd: Llmd) -> None:
    text = exposed(llmd)
    assert re.search(r'^vllm:\w+\{profile="coder_0",', text, re.MULTILINE)
    assert len(re.findall(r"^# TYPE vllm:num_requests_running ", text, re.MULTILINE)) == 1


@needs_promtool
def test_the_linter_finds_nothing_in_what_is_ours(llmd: Llmd) -> None:
    """vLLM's own names hold colons, which the linter keeps for recording rules."""
    ours = re.sub(r"^(# \w+ )?vllm:.*\n", "", exposed(llmd), flags=re.MULTILINE)
    assert promtool("check", "metrics", text=ours) == ""


@dataclass
class Prometheus:
    url: str

    def query(self, expression: str) -> list[Any]:
        asked = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"{self.url}/api/v1/query?{asked}", timeout=10) as answer:
            result: list[Any] = json.load(answer)["data"]["result"]
        return result

    def answers(self) -> bool:
        try:
            return bool(self.query("up"))
        except OSError:
            return False


@pytest.fixture(scope="module")
def prometheus(llmd: Llmd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Debian's, with the configuration that is shipped, but scraping this daemon every second."""
    home = tmp_path_factory.mktemp("server")
    config = (
        (RULES / "prometheus.yml").read_text().replace("127.0.0.1:8000", llmd.url.removeprefix("http://"))
    )
    (home / "prometheus.yml").write_text(config.replace("15s", "1s"))
    shutil.copy(RULES / "alerts.yml", home)
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={home}/prometheus.yml", f"--storage.tsdb.path={home}/data"]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
    try:
        server = Prometheus(f"http://{address}")
        until(server.answers, NEW_ENOUGH, (home / "log").read_text)
        yield server
    finally:
        process.terminate()
        process.wait(30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@needs_prometheus
def test_prometheus_scrapes_it(prometheus: Prometheus) -> None:
    until(lambda: prometheus.query('up{job="llmd"}')[0]["value"][1] == "1", NEW_ENOUGH)
    assert prometheus.query('llmd_engine_state{profile="coder_0", state="ready"} == 1')
    assert prometheus.query('{__name__=~"vllm:.+", profile="coder_0"}')


@needs_prometheus
def test_prometheus_answers_every_panel(prometheus: Prometheus, llmd: Llmd) -> None:
    """With series, and not only without an error; requests come meanwhile, so that rates have something to show."""
    assert len(QUERIES) > 20
    unanswered = [(title, filled(query)) for title, query in QUERIES]

    def all_answered() -> bool:
        exercise(llmd)
        unanswered[:] = [(title, query) for title, query in unanswered if not prometheus.query(query)]
        return not unanswered

    until(all_answered, NEW_ENOUGH, lambda: repr(unanswered))


def filled(query: str) -> str:
    """As Grafana fills in a dashboard's variables."""
    query = query.replace("$__rate_interval", "1m")
    filled = re.sub(r"\$(instance|gpu|model)\b", ".*", query)
    assert "$" not in filled, query
    return filled


@needs_prometheus
def test_every_metric_that_an_alert_asks_for_is_there(prometheus: Prometheus) -> None:
    named = set(re.findall(r"\bllmd_\w+", (RULES / "alerts.yml").read_text()))
    until(lambda: all(prometheus.query(name) for name in named), NEW_ENOUGH)
