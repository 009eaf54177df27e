"""`llmd add` as it is called: from a folder, the cache or a hub to a profile that llmd takes, or to a reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from supervisor.cli import main
from supervisor.config import load
from supervisor.core.devices import GIB
from tests.daemon import QUICK, Llmd, profile
from tests.host.test_weights import MODEL, ONE, write_header
from tests.planning.test_footprint import LLAMA_8B
from tests.standin.hub import Hub
from tests.standin.nvml import FakeGpus, build
from tests.test_plan_command import command, host, llama

__all__ = ["host"]

NAME = "meta-llama/Llama-3.1-8B-Instruct"


@pytest.fixture
def folder(host: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A download of Llama 3.1 8B, all of it headers; nothing here ever asks the hub itself."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    folder = llama(host)
    config = LLAMA_8B | {"architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    return folder


def add(host: Path, *args: object, stdin: str = "") -> Result:
    called = ["--config", host / "llmd.toml", "--socket", host / "none", "add", *args]
    return CliRunner().invoke(main, [str(arg) for arg in called], input=stdin)


def names(host: Path) -> list[str]:
    return sorted(file.name for file in (host / "profiles").iterdir())


def test_a_folder(host: Path, folder: Path) -> None:
    result = add(host, folder, "--cards", "2x24GiB", "--yes")
    assert (result.exit_code, result.stderr) == (0, "")
    written = load(host / "llmd.toml").profiles["llama_0"]
    assert (written.model, written.weights, written.gpus) == ("llama", str(folder), (0,))
    assert (written.max_model_len, written.max_concurrent) == (32768, 3)
    text = (host / "profiles" / "llama_0.toml").read_text()
    assert text in result.stdout
    assert "#   weights          14.96 GiB\n" in text
    assert "gpus = [0]\n" in text
    assert result.stdout.startswith("room for engines: GPU 0 23.75 GiB")
    assert "no daemon is running" in result.stdout
    planned = CliRunner().invoke(main, ["--config", str(host / "llmd.toml"), "plan", "--gpus", "2x24GiB"])
    assert planned.exit_code == 0


def test_the_next_one_goes_to_the_other_card(host: Path, folder: Path) -> None:
    for model in ("a", "b"):
        assert add(host, folder, "--cards", "2x24GiB", "--yes", "--model", model).exit_code == 0
    assert names(host) == ["a_0.toml", "b_1.toml"]


def test_a_dry_run_writes_nothing(host: Path, folder: Path) -> None:
    result = add(host, folder, "--cards", "24GiB", "--dry-run")
    assert (result.exit_code, names(host)) == (0, [])
    assert 'model = "llama"' in result.stdout


@pytest.mark.parametrize(
    ("answer", "code", "there"), [("y\n", 0, ["llama_0.toml"]), ("n\n", 0, []), ("", 1, [])]
)
def test_a_person_is_asked(host: Path, folder: Path, answer: str, code: int, there: list[str]) -> None:
    result = add(host, folder, "--cards", "24GiB", stdin=answer)
    assert (result.exit_code, names(host)) == (code, there)


def test_a_profile_is_never_overwritten(host: Path, folder: Path) -> None:
    (host / "profiles" / "llama_0.toml").write_text('model = "x"\nweights = "w"\ngpus = [0]\n')
    before = (host / "profiles" / "llama_0.toml").read_text()
    result = add(host, folder, "--cards", "24GiB", "--yes")
    assert result.exit_code == 1
    assert "is there already, and is not overwritten; write another --name" in result.stderr
    assert (host / "profiles" / "llama_0.toml").read_text() == before
    assert add(host, folder, "--cards", "24GiB", "--yes", "--name", "llama_b").exit_code == 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--name", "Big Llama"), "is no name for a profile"),
        (("--name", "../outside"), "is no name for a profile"),
        (("--model", "two words"), "is no model name"),
        (("--model", "old_0"), "has the name of another profile"),
    ],
)
def test_what_the_configuration_would_not_bear_is_not_written(
    host: Path, folder: Path, flags: tuple[str, ...], said: str
) -> None:
    (host / "profiles" / "old_0.toml").write_text('model = "old"\nweights = "w"\ngpus = [0]\n')
    result = add(host, folder, "--cards", "24GiB", "--yes", *flags)
    assert (result.exit_code, names(host)) == (1, ["old_0.toml"])
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_for_scripts(host: Path, folder: Path) -> None:
    told = json.loads(add(host, folder, "--cards", "12GiB,12GiB", "--json", "--yes").stdout)
    assert (told["profile"], told["written"], told["read_from"]) == ("llama_dual", True, str(folder))
    assert told["toml"] == (host / "profiles" / "llama_dual.toml").read_text()
    assert told["plan"]["profiles"][0]["verdict"] == "fits"
    refused = add(host, folder, "--cards", "8GiB", "--json", "--dry-run")
    assert refused.exit_code == 1
    assert "fits nowhere here; GPU 0: weights take" in json.loads(refused.stdout)["error"]["message"]


def test_the_cache_before_the_hub(host: Path, folder: Path) -> None:
    snapshot = host / ".cache/huggingface/hub/models--meta-llama--Llama-3.1-8B-Instruct/snapshots/main"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(folder)
    result = add(host, NAME, "--cards", "24GiB", "--yes")
    assert (result.exit_code, result.stderr) == (0, "")
    written = load(host / "llmd.toml").profiles["llama-3-1-8b-instruct_0"]
    assert (written.weights, written.model) == (NAME, "llama-3.1-8b-instruct")
    assert written.tool_parser == "llama3_json"


def test_the_hub_where_a_download_was_broken_off(
    host: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = host / ".cache/huggingface/hub/models--meta-llama--Llama-3.1-8B-Instruct/snapshots/main"
    snapshot.mkdir(parents=True)
    shutil.copy(folder / "config.json", snapshot)
    with Hub({NAME: folder}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        told = json.loads(add(host, NAME, "--cards", "24GiB", "--dry-run", "--json").stdout)
    assert told["read_from"] == f"{hub.url}/{NAME}"
    assert hub.sent < 4 << 20


def test_a_gated_model_says_what_to_set(host: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Hub({NAME: folder}, gated=frozenset([NAME])) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        refused = add(host, NAME, "--cards", "24GiB", "--yes")
        assert (refused.exit_code, refused.stderr.endswith("set HF_TOKEN\n")) == (1, True)
        (host / "llmd.toml").write_text('[engine]\nenv = { HF_TOKEN = "hf_good" }\n')
        assert add(host, NAME, "--cards", "24GiB", "--dry-run").exit_code == 0


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ("/nowhere", "there is no folder /nowhere"),
        ("a b", "is neither a folder nor a name such as"),
        ("org/name", "http://127.0.0.1:9 cannot be reached"),
    ],
)
def test_weights_that_are_nowhere(host: Path, folder: Path, weights: str, said: str) -> None:
    result = add(host, weights, "--cards", "24GiB", "--yes")
    assert result.exit_code == 1
    assert said in result.stderr


@pytest.mark.parametrize("flags", [("--json",), ("--cpu", "--gpu", "0", "--yes"), ("--cards", "24")])
def test_usage(host: Path, folder: Path, flags: tuple[str, ...]) -> None:
    assert add(host, folder, *flags).exit_code == 2


def test_a_profile_that_no_mode_has_is_told(host: Path, folder: Path) -> None:
    (host / "profiles" / "old_0.toml").write_text('model = "old"\nweights = "w"\ngpus = [0]\n')
    (host / "llmd.toml").write_text('[modes.day]\nstart = "06:00"\nprofiles = ["old_0"]\n')
    result = add(host, folder, "--cards", "24GiB", "--dry-run")
    assert "note: no mode has it: add llama_0 to the profiles of one" in result.stdout


@pytest.mark.skipif(shutil.which("cc") is None, reason="the stand-in NVML needs a C compiler (cc)")
def test_the_cards_of_this_host(host: Path, folder: Path) -> None:
    cards, library = FakeGpus(host / "cards", total=24 * GIB), build(host)
    words = ("add", str(folder), "--yes", "--gpu", "1")
    done = command(host, *words, **cards.env(library))
    assert (done.returncode, done.stderr) == (0, "")
    assert "# Proposed by `llmd add` for GPU 1 (NVIDIA GeForce RTX 4090, 24.00 GiB)" in done.stdout
    assert names(host) == ["llama_1.toml"]
    cards.host(init="not_loaded")
    unread = command(host, *words, "--name", "other", **cards.env(library))
    assert unread.returncode == 1
    said = "the NVIDIA driver is not loaded; describe cards, such as --cards 2x24GiB, or write --cpu"
    assert said in unread.stderr


def test_a_running_daemon_serves_it_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MODEL | {"architectures": ["LlamaForCausalLM"]}))
    write_header(folder / "model.safetensors", ONE)
    llmd = Llmd({"tiny_0": profile("tiny")}, **QUICK)
    try:
        done = llmd.start().run("add", str(folder), "--cpu", "--yes", "--name", "new_0", "--model", "new")
        assert (done.returncode, done.stderr) == (0, "")
        assert f"{llmd.home}/profiles/new_0.toml is written; the daemon has read it:\n" in done.stdout
        assert "new_0" in done.stdout.splitlines()[-1]
        assert llmd.engine("new_0")["state"] == "cold"
    finally:
        llmd.close()
