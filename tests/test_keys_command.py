"""`llmd keys`: what it lists, what it makes, and that no secret is told twice."""

from __future__ import annotations

import json
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from supervisor.cli import main
from supervisor.config import load
from supervisor.config.secrets import digest

SECRET = "sk-of-webui"

DOCUMENT = """\
# Ours.
[keys.webui]
env = "LLMD_TEST_WEBUI"
[keys.n8n]
file = "n8n.key"
priority = "batch"
weight = 2
"""


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="llmd-", dir="/tmp"))
    (folder / "profiles").mkdir()
    (folder / "llmd.toml").write_text(DOCUMENT)
    (folder / "llmd.toml").chmod(0o640)
    monkeypatch.setenv("LLMD_TEST_WEBUI", SECRET)
    yield folder
    shutil.rmtree(folder)


def keys(place: Path, *args: str, stdin: str = "") -> Result:
    called = ["--config", place / "llmd.toml", "--socket", place / "none", "keys", *args]
    return CliRunner().invoke(main, [str(arg) for arg in called], input=stdin)


def test_the_list_tells_everything_but_the_secret(place: Path) -> None:
    result = keys(place)
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    webui, n8n = (line for line in result.stdout.splitlines() if line.startswith(("webui", "n8n")))
    assert webui.split() == ["webui", "env", "LLMD_TEST_WEBUI", "interactive", "api", "weight", "1", "yes"]
    assert n8n.startswith("n8n    file")
    assert "batch" in n8n
    assert "weight 2" in n8n
    assert f"{place}/n8n.key cannot be read" in "".join(keys(place, "--json").stdout)
    assert SECRET not in result.output + keys(place, "--json").output


def test_the_list_for_scripts(place: Path) -> None:
    webui, n8n = json.loads(keys(place, "--json").stdout)["keys"]
    assert webui == {
        "name": "webui",
        "kind": "env",
        "where": "LLMD_TEST_WEBUI",
        "priority": "interactive",
        "weight": 1.0,
        "hold": None,
        "scope": "api",
        "found": True,
        "trouble": None,
    }
    assert (n8n["kind"], n8n["found"]) == ("file", False)


def test_without_keys_it_says_what_that_means(place: Path) -> None:
    (place / "llmd.toml").write_text("")
    assert "everyone who reaches the port may ask" in keys(place).stdout


def test_a_new_key_is_printed_with_what_to_add(place: Path) -> None:
    result = keys(place, "new", "laptop", "--priority", "batch", "--scope", "read")
    assert result.exit_code == 0
    secret = result.stdout.strip()
    assert re.fullmatch(r"sk-[\w-]{43}", secret)
    table = result.stderr[result.stderr.index("[keys.laptop]") :]
    assert (place / "llmd.toml").read_text() == DOCUMENT
    (place / "llmd.toml").write_text(DOCUMENT + table)
    made = load(place / "llmd.toml").keys["laptop"]
    assert (made.hash, made.priority, made.scope) == (f"sha256:{digest(secret)}", "batch", "read")
    assert keys(place, "new", "other").stdout.strip() != secret


def test_a_new_key_is_written_beside_the_others(place: Path) -> None:
    result = keys(place, "new", "laptop", "--weight", "0.5", "--write")
    assert result.exit_code == 0
    written = (place / "llmd.toml").read_text()
    assert written.startswith(DOCUMENT)
    assert result.stdout.strip() not in written
    assert load(place / "llmd.toml").keys["laptop"].weight == 0.5
    assert stat.S_IMODE((place / "llmd.toml").stat().st_mode) == 0o640
    assert sorted(file.name for file in place.iterdir()) == ["llmd.toml", "profiles"]
    assert "no daemon is running" in result.stderr


def test_a_new_key_for_scripts(place: Path) -> None:
    told = json.loads(keys(place, "new", "laptop", "--json").stdout)
    assert told["toml"] == f'[keys.laptop]\nhash = "sha256:{digest(told["secret"])}"\n'
    assert (told["name"], told["written"]) == ("laptop", False)


@pytest.mark.parametrize("name", ["webui", "two words", "a.b", ""])
@pytest.mark.parametrize("flags", [(), ("--write",)])
def test_a_name_that_will_not_do_changes_nothing(place: Path, name: str, flags: tuple[str, ...]) -> None:
    result = keys(place, "new", name, *flags)
    assert (result.exit_code, result.stdout) == (1, "")
    assert (place / "llmd.toml").read_text() == DOCUMENT


def test_a_document_that_the_key_would_break_is_left_alone(place: Path) -> None:
    """Keys written as one inline table take no other table beside."""
    inline = 'keys = { webui = { env = "X" } }\n'
    (place / "llmd.toml").write_text(inline)
    result = keys(place, "new", "laptop", "--write")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "this is not TOML" in result.stderr
    assert (place / "llmd.toml").read_text() == inline


def test_the_hash_of_a_secret(place: Path) -> None:
    result = keys(place, "hash", stdin=f"{SECRET}\n")
    assert (result.exit_code, result.stdout) == (0, f"sha256:{digest(SECRET)}\n")
    assert json.loads(keys(place, "hash", "--json", stdin=SECRET).stdout) == {
        "hash": f"sha256:{digest(SECRET)}"
    }
    assert keys(place, "hash", stdin=" \n").exit_code == 1
