"""Where a profile's weights lie on this host, and what the headers of their files say. Never the network.

The cache is laid out as huggingface_hub documents it: models--ORG--NAME/refs/REVISION holds a commit,
snapshots/COMMIT/ its files. Of a safetensors file only the header is read: a little-endian u64, its length, and
that many bytes of JSON (the format's own bound is 100 MB).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from supervisor.config import Config, Profile
from supervisor.config.models import option
from supervisor.errors import OperatorError
from supervisor.planning.architecture import read_architecture
from supervisor.planning.checkpoint import Checkpoint, Tensor
from supervisor.planning.nature import Model

HEADER_LIMIT = 100_000_000
"""Bytes of a safetensors header; longer ones are refused by the format's own library too."""

JSON_LIMIT = 64 << 20
TOKENIZER = "tokenizer_config.json"
INDEX = "model.safetensors.index.json"

_NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state")
"""What *.bin files are called that vLLM leaves alone."""


def locate(profile: Profile, config: Config, environ: Mapping[str, str]) -> Path | None:
    """The directory of the weights of `profile` as its engine would find it; None where they are not here.

    `environ` is what the engine would inherit.
    """
    place = whereabouts(profile, config, environ)
    if profile.weights.startswith("/"):
        return place if _there(place) else None
    model = place / f"models--{profile.weights.replace('/', '--')}"
    return _snapshot(model, profile.revision or "main")


def whereabouts(profile: Profile, config: Config, environ: Mapping[str, str]) -> Path:
    """Where the weights of `profile` are looked for: their own directory, or the hub's cache."""
    if profile.weights.startswith("/"):
        return Path(profile.weights)
    return _cache(profile, {**environ, **config.engine.env, **profile.env})


def read_checkpoint(directory: Path) -> Checkpoint:
    """What config.json and the headers say. Raises OperatorError, with the file, where they cannot be believed."""
    try:
        architecture = read_architecture(_json(directory / "config.json"))
        files = list(_safetensors(directory))
        if files:
            return Checkpoint(architecture, tuple(tensor for file in files for tensor in read_header(file)))
        lump = sum(file.stat().st_size for file in _pickled(directory))
    except OSError as error:
        raise OperatorError(f"{error.filename or directory}: {error.strerror}") from error
    if not lump:
        raise OperatorError(f"{directory}: holds no weights in safetensors or .bin files")
    return Checkpoint(architecture, lump=lump)


def read_model(directory: Path, weights: str) -> Model:
    """The model in a directory, called `weights` in a profile. Raises OperatorError."""
    checkpoint = read_checkpoint(directory)
    try:
        there = frozenset(_names(directory))
        config = _json(directory / "config.json")
        tokenizer = _json(directory / TOKENIZER) if TOKENIZER in there else {}
    except OSError as error:
        raise OperatorError(f"{error.filename or directory}: {error.strerror}") from error
    return Model(weights, str(directory), checkpoint, config, there, tokenizer)


def read_header(file: Path) -> tuple[Tensor, ...]:
    """The tensors of one safetensors file. Raises OperatorError where the header is torn or contradicts itself."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = header_length(file, opened.read(8), size)
        return tensors(file, opened.read(length), size)


def header_length(file: Path | str, start: bytes, size: int) -> int:
    """Bytes of the header behind the first eight, `start`, of a file of `size` bytes. Raises OperatorError."""
    length: int = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else 0
    if not 2 <= length <= min(HEADER_LIMIT, size - 8):
        raise OperatorError(f"{file}: this is no safetensors file, or it is not whole")
    return length


def tensors(file: Path | str, header: bytes, size: int) -> tuple[Tensor, ...]:
    """What the header of a file of `size` bytes lists. Raises OperatorError."""
    data = size - 8 - len(header)
    entries = json_object(file, header).items()
    return tuple(_tensor(file, name, entry, data) for name, entry in entries if name != "__metadata__")


def _cache(profile: Profile, environ: Mapping[str, str]) -> Path:
    """The hub's cache: --download-dir, then HF_HUB_CACHE, then HF_HOME/hub, then ~/.cache/huggingface/hub."""
    given = option(profile.args, "--download-dir") or environ.get("HF_HUB_CACHE")
    given = given or environ.get("HUGGINGFACE_HUB_CACHE")
    if given:
        return _expanded(given, environ)
    if home := environ.get("HF_HOME"):
        return _expanded(home, environ) / "hub"
    base = environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _expanded(base, environ) / "huggingface" / "hub"


def _expanded(path: str, environ: Mapping[str, str]) -> Path:
    if path == "~" or path.startswith("~/"):
        return Path(environ.get("HOME") or Path.home(), path[2:])
    return Path(path)


def _snapshot(model: Path, revision: str) -> Path | None:
    """The files of a branch, tag or commit; None where nothing of it was downloaded, or we may not look."""
    try:
        commit = (model / "refs" / revision).read_text().strip()
    except (OSError, ValueError):
        commit = revision
    directory = model / "snapshots" / commit
    return directory if _there(directory / "config.json") else None


def _there(path: Path) -> bool:
    """Not so where we may not look: a name too long, or a directory of another user's."""
    try:
        return path.exists()
    except OSError:
        return False


def _safetensors(directory: Path) -> Iterator[Path]:
    """The files that vLLM would load: those of the index, else all; consolidated ones are doubles."""
    there = _names(directory)
    index = _json(directory / INDEX) if INDEX in there else None
    yield from (directory / name for name in weight_files(directory, there, index))


def weight_files(where: Path | str, there: Collection[str], index: Mapping[str, Any] | None) -> list[str]:
    """Of the files `there` those in safetensors that vLLM would load. Raises OperatorError where some are missing."""
    if index is None:
        found = sorted(name for name in there if name.endswith(".safetensors") and "/" not in name)
        return [name for name in found if not name.startswith("consolidated")] or found
    listed = index.get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise OperatorError(f"{where}/{INDEX}: has no weight_map")
    names = sorted({str(name) for name in listed.values()})
    missing = [name for name in names if "/" in name or name not in there]
    if missing:
        raise OperatorError(f"{where}: {len(missing)} of {len(names)} files of the weights are not here")
    return names


def pickled_files(there: Collection[str]) -> list[str]:
    """Of the files `there` those that hold weights as PyTorch pickles them."""
    return sorted(name for name in there if name.endswith(".bin") and not name.startswith(_NO_WEIGHTS))


def _pickled(directory: Path) -> Iterator[Path]:
    yield from (directory / name for name in pickled_files(_names(directory)))


def _names(directory: Path) -> set[str]:
    """Of the files that are there: in the cache they are links, which may lead nowhere."""
    return {file.name for file in directory.iterdir() if file.exists()}


def _tensor(file: Path | str, name: str, entry: Any, data: int) -> Tensor:
    """One entry, its bytes inside the file's `data` bytes."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        good = isinstance(dtype, str) and all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    except (TypeError, KeyError, ValueError):
        good = False
    if not good or not begin <= end <= data:
        raise OperatorError(f"{file}: the entry of {name[:80]!r} makes no sense, or the file is not whole")
    return Tensor(name, dtype, shape, end - begin)


def _json(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        text = opened.read(JSON_LIMIT + 1)
    if len(text) > JSON_LIMIT:
        raise OperatorError(f"{file}: is larger than {JSON_LIMIT >> 20} MiB")
    return json_object(file, text)


def json_object(file: Path | str, text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise OperatorError(f"{file}: this is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise OperatorError(f"{file}: this is not a table in JSON")
    return value
