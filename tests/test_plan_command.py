"""`llmd plan` as it is called: described cards, weights on the disk, no daemon, no network."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from supervisor.cli import main
from supervisor.cli.plan import describe, setting
from supervisor.core.devices import GIB
from tests.planning.test_footprint import BGE_M3, LLAMA_8B, LOG, llama_tensors
from tests.standin.nvml import FakeGpus, build

SHIPPED = Path(__file__).parents[1] / "llmd.toml"


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A configuration without profiles, and a home without a cache; sockets below it need a short path."""
    place = Path(tempfile.mkdtemp(prefix="llmd-", dir="/tmp"))
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(place))
    (place / "profiles").mkdir()
    (place / "llmd.toml").write_text('[server]\nstate_dir = "state"\n')
    yield place
    shutil.rmtree(place)


def llmd(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def plan(host: Path, *args: object) -> Result:
    return llmd("--config", host / "llmd.toml", "plan", *args)


def llama(host: Path) -> Path:
    """The headers of Llama 3.1 8B; the numbers behind them are a hole in the file."""
    directory = host / "llama"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(LLAMA_8B))
    header, offset = {}, 0
    for tensor in llama_tensors():
        offsets = [offset, offset := offset + tensor.size]
        header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets}
    text = json.dumps(header).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    return directory


def bge(host: Path) -> Path:
    directory = host / "bge"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(BGE_M3))
    with (directory / "pytorch_model.bin").open("wb") as file:
        file.truncate(2_271_145_830)
    return directory


def profile(host: Path, name: str, weights: Path, *lines: str) -> None:
    text = "\n".join([f'model = "{name}"', f'weights = "{weights}"', *lines])
    (host / "profiles" / f"{name}_0.toml").write_text(text)


def test_the_shipped_profiles_without_weights(host: Path) -> None:
    result = llmd("--config", SHIPPED, "plan", "--gpus", "2x24GiB")
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    said = " ".join(result.stdout.split())
    assert "weights not here; `llmd plan` can tell after its first start (looked in" in said
    assert str(host / ".cache" / "huggingface") in result.stdout.replace("\n", "")
    assert "llama_1         1     18.5" in result.stdout
    assert "together, night\n  qwen_72b_dual" in result.stdout
    assert llmd("--config", SHIPPED, "plan", "--gpus", "24GiB").exit_code == 1


def test_a_table_that_fits_80_columns(host: Path) -> None:
    weights = llama(host)
    profile(host, "good", weights, "gpus = [0]", "max_model_len = 8192")
    profile(host, "long", weights, "gpus = [1]", "max_model_len = 131072", 'vram = "18.5 GiB"')
    profile(host, "bge", bge(host), 'task = "embed"', "gpus = [1]", "max_model_len = 8192", 'vram = "3 GiB"')
    result = plan(host, "--gpus", "2x24GiB")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("room for engines: GPU 0 23.75 GiB, GPU 1 23.75 GiB, host ")
    good, long = (
        next(line.split() for line in lines if line.startswith(f"{name}_0 ")) for name in ("good", "long")
    )
    assert (good[1], good[2], good[3], good[5], good[-1]) == ("0", "22.1", "15.0", "128.0", "fits")
    assert long[-1] == "misfit"
    assert any(line.startswith("long_0: max_model_len = ") and line.endswith(" fits") for line in lines)
    assert "  bge_0 + good_0" in lines


def test_everything_for_scripts(host: Path) -> None:
    profile(host, "a", llama(host), "gpus = [0]", "max_model_len = 8192")
    result = plan(host, "--gpus", "0:24GiB,1:48GiB", "--json", "a_0")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert told["ok"] is True
    assert [(device["index"], device["total"]) for device in told["devices"][:2]] == [
        (0, 24 * GIB),
        (1, 48 * GIB),
    ]
    [a] = told["profiles"]
    assert (a["profile"], a["verdict"], a["mends"]) == ("a_0", "fits", [])
    assert (a["footprint"]["weights"], a["footprint"]["kv_per_token"]) == (8_030_261_248 * 2, 131072)
    assert a["footprint"]["work_is"] == "an estimate"
    assert told["sets"] == {"": [["a_0"]]}


def test_what_the_last_start_has_logged(host: Path) -> None:
    profile(host, "a", llama(host), "gpus = [0]", "max_model_len = 8192")
    (host / "state" / "logs").mkdir(parents=True)
    (host / "state" / "logs" / "a_0.log").write_text(LOG)
    [a] = json.loads(plan(host, "--gpus", "24GiB", "--json").stdout)["profiles"]
    assert a["footprint"]["work_is"] == "logged by its last start"
    assert a["footprint"]["work"] / GIB == pytest.approx(1.05)


