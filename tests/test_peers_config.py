"""[peers.NAME]: what may be written, with the line of what may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from supervisor.config import Config, load, warnings
from supervisor.config.secrets import peer_key
from supervisor.core.command import environment
from supervisor.errors import ConfigError

LLAMA = 'model = "llama"\nweights = "w"\ngpus = [0]\n'


def write(folder: Path, text: str) -> Path:
    (folder / "profiles").mkdir()
    (folder / "profiles" / "llama_0.toml").write_text(LLAMA)
    path = folder / "llmd.toml"
    path.write_text(text)
    return path


def one(folder: Path, lines: str = "") -> Config:
    return load(write(folder, f'[peers.dgx]\nurl = "https://dgx:8000/v1/"\n{lines}'))


def test_a_url_is_kept_without_its_v1(tmp_path: Path) -> None:
    assert one(tmp_path).peers["dgx"].url == "https://dgx:8000"


def test_a_key_file_is_relative_to_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "dgx.key").write_text("sk-far\n")
    (tmp_path / "dgx.key").chmod(0o600)
    assert peer_key(one(tmp_path, 'key_file = "dgx.key"').peers["dgx"], {}) == ("sk-far", None)


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ('[peers.dgx]\nmodels = ["a"]', 1, "url is missing"),
        ('[peers.dgx]\nurl = "dgx:8000"', 2, "this is no URL of a server"),
        ('[peers.dgx]\nurl = "https://me:secret@dgx"', 2, "this is no URL of a server"),
        ('[peers.dgx]\nurl = "https://dgx"\nkey = "sk-secret"', 3, "unknown key"),
        ('[peers.dgx]\nurl = "https://dgx"\nkey_env = "A"\nkey_file = "b"', 1, "not in key_env and key_file"),
        ('[peers.dgx]\nurl = "https://dgx"\nmax_concurrent = 0', 3, "max_concurrent"),
        ('[peers.llama]\nurl = "https://dgx"', 1, "the name of a peer, and of a profile or model"),
        ('[peers.DGX]\nurl = "https://dgx"', 1, "no name for a peer"),
    ],
)
def test_what_is_wrong_is_told_with_its_line_and_no_secret(
    tmp_path: Path, text: str, line: int, what: str
) -> None:
    with pytest.raises(ConfigError) as error:
        load(write(tmp_path, text))
    (problem,) = error.value.problems
    assert problem.line == line
    assert what in str(problem)
    assert "secret" not in str(problem)


def test_a_key_that_is_not_there_or_goes_in_clear_is_warned_of(tmp_path: Path) -> None:
    text = (
        '[keys.me]\nenv = "ME"\n'
        '[peers.dgx]\nurl = "http://dgx:8000"\nkey_env = "DGX"\n'
        '[peers.spark]\nurl = "http://127.0.0.1:8000"\nkey_env = "GONE"\n'
        '[engine]\ncommand = ["true"]\n'
    )
    config = load(write(tmp_path, text))
    found = warnings(config, {"ME": "a", "DGX": "sk-far", "PATH": "/bin:/usr/bin"})
    assert [(problem.line, problem.what) for problem in found] == [
        (4, "the key for peer dgx goes over the network in clear"),
        (6, "the key for peer spark: GONE is not set in the environment"),
    ]


def test_an_engine_does_not_see_a_peers_key(tmp_path: Path) -> None:
    config = one(tmp_path, 'key_env = "DGX"')
    seen = environment(
        config.profiles["llama_0"],
        config,
        {"DGX": "sk-far", "HOME": "/"},
        directory=tmp_path,
        key="k",
        indices=(0,),
    )
    assert ("DGX" in seen, seen["HOME"]) == (False, "/")
