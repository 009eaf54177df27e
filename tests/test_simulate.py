"""`llmd simulate`: traces in, waits out, without a daemon."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from supervisor.cli import main
from supervisor.cli.replay import changes
from supervisor.config import Config, Mode, Profile
from supervisor.config.quantities import time_of_day
from supervisor.core.devices import GIB
from supervisor.core.events import Event
from supervisor.core.orders import Order
from supervisor.simulation.peers import POLICIES
from supervisor.simulation.report import percentile
from supervisor.simulation.trace import Request
from supervisor.simulation.world import World

ROOT = Path(__file__).parent.parent
HEADER = "time,key,model,prompt,output\n"
CONFIG = """
[keys.webui]
env = "A"
[keys.n8n]
env = "B"
priority = "batch"
[modes.day]
start = "06:00"
timezone = "UTC"
[modes.night]
start = "02:00"
timezone = "UTC"
profiles = ["big_dual"]
"""
PROFILES = {
    "llama_0": 'model = "llama"\nweights = "w"\ngpus = [0]\nvram = "20 GiB"\n',
    "coder_0": 'model = "coder"\nweights = "w"\ngpus = [0]\nvram = "20 GiB"\n',
    "big_dual": 'model = "big"\nweights = "w"\ngpus = [0, 1]\nvram = "22 GiB"\n',
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "profiles").mkdir()
    for name, text in PROFILES.items():
        (tmp_path / "profiles" / f"{name}.toml").write_text(text)
    file = tmp_path / "llmd.toml"
    file.write_text(CONFIG)
    return file


def simulate(config: Path, trace: str, *options: str, kind: str = "csv") -> Result:
    file = config.parent / f"trace.{kind}"
    file.write_text(trace)
    start = () if "--start" in options else ("--start", "2026-01-01T12:00")
    words = ["--config", str(config), "simulate", str(file), *start, *options]
    return CliRunner().invoke(main, words)


def found(config: Path, trace: str, *options: str, kind: str = "csv") -> dict[str, Any]:
    result = simulate(config, trace, *options, "--json", kind=kind)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_cold_model_is_waited_for_as_long_as_it_loads_and_a_warm_one_is_not(config: Path) -> None:
    report = found(config, f"{HEADER}0,webui,llama,100,40\n200,webui,llama,100,40\n")["llmd"]
    assert report["interactive"]["requests"] == 2
    assert report["interactive"]["p50_s"] == 0
    assert report["interactive"]["max_s"] == pytest.approx(report["loading_s"], abs=1)
    assert report["swaps"] == 0


def test_classes_are_told_apart_and_swaps_counted(config: Path) -> None:
    report = found(config, f"{HEADER}0,webui,llama,100,40\n100,n8n,coder,100,40\n")["llmd"]
    assert (report["interactive"]["requests"], report["batch"]["requests"]) == (1, 1)
    assert (report["swaps"], report["evictions"]) == (0, 1)  # llama was idle by then
    assert report["batch"]["max_s"] > report["interactive"]["max_s"]


def test_an_engine_in_use_that_has_to_go_is_a_swap(config: Path) -> None:
    asked = "".join(f"{n},webui,llama,100,200\n" for n in range(0, 400, 2))
    report = found(config, f"{HEADER}{asked}100,webui,coder,100,40\n")["llmd"]
    assert report["swaps"] >= 1
    assert report["evictions"] >= report["swaps"]


def test_the_imaginary_cards_hold_what_engines_take_not_what_the_ledger_promised() -> None:
    profile = Profile(name="a_0", model="a", weights="w", gpus=(0, 1), vram=20 * GIB)
    world = World(Config(path=Path("llmd.toml"), profiles={"a_0": profile}))

    def forget(world: World, event: Event, ordered: list[Order]) -> None:
        engine = world.fleet.engines["a_0"]
        engine.reserved = dict.fromkeys(engine.reserved, 1 << 30)

    world.after = forget
    world.run([Request(0, "webui", "a", 1, 1)])
    (reading, *_) = world.fleet.ledger.survey.readings
    assert (reading.device, reading.used) == ("GPU-0", 20 * GIB)


def test_csv_and_json_lines_say_the_same(config: Path) -> None:
    line = {"time": 5, "key": "webui", "model": "llama", "prompt": 100, "output": 40}
    assert found(config, f"{HEADER}5,webui,llama,100,40\n") == found(config, json.dumps(line), kind="jsonl")


def test_several_policies_stand_side_by_side(config: Path) -> None:
    overlapping = "".join(f"{n},webui,llama,100,200\n" for n in range(0, 600, 3))
    trace = f"{HEADER}{overlapping}30,webui,coder,100,40\n"
    reports = found(config, trace, "--policy", "llmd", "--policy", "lru")
    assert list(reports) == ["llmd", "lru"]
    assert reports["llmd"]["interactive"]["refused"] == 0
    assert reports["lru"]["interactive"]["refused"] > 0  # who waits for idleness waits for ever


def test_modes_are_honoured_from_the_start_that_is_given(config: Path) -> None:
    trace = f"{HEADER}0,webui,llama,100,40\n7200,webui,llama,100,40\n"
    day = found(config, trace, "--start", "2026-01-01T12:00")["llmd"]
    assert day["interactive"]["refused"] == 0


def test_a_model_of_the_other_mode_is_refused_until_its_own_begins(config: Path) -> None:
    trace = f"{HEADER}0,webui,llama,100,40\n21600,webui,llama,100,40\n"
    zone = datetime(2026, 1, 1, 3, tzinfo=UTC).astimezone().strftime("%Y-%m-%dT%H:%M")
    report = found(config, trace, "--start", zone)["llmd"]
    assert (report["interactive"]["requests"], report["interactive"]["refused"]) == (2, 1)
    assert "not served in mode night" in report["refusal"]


def test_changes_of_mode_in_a_trace() -> None:
    modes = {
        "day": Mode(start=time_of_day("06:00"), timezone="UTC"),
        "night": Mode(start=time_of_day("02:00"), timezone="UTC", profiles=("x",)),
    }
    told = list(changes(modes, datetime(2026, 1, 1, 1, tzinfo=UTC), 30 * 3600))
    assert [(at / 3600, event.mode) for at, event in told] == [
        (0, "day"),
        (1, "night"),
        (5, "day"),
        (25, "night"),
        (29, "day"),
    ]
    assert [event.next_in for _, event in told[:2]] == [3600, 4 * 3600]
    assert list(changes({}, datetime(2026, 1, 1, tzinfo=UTC), 100)) == []


def test_the_table_fits_80_columns(config: Path) -> None:
    policies = [word for name in ("llmd", "wait-for-idle") for word in ("--policy", name)]
    result = simulate(config, f"{HEADER}0,webui,llama,100,40\n0,n8n,big,100,40\n", *policies)
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    for words in (
        "POLICY",
        "wait-for-idle",
        "interactive",
        "batch",
        "llmd refused: model 'big' is not served",
    ):
        assert words in result.stdout


@pytest.mark.parametrize(
    ("trace", "line", "words"),
    [
        ("time,key\n", 1, "the first line lacks model, output, prompt"),
        (
            f"{HEADER}0,webui,llama,1,1\nsoon,webui,llama,1,1\n",
            3,
            "could not convert string to float: 'soon'",
        ),
        (f"{HEADER}0,webui,llama\n", 2, "no request: 'prompt' is missing"),
        (f"{HEADER}0,webui,llama,1,1,1\n", 2, "it has more fields than the first line names"),
        (f"{HEADER}0,webui,llama,1,{10**9}\n", 2, "a number of tokens is out of bounds"),
        (f"{HEADER}-1,webui,llama,1,1\n", 2, "out of bounds"),
        (f"{HEADER}nan,webui,llama,1,1\n", 2, "out of bounds"),
        (f"{HEADER}0,webui,gpt,1,1\n", 2, "no profile serves gpt; write one of big, big_dual"),
    ],
)
def test_mistakes_in_a_trace_are_told_with_file_and_line(
    config: Path, trace: str, line: int, words: str
) -> None:
    result = simulate(config, trace)
    assert result.exit_code == 1
    assert f"{config.parent / 'trace.csv'}:{line}: " in result.stderr
    assert words in result.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "no JSON"),
        ("[1]", "this is no object; write an object a line"),
        ("{}", "'time' is missing"),
        ('{"time": 0, "key": "a", "model": "llama", "prompt": 1e999, "output": 1}', "infinity"),
        ("[" * 100_000, "no JSON"),
    ],
)
def test_mistakes_in_json_lines(config: Path, text: str, words: str) -> None:
    result = simulate(config, f"\n{text}\n", kind="jsonl")
    assert result.exit_code == 1
    assert "trace.jsonl:2: " in result.stderr
    assert words in result.stderr


def test_profiles_that_fit_no_such_gpu_are_named_with_file_and_line(config: Path) -> None:
    result = simulate(config, f"{HEADER}0,webui,big,1,1\n", "--gpus", "24GiB,8GiB")
    assert result.exit_code == 1
    assert "big_dual.toml:4: big_dual needs 22.00 GiB, GPU 1 (imaginary) has 8.00 GiB" in result.stderr


def test_profiles_that_the_trace_can_do_without_are_left_out_and_named(config: Path) -> None:
    result = simulate(config, f"{HEADER}0,webui,llama,1,1\n", "--gpus", "24GiB", "--json")
    assert result.stderr == "these GPUs cannot run big_dual: left out, as the trace can do without\n"
    assert json.loads(result.stdout)["llmd"]["interactive"]["refused"] == 0
    wanted = simulate(config, f"{HEADER}0,webui,big,1,1\n", "--gpus", "24GiB")
    assert "big_dual.toml:3: there is no GPU 1; write some of 0" in wanted.stderr


def test_cards_are_described_as_for_plan(config: Path) -> None:
    trace = f"{HEADER}0,webui,big,1,1\n"
    assert found(config, trace, "--gpus", "0:24GiB,1:24GiB") == found(config, trace, "--gpus", "2x24GiB")
    assert "there is no GPU 0; write some of 1" in simulate(config, trace, "--gpus", "1:24GiB").stderr


@pytest.mark.parametrize("cards", ["many", "0x24GiB", "", "0GiB", "0:24GiB,0:24GiB"])
def test_gpus_that_are_none(config: Path, cards: str) -> None:
    result = simulate(config, HEADER, "--gpus", cards)
    assert (result.exit_code, result.stderr[:8]) == (1, "--gpus: ")


def test_help_names_every_policy() -> None:
    said = " ".join(CliRunner().invoke(main, ["simulate", "--help"]).stdout.split())
    assert [name for name in POLICIES if name not in said] == []


def test_seconds_since_1970_are_counted_from_the_first_request_and_that_is_said(config: Path) -> None:
    began = datetime(2026, 1, 1, 3, tzinfo=UTC)  # in mode night, which has no llama
    trace = f"{HEADER}{began.timestamp():.1f},webui,llama,100,40\n"
    file = config.parent / "trace.csv"
    file.write_text(trace)
    result = CliRunner().invoke(main, ["--config", str(config), "simulate", str(file), "--json"])
    assert result.stderr.startswith("times are seconds since 1970: the trace begins 202")
    assert "not served in mode night" in json.loads(result.stdout)["llmd"]["refusal"]


def test_a_trace_of_months_is_refused_with_the_line(config: Path) -> None:
    result = simulate(config, f"{HEADER}0,webui,llama,1,1\n2592001,webui,llama,1,1\n")
    assert result.exit_code == 1
    assert "trace.csv:3: its time, 2592001 s, is over 30 days after the beginning" in result.stderr


def test_a_key_that_is_none_is_named(config: Path) -> None:
    result = simulate(config, f"{HEADER}0,webuy,llama,1,1\n", "--json")
    assert result.stderr == "no key is called webuy: counted as interactive\n"


def test_what_spreadsheets_write(config: Path) -> None:
    plain = found(config, f"{HEADER}5,webui,llama,100,40\n")
    odd = "\ufefftime, key, model, prompt, output,\r\n5, webui , llama, 100, 40,\r\n"
    assert found(config, odd) == plain


@pytest.mark.parametrize("kind", ["jsonl", "ndjson", "json", "JSONL"])
def test_names_of_files_with_an_object_a_line(config: Path, kind: str) -> None:
    line = '{"time": 5, "key": "webui", "model": "llama", "prompt": 100, "output": 40}'
    assert found(config, line, kind=kind)["llmd"]["interactive"]["requests"] == 1


def test_a_prompt_beyond_the_context_is_refused_as_the_router_refuses_it(config: Path) -> None:
    file = config.parent / "profiles" / "llama_0.toml"
    file.write_text(file.read_text() + "max_model_len = 8192\n")
    report = found(config, f"{HEADER}0,webui,llama,900000,40\n")["llmd"]
    assert report["interactive"]["refused"] == 1
    assert "the prompt has at least 900000 tokens" in report["refusal"]


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([], 0.5, None),
        ([7.0], 0.5, 7.0),
        ([1.0, 2.0], 0.5, 1.0),
        ([1.0, 2.0, 3.0], 0.5, 2.0),
        ([float(n) for n in range(1, 11)], 0.95, 10.0),
        ([float(n) for n in range(1, 21)], 0.95, 19.0),
        ([float(n) for n in range(1, 101)], 0.07, 7.0),
        ([1.0, 2.0, 3.0], 1.0, 3.0),
    ],
)
def test_a_percentile_is_of_the_nearest_rank(
    values: list[float], share: float, expected: float | None
) -> None:
    assert percentile(values, share) == expected


def test_what_cannot_be_meant(config: Path) -> None:
    assert (
        "there is no policy 'best'; write one of llmd, lru"
        in simulate(config, HEADER, "--policy", "best").stderr
    )
    gone = CliRunner().invoke(main, ["--config", str(config), "simulate", "nowhere.csv"])
    assert "nowhere.csv: cannot be read: No such file or directory" in gone.stderr


def test_an_empty_trace_is_no_mistake(config: Path) -> None:
    assert found(config, HEADER)["llmd"]["interactive"]["requests"] == 0


def test_the_example_is_served_by_the_profiles_beside_it() -> None:
    words = ["--config", str(ROOT / "llmd.toml"), "simulate", str(ROOT / "benchmarks/traces/afternoon.csv")]
    result = CliRunner().invoke(main, [*words, "--start", "2026-01-01T13:00", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)["llmd"]
    assert (report["interactive"]["refused"], report["batch"]["refused"]) == (0, 0)