def test_weights_that_cannot_be_believed(host: Path) -> None:
    weights = llama(host)
    (weights / "model.safetensors").write_bytes(b"not at all")
    profile(host, "a", weights, "gpus = [0]")
    [a] = json.loads(plan(host, "--gpus", "24GiB", "--json").stdout)["profiles"]
    assert a["verdict"] == "as stated"
    assert a["reason"] == f"{weights}/model.safetensors: this is no safetensors file, or it is not whole"


def test_a_profile_that_does_not_exist(host: Path) -> None:
    profile(host, "a", host / "none", "gpus = [0]")
    result = plan(host, "--gpus", "24GiB", "b")
    assert (result.exit_code, result.stderr) == (
        1,
        "no model or profile is called 'b'; there are: a, a_0\n",
    )


@pytest.mark.parametrize("cards", ["", "3xx", "0:24GiB,0:48GiB", "24", "0GiB", "900x1GiB", "a:24GiB"])
def test_cards_that_are_not_described(host: Path, cards: str) -> None:
    assert plan(host, "--gpus", cards).exit_code == 2


def test_ways_to_describe_cards() -> None:
    def found(text: str) -> list[tuple[int | None, int]]:
        return [(card.index, card.total) for card in describe(text)]

    assert found("2x24GiB") == found("2 x 24 GiB") == found("24GiB,24GiB") == [(0, 24 * GIB), (1, 24 * GIB)]
    assert found("0:24GiB, 3:80GB") == [(0, 24 * GIB), (3, 80 * 10**9)]


def test_a_setting_as_it_stands_in_a_profile() -> None:
    assert setting({"vram": 2 * GIB, "max_model_len": 24576}) == 'vram = "2048 MiB" and max_model_len = 24576'
    assert setting({"gpu_memory_utilization": 0.93}) == "gpu_memory_utilization = 0.93"


def command(host: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, as NVML is loaded once for all."""
    called = ["-c", "from supervisor.cli import main; main()", "--config", str(host / "llmd.toml")]
    program = [sys.executable, *called, *(words or ("plan",))]
    return subprocess.run(
        program, check=False, capture_output=True, text=True, env=os.environ | env, timeout=60
    )


@pytest.mark.skipif(shutil.which("cc") is None, reason="the stand-in NVML needs a C compiler (cc)")
def test_the_cards_of_this_host(host: Path) -> None:
    profile(host, "a", llama(host), "gpus = [1]", "max_model_len = 8192")
    cards, library = FakeGpus(host / "cards"), build(host)
    found = command(host, **cards.env(library))
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.startswith("room for engines: GPU 0 23.75 GiB, GPU 1 23.75 GiB")
    cards.host(init="not_loaded")
    unread = command(host, **cards.env(library))
    assert unread.returncode == 1
    assert unread.stderr == (
        "the GPUs of this host cannot be read: the NVIDIA driver is not loaded;"
        " describe them, such as --gpus 2x24GiB\n"
    )


def test_help_says_what_the_columns_are() -> None:
    said = " ".join(llmd("plan", "--help").stdout.split())
    for heading in ("NEEDS", "WEIGHTS", "WORK", "KV/1K", "KV TOKENS", "FULL", "ALONE", '"as stated"'):
        assert heading in said


def test_a_models_name_stands_for_its_profiles(host: Path) -> None:
    weights = llama(host)
    profile(host, "a", weights, "gpus = [0]", "max_model_len = 8192")
    profile(host, "b", weights, "gpus = [0]", "max_model_len = 8192")
    told = json.loads(plan(host, "--gpus", "24GiB", "--json", "a").stdout)
    assert [each["profile"] for each in told["profiles"]] == ["a_0"]


@pytest.mark.parametrize(
    ("setting", "needs"), [("gpu_memory_utilization = 0.9", "21.6,43.2"), ('vram = "18 GiB"', "18.0,36.0")]
)
def test_on_cards_of_different_size_each_need_is_told(host: Path, setting: str, needs: str) -> None:
    """vLLM takes one share of every card."""
    profile(host, "a", llama(host), "gpus = [0, 1]", "max_model_len = 8192", setting)
    lines = plan(host, "--gpus", "24GiB,48GiB").stdout.splitlines()
    assert next(line.split() for line in lines if line.startswith("a_0 "))[:3] == ["a_0", "0,1", needs]
