"""What differs between two configurations, in words; never a key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from supervisor.config import Config, Key, Peer, Profile, Server, differences, kept
from supervisor.config.difference import LASTING, RESTART


def config(**tables: Any) -> Config:
    return Config(path=Path("llmd.toml"), **tables)


def profile(name: str, **fields: Any) -> Profile:
    return Profile(name=name, model="llama", weights="w", gpus=(0,), **fields)


def words(old: Config, new: Config, *rotated: str) -> list[str]:
    return [str(change) for change in differences(old, new, rotated)]


def test_nothing_differs_from_itself():
    assert words(config(profiles={"a": profile("a")}), config(profiles={"a": profile("a")})) == []


def test_profiles_come_go_and_change_key_by_key():
    old = config(profiles={"a": profile("a"), "b": profile("b", idle_ttl=60.0)})
    new = config(profiles={"b": profile("b", idle_ttl=None, vram=1 << 30), "c": profile("c")})
    assert words(old, new) == [
        "profiles.a removed",
        "profiles.b changed: vram none -> 1 GiB, idle_ttl 1m -> off",
        "profiles.c added",
    ]


def test_what_lasts_is_told_apart_from_what_changes_at_once():
    old = config()
    new = config(server=Server(max_wait=5.0, listen=("127.0.0.1:1",), state_dir=Path("/x")))
    assert words(old, new) == [
        "server changed: max_wait 4m50s -> 5s",
        f'server changed: listen ["127.0.0.1:8000"] -> ["127.0.0.1:1"], state_dir "/var/lib/llmd" -> "/x"{RESTART}',
    ]
    runs = kept(old, new)
    assert runs.server == Server(max_wait=5.0)
    assert [change.restart for change in differences(runs, new)] == [True]


def test_what_lasts_are_keys_of_the_server():
    assert set(LASTING) <= Server.model_fields.keys()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Key(env="sk-one"), Key(env="sk-two")),
        (Key(hash="sha256:" + "1" * 64), Key(hash="sha256:" + "2" * 64)),
        (Key(file=Path("/sk-one")), Key(env="sk-two")),
    ],
)
def test_keys_are_never_quoted(before: Key, after: Key):
    (told,) = differences(config(keys={"bob": before}), config(keys={"bob": after}))
    assert not {"sk-one", "sk-two", "1111", "2222"} & set(repr(told).replace("/", '"').split('"'))
    assert "another" in str(told)
    assert all(values is None for values in told.keys.values())


def test_neither_are_variables_and_peers_keys():
    old = config(profiles={"a": profile("a", env={"HF_TOKEN": "hf_one"})}, peers={})
    new = config(profiles={"a": profile("a", env={"HF_TOKEN": "hf_two"})})
    assert words(old, new) == ["profiles.a changed: env is another"]
    far = {"url": "https://dgx"}
    (told,) = words(
        config(peers={"d": Peer(**far, key_env="A")}), config(peers={"d": Peer(**far, key_env="B")})
    )
    assert told == "peers.d changed: key_env is another"


def test_a_key_that_was_rotated_where_it_is_kept():
    same = config(keys={"bob": Key(env="A"), "eve": Key(env="B")})
    assert words(same, same, "keys.bob") == ["keys.bob changed: secret is another"]


def test_long_values_are_cut():
    old, new = config(profiles={"a": profile("a")}), config(profiles={"a": profile("a", args=("--x" * 99,))})
    (told,) = words(old, new)
    assert told.endswith("...")
    assert len(told) < 120
