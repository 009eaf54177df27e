"""README.md says what is so: every key with its default, every command with its flags, an example that loads."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import click
import pytest
from pydantic import BaseModel

from supervisor import cli
from supervisor.config import Key, Mode, Peer, load
from supervisor.config.models import Document, ProfileFile

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()

NEEDED: dict[type[BaseModel], str] = {
    Key: 'env = "X"',
    Mode: 'start = "06:00"',
    Peer: 'url = "https://dgx:8000"',
    ProfileFile: 'model = "llama"\nweights = "w"',
}
"""The least that each model must be given."""

TABLES: dict[str, type[BaseModel]] = {
    **{f"[{name}]": type(value) for name, value in Document() if isinstance(value, BaseModel)},
    "[keys.NAME]": Key,
    "[peers.NAME]": Peer,
    "[modes.NAME]": Mode,
    "profiles/NAME.toml": ProfileFile,
}


def rows(title: str) -> dict[str, str]:
    """Key -> default, as the section's table has them."""
    section = README.partition(f"### `{title}`")[2].partition("\n#")[0]
    return dict(re.findall(r"^\| `(\w+)` \| (.*?) \| \S.* \|$", section, flags=re.MULTILINE))


def test_every_table_of_the_configuration_is_one_of_these() -> None:
    shown = {title.strip("[]").partition(".")[0] for title in TABLES if title.startswith("[")}
    assert shown == set(Document.model_fields)


@pytest.mark.parametrize("title", TABLES)
def test_every_key_is_there_and_no_other(title: str) -> None:
    assert sorted(rows(title)) == sorted(TABLES[title].model_fields)


@pytest.mark.parametrize("title", TABLES)
def test_every_default_is_the_one_that_holds(title: str) -> None:
    """Written out, the defaults make what leaving them out makes."""
    model, shown = TABLES[title], rows(title)
    written = [f"{key} = {value.strip('`')}" for key, value in shown.items() if value.startswith("`")]
    least = NEEDED.get(model, "")
    assert model.model_validate(tomllib.loads("\n".join([least, *written]))) == parsed(model, least)
    required = {key for key, field in model.model_fields.items() if field.is_required()}
    assert {key for key, value in shown.items() if value == "required"} == required
    unset = {key for key, field in model.model_fields.items() if field.default is None}
    assert {key for key, value in shown.items() if value == "none"} == unset


def parsed(model: type[BaseModel], text: str) -> BaseModel:
    return model.model_validate(tomllib.loads(text))


def test_the_example_loads(tmp_path: Path) -> None:
    examples = re.findall(r"```toml\n# (\S+)\n(.*?)```", README, flags=re.DOTALL)
    assert [name for name, _ in examples] == ["llmd.toml", "profiles/llama_0.toml"]
    (tmp_path / "profiles").mkdir()
    for name, text in examples:
        (tmp_path / name).write_text(text)
    config = load(tmp_path / "llmd.toml")
    assert (list(config.keys), list(config.profiles)) == (["webui"], ["llama_0"])


def below(group: click.Group, prefix: str = "") -> dict[str, click.Command]:
    """Every command by its words: a group's own, and those in it."""
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        found[prefix + name] = command
        found |= below(command, f"{prefix}{name} ") if isinstance(command, click.Group) else {}
    return found


COMMANDS = below(cli.main)


def test_what_it_links_to_is_there() -> None:
    links = re.findall(r"\]\(([^):#]+)\)", README)
    assert "docs/dashboard-dark.png" in links
    assert [link for link in links if not (ROOT / link).exists()] == []


def shown_commands() -> dict[str, list[str]]:
    """Command -> the rest of its row's first cell: arguments and flags."""
    found = re.findall(r"^\| `llmd ([a-z]+(?: [a-z]+)*)(.*?)` \|", README, flags=re.MULTILINE)
    return {command: words.replace("[", " ").replace("]", " ").split() for command, words in found}


def test_every_command_is_there_and_no_other() -> None:
    assert sorted(shown_commands()) == sorted(COMMANDS)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_flag_and_argument_of_a_command_is_the_one_it_takes(command: str) -> None:
    shown, parameters = shown_commands()[command], COMMANDS[command].params
    options = [
        {*option.opts, *option.secondary_opts} for option in parameters if isinstance(option, click.Option)
    ]
    assert {word for word in shown if word.startswith("-")} <= set().union(*options)
    assert all(names & set(shown) for names in options)
    arguments = [argument.name for argument in parameters if isinstance(argument, click.Argument)]
    assert [word.lower() for word in shown if word.isupper() and len(word) > 1] == arguments
