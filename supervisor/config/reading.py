"""From files to a Config, or to every problem in them at once. Foreign exceptions end here."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from supervisor.config import checks
from supervisor.config.lines import NOT_TOML, KeyPath, locate
from supervisor.config.models import Config, Document, Profile, ProfileFile, Server
from supervisor.errors import ConfigError, Problem

_Model = TypeVar("_Model", bound=BaseModel)

_WRITE = {
    "string_type": 'write a text in quotes, such as "{name}"',
    "int_type": "write a whole number",
    "float_type": "write a number",
    "bool_type": "write true or false",
    "tuple_type": "write a list in brackets, such as [...]",
    "too_short": "write at least {min_length}",
    "string_too_short": "write a text that is not empty",
    "is_instance_of": 'write a path in quotes, such as "/var/lib/llmd"',
    "dict_type": "write a table, such as {{ NAME = ... }}",
    "model_type": "write a table, [{path}] on a line of its own",
    "literal_error": "write {expected}",
    "greater_than": "write more than {gt}",
    "greater_than_equal": "write {ge} or more",
    "less_than": "write less than {lt}",
    "less_than_equal": "write {le} or less",
    "missing": "write {name} = ...",
}
"""pydantic's error types -> what a person should write; the names in braces are the error's own context."""

_SECRET = {"keys", "env", "peers"}
"""Tables whose values are not repeated: somebody will write the key itself there."""


def load(path: Path, drafts: Mapping[Path, str] = MappingProxyType({})) -> Config:
    """The configuration at `path` with its profiles. Raises ConfigError, which holds every problem found.

    `drafts`: texts to be read as if they stood in these files already.
    """
    path = path.absolute()
    reader = _Reader(drafts)
    raw = reader.toml(path)
    document = reader.model(path, Document, raw)
    files = reader.profile_files(path, raw)
    profiles = {name: profile for name, file in files.items() if (profile := reader.profile(name, file))}
    if document:
        config = _assemble(path, document, profiles, files)
        reader.problems += checks.contradictions(config)
        if not reader.problems:
            return config
    raise ConfigError(locate(reader.problems))


def admin_socket(path: Path) -> Path | None:
    """Where llmd.toml has the daemon's socket, if that can be told though the rest is wrong."""
    raw = _Reader({}).toml(path) or {}
    server = raw.get("server", {})
    given = server.get("admin_socket", Server().admin_socket) if isinstance(server, dict) else None
    return path.absolute().parent / given if isinstance(given, str | Path) else None


class _Reader:
    """Reads on past whatever is wrong and gathers it."""

    def __init__(self, drafts: Mapping[Path, str]) -> None:
        self.problems: list[Problem] = []
        self._drafts = drafts

    def toml(self, file: Path) -> dict[str, object] | None:
        if (draft := self._drafts.get(file)) is not None:
            return self._parse(file, draft)
        try:
            text = file.read_text(encoding="utf-8")
        except OSError as error:
            self._add(
                Problem(file, f"cannot be read: {error.strerror}", "write the file, or name another one")
            )
        except UnicodeDecodeError:
            self._add(Problem(file, "is not UTF-8 text", "write it in UTF-8"))
        else:
            return self._parse(file, text)
        return None

    def model(self, file: Path, model: type[_Model], raw: dict[str, object] | None) -> _Model | None:
        if raw is None:
            return None
        try:
            return model.model_validate(raw)
        except ValidationError as error:
            self.problems += [_problem(file, model, details) for details in error.errors()]
        return None

    def profile(self, name: str, file: Path) -> Profile | None:
        written = self.model(file, ProfileFile, self.toml(file))
        if written is None:
            return None
        template = written.chat_template
        places = {
            "weights": _beside(file, written.weights),
            "chat_template": None if template is None else _beside(file, template),
            "lora": {adapter: _beside(file, path) for adapter, path in written.lora.items()},
        }
        return Profile(**{**dict(written), "name": name, **places})

    def profile_files(self, path: Path, raw: dict[str, object] | None) -> dict[str, Path]:
        """Read from the raw document, so that a slip elsewhere in it hides no slip in a profile."""
        if raw is None:
            return {}
        server = raw.get("server")
        given = server.get("profiles") if isinstance(server, dict) else None
        folder = path.parent / (given if isinstance(given, str) else "profiles")
        try:
            files = {file.stem: file for file in folder.iterdir() if _is_profile(file)}
        except (OSError, ValueError) as error:
            what = f"{folder} cannot be read: {error}"
            self._add(Problem(path, what, "write the directory of your profiles", ("server", "profiles")))
            return {}
        files |= {draft.stem: draft for draft in self._drafts if draft.parent == folder}
        return dict(sorted(files.items()))

    def _parse(self, file: Path, text: str) -> dict[str, object] | None:
        try:
            return tomllib.loads(text)
        except NOT_TOML as error:
            said = re.search(r" \(at line (\d+)", str(error))
            line = int(said[1]) if said else text.rstrip().count("\n") + 1
            what = f"this is not TOML: {str(error).partition(' (at ')[0]}"
            self._add(Problem(file, what, 'write key = "value", each key once', line=line))
        return None

    def _add(self, problem: Problem) -> None:
        self.problems.append(problem)


def _beside(file: Path, named: str) -> str:
    """A path that begins with a dot is relative to the file that names it."""
    return str((file.parent / named).resolve()) if named.startswith(".") else named


def _is_profile(file: Path) -> bool:
    """Editors keep their own files beside, with a dot in front."""
    return file.suffix == ".toml" and not file.name.startswith(".")


def _assemble(path: Path, document: Document, profiles: dict[str, Profile], files: dict[str, Path]) -> Config:
    """Relative paths in llmd.toml are relative to it, wherever the daemon was started."""
    server = document.server
    paths = {name: path.parent / getattr(server, name) for name in ("admin_socket", "state_dir", "profiles")}
    keys = {
        source: key.model_copy(update={"file": path.parent / key.file}) if key.file else key
        for source, key in document.keys.items()
    }
    written = {name: getattr(document, name) for name in Document.model_fields}
    peers = {
        name: peer.model_copy(update={"key_file": path.parent / peer.key_file}) if peer.key_file else peer
        for name, peer in document.peers.items()
    }
    written |= {"server": server.model_copy(update=paths), "keys": keys, "peers": peers}
    return Config(**written, path=path, profiles=profiles, files=files)


def _problem(file: Path, model: type[BaseModel], error: ErrorDetails) -> Problem:
    key = error["loc"]
    name = ".".join(map(str, key))
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return Problem(file, f"unknown key {name}", _nearest(str(key[-1]), _allowed(model, key)), key)
    if kind == "missing":
        what = f"{name} is missing"
    elif kind == "llmd":
        what = f"{name}: {error['msg']}"
    elif _SECRET & set(key):
        what = f"{name} is of the wrong kind"
    else:
        what = f"{name} cannot be {error['input']!r}"
    instead = context.get("instead") or _WRITE.get(kind, error["msg"]).format(
        **{"path": name, "name": key[-1], **context}
    )
    return Problem(file, what, instead, key)


def _allowed(model: type[BaseModel], key: KeyPath) -> Iterable[str]:
    """The keys of the table that `key` stands in, which may be one of a dict of tables."""
    if len(key) > 1:
        inner = model.model_fields[str(key[0])].annotation
        inner = get_args(inner)[1] if get_origin(inner) is dict else inner
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            return inner.model_fields
    return model.model_fields


def _nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"write {close[0]}" if close else f"remove it, or write one of {', '.join(known)}"
