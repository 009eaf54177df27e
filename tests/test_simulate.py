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
from supervisor.config import Mode
from supervisor.config.quantities import time_of_day

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
    assert report["swaps"] == 1
    assert report["batch"]["max_s"] > report["interactive"]["max_s"]


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
        (f"{HEADER}0,webui,llama\n", 2, "no request"),
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
    ("text", "words"), [("{", "no JSON"), ("[1]", "this is no object"), ("{}", "'time' is missing")]
)
def test_mistakes_in_json_lines(config: Path, text: str, words: str) -> None:
    result = simulate(config, f"\n{text}\n", kind="jsonl")
    assert result.exit_code == 1
    assert "trace.jsonl:2: " in result.stderr
    assert words in result.stderr


def test_profiles_that_fit_no_such_gpu_are_named_with_file_and_line(config: Path) -> None:
    result = simulate(config, HEADER, "--gpus", "24GiB,8GiB")
    assert result.exit_code == 1
    assert "big_dual.toml:4: big_dual needs 22.00 GiB, GPU 1 (imaginary) has 8.00 GiB" in result.stderr


def test_what_cannot_be_meant(config: Path) -> None:
    assert "names no GPUs; write --gpus 2x24GiB" in simulate(config, HEADER, "--gpus", "many").stderr
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
