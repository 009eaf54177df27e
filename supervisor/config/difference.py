"""What differs between two configurations, for people. Pure; keys and variables are told to differ, never quoted."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator

from supervisor.config.models import Config, Server
from supervisor.config.quantities import as_duration, as_size, duration, duration_or_never, size

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


Keys = Mapping[str, tuple[object, object] | None]


@dataclass(frozen=True, slots=True)
class Change:
    """`place`: a table, such as `profiles.llama_0`. `keys`: (before, after), in seconds and bytes, None for what is not
    told, in a table that changed; `said`: the same as people write it. `restart`: the running daemon keeps what it
    has."""

    place: str
    how: Literal["added", "removed", "changed"]
    keys: Keys = field(default_factory=dict)
    said: Mapping[str, str] = field(default_factory=dict)
    restart: bool = False

    def __str__(self) -> str:
        told = ", ".join(f"{key} {self.said.get(key, 'is another')}" for key in self.keys)
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
                yield Change(place, "changed", keys, _said(after[name], keys))


def _table(name: str, before: BaseModel, after: BaseModel) -> Iterator[Change]:
    keys = _keys(before, after)
    lasting = {key: values for key, values in keys.items() if isinstance(after, Server) and key in LASTING}
    if at_once := {key: values for key, values in keys.items() if key not in lasting}:
        yield Change(name, "changed", at_once, _said(after, at_once))
    if lasting:
        yield Change(name, "changed", lasting, _said(after, lasting), restart=True)


def _keys(before: BaseModel, after: BaseModel) -> dict[str, tuple[object, object] | None]:
    fields = [key for key in type(after).model_fields if getattr(before, key) != getattr(after, key)]
    old, new = _plain(before, fields), _plain(after, fields)
    return {key: None if key in _SECRET else (old[key], new[key]) for key in fields}


def _plain(model: BaseModel, fields: Collection[str]) -> dict[str, Any]:
    """As JSON has it: durations in seconds, sizes in bytes."""
    return model.model_dump(mode="json", include=set(fields))


def _said(model: BaseModel, keys: Keys) -> dict[str, str]:
    told = {key: (values, _reader(type(model), key)) for key, values in keys.items() if values is not None}
    return {
        key: " -> ".join(_words(value, reader) for value in values) for key, (values, reader) in told.items()
    }


def _reader(kind: type[BaseModel], key: str) -> object:
    """What reads a key that is no plain value; it may be written inside `... | None`."""
    known = kind.model_fields[key]
    marks = [
        *known.metadata,
        *(m for part in get_args(known.annotation) for m in getattr(part, "__metadata__", ())),
    ]
    return next((mark.func for mark in marks if isinstance(mark, BeforeValidator)), None)


def _words(value: Any, reader: object) -> str:
    if value is None:
        return "off" if reader is duration_or_never else "none"
    if reader in (duration, duration_or_never):
        return as_duration(value)
    if reader is size:
        return as_size(value)
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
