"""What differs between two configurations, for people. Pure; keys and variables are told to differ, never quoted."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel

from supervisor.config.models import Config, Server

LASTING = (
    "listen",
    "admin_socket",
    "admin_group",
    "state_dir",
    "header_timeout",
    "client_timeout",
    "llama_cpp",
)
"""Of [server]: what a daemon is born with, and keeps until it is started anew."""

_NAMED = ("keys", "peers", "modes", "profiles")
"""Tables of tables."""

_SECRET = frozenset({"env", "hash", "file", "key_env", "key_file"})
"""Whose values are not repeated: somebody will write the key itself there."""

_LONGEST = 60
"""Letters of a value in a sentence."""


@dataclass(frozen=True, slots=True)
class Change:
    """`place`: a table, such as `profiles.llama_0`. `keys`: (before, after), None for what is not told, in a table that
    changed. `restart`: the running daemon keeps what it has."""

    place: str
    how: Literal["added", "removed", "changed"]
    keys: Mapping[str, tuple[object, object] | None] = field(default_factory=dict)
    restart: bool = False

    def __str__(self) -> str:
        told = ", ".join(f"{key} {_words(values)}" for key, values in self.keys.items())
        return f"{self.place} {self.how}" + (f": {told}" if told else "") + (RESTART if self.restart else "")


RESTART = " (kept as it is until llmd is started again)"


def kept(running: Config, written: Config) -> Config:
    """What can hold from now on: `written`, with what lasts as it is in `running`."""
    lasting = {name: getattr(running.server, name) for name in LASTING}
    return written.model_copy(update={"server": written.server.model_copy(update=lasting)})


def differences(old: Config, new: Config, rotated: Collection[str] = ()) -> tuple[Change, ...]:
    """In the order of the file. `rotated`: tables such as `keys.n8n` whose secret is another one."""
    return tuple(_differences(old, new, rotated))


def _differences(old: Config, new: Config, rotated: Collection[str]) -> Iterator[Change]:
    for name in type(new).model_fields:
        before, after = getattr(old, name), getattr(new, name)
        if name in _NAMED:
            yield from _tables(name, before, after, rotated)
        elif isinstance(after, BaseModel) and before != after:
            yield from _table(name, before, after)


def _tables(
    table: str, before: Mapping[str, BaseModel], after: Mapping[str, BaseModel], rotated: Collection[str]
) -> Iterator[Change]:
    for name in sorted(before.keys() | after.keys()):
        place = f"{table}.{name}"
        if name not in before:
            yield Change(place, "added")
        elif name not in after:
            yield Change(place, "removed")
        else:
            keys = _keys(before[name], after[name]) | ({"secret": None} if place in rotated else {})
            if keys:
                yield Change(place, "changed", keys)


def _table(name: str, before: BaseModel, after: BaseModel) -> Iterator[Change]:
    keys = _keys(before, after)
    lasting = {key: values for key, values in keys.items() if isinstance(after, Server) and key in LASTING}
    if at_once := {key: values for key, values in keys.items() if key not in lasting}:
        yield Change(name, "changed", at_once)
    if lasting:
        yield Change(name, "changed", lasting, restart=True)


def _keys(before: BaseModel, after: BaseModel) -> dict[str, tuple[object, object] | None]:
    fields = [key for key in type(after).model_fields if getattr(before, key) != getattr(after, key)]
    old, new = _plain(before, fields), _plain(after, fields)
    return {key: None if key in _SECRET else (old[key], new[key]) for key in fields}


def _plain(model: BaseModel, fields: Collection[str]) -> dict[str, Any]:
    """As JSON has it: durations in seconds, sizes in bytes."""
    return model.model_dump(mode="json", include=set(fields))


def _words(values: tuple[object, object] | None) -> str:
    return "is another" if values is None else " -> ".join(map(_short, values))


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
