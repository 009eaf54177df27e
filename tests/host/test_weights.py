"""Where weights are found, and headers that are torn, hostile or of something else."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from supervisor.config import Config, EngineDefaults, Profile
from supervisor.errors import OperatorError
from supervisor.host.weights import HEADER_LIMIT, locate, read_checkpoint, read_header
from supervisor.planning.checkpoint import Tensor

MODEL = {
    "model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8, "vocab_size": 16,
}  # fmt: skip
ONE = {"w": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}}


def profile(weights: str = "org/name", **fields: object) -> Profile:
    return Profile.model_validate({"name": "a", "model": "m", "weights": weights, "gpus": (0,), **fields})


def config(**env: str) -> Config:
    return Config(path=Path("llmd.toml"), engine=EngineDefaults(env=env))


def write_header(file: Path, header: object, data: int = 12) -> Path:
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))
    return file


def download(cache: Path, commit: str = "c0ffee", ref: str | None = "main") -> Path:
    """The cache as huggingface_hub leaves it: files are links to blobs."""
    model = cache / "models--org--name"
    snapshot = model / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (model / "blobs").mkdir(exist_ok=True)
    (model / "blobs" / commit).write_text(json.dumps(MODEL))
    (snapshot / "config.json").symlink_to(model / "blobs" / commit)
    write_header(snapshot / "model.safetensors", ONE)
    if ref is not None:
        (model / "refs").mkdir(exist_ok=True)
        (model / "refs" / ref).write_text(commit)
    return snapshot


# --- Where ---


def test_the_cache_is_found_as_the_engine_would(tmp_path: Path) -> None:
    snapshot = download(tmp_path / "hub")
    home, hub = {"HF_HOME": str(tmp_path)}, {"HF_HUB_CACHE": str(tmp_path / "hub")}
    assert locate(profile(), config(), home) == snapshot
    assert locate(profile(), config(), hub) == snapshot
    assert locate(profile(), config(**home), {"HF_HOME": "/nowhere"}) == snapshot
    assert locate(profile(env=home), config(HF_HOME="/nowhere"), {}) == snapshot
    assert locate(profile(), config(), home | {"HF_HUB_CACHE": "/nowhere"}) is None
    assert locate(profile(args=("--download-dir", str(tmp_path / "hub"))), config(), {}) == snapshot


def test_the_cache_below_the_home_directory(tmp_path: Path) -> None:
    snapshot = download(tmp_path / ".cache" / "huggingface" / "hub")
    assert locate(profile(), config(), {"HOME": str(tmp_path)}) == snapshot
    assert locate(profile(), config(), {"HOME": str(tmp_path), "HF_HOME": "~/.cache/huggingface"}) == snapshot
    assert locate(profile(), config(), {"XDG_CACHE_HOME": str(tmp_path / ".cache")}) == snapshot


def test_a_revision_is_a_branch_or_a_commit(tmp_path: Path) -> None:
    main, other = download(tmp_path), download(tmp_path, "beef", "v2")
    env = {"HF_HUB_CACHE": str(tmp_path)}
    assert locate(profile(), config(), env) == main
    assert locate(profile(revision="v2"), config(), env) == other
    assert locate(profile(revision="beef"), config(), env) == other
    assert locate(profile(revision="v3"), config(), env) is None


def test_a_directory_of_weights(tmp_path: Path) -> None:
    assert locate(profile(str(tmp_path)), config(), {}) == tmp_path
    assert locate(profile(str(tmp_path / "none")), config(), {}) is None


# --- What ---


def test_tensors_of_a_file(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        **ONE,
        "s": {"dtype": "I32", "shape": [], "data_offsets": [12, 16]},
    }
    file = write_header(tmp_path / "model.safetensors", header, 16)
    assert read_header(file) == (Tensor("w", "F16", (2, 3), 12), Tensor("s", "I32", (), 4))


def test_shards_of_an_index(tmp_path: Path) -> None:
    snapshot = download(tmp_path)
    (snapshot / "model.safetensors").rename(snapshot / "model-1.safetensors")
    write_header(snapshot / "model-2.safetensors", {"v": ONE["w"]})
    write_header(snapshot / "stray.safetensors", {"stray": ONE["w"]})
    index = {"weight_map": {"w": "model-1.safetensors", "v": "model-2.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    assert [tensor.name for tensor in read_checkpoint(snapshot).tensors] == ["w", "v"]


def test_a_download_that_is_not_finished(tmp_path: Path) -> None:
    snapshot = download(tmp_path)
    index = {"weight_map": {"w": "model.safetensors", "v": "model-2.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(OperatorError, match="1 of 2 files of the weights are not here"):
        read_checkpoint(snapshot)


def test_an_index_that_leads_out_of_its_directory(tmp_path: Path) -> None:
    snapshot = download(tmp_path)
    index = {"weight_map": {"w": "../../../secret.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(OperatorError, match="1 of 1 files"):
        read_checkpoint(snapshot)


def test_consolidated_files_are_doubles(tmp_path: Path) -> None:
    snapshot = download(tmp_path)
    write_header(snapshot / "consolidated.safetensors", {"again": ONE["w"]})
    assert [tensor.name for tensor in read_checkpoint(snapshot).tensors] == ["w"]


def test_bin_files_by_their_size(tmp_path: Path) -> None:
    snapshot = download(tmp_path)
    (snapshot / "model.safetensors").unlink()
    (snapshot / "pytorch_model.bin").write_bytes(bytes(100))
    (snapshot / "training_args.bin").write_bytes(bytes(7))
    found = read_checkpoint(snapshot)
    assert (found.tensors, found.lump) == ((), 100)


def test_no_weights_at_all(tmp_path: Path) -> None:
    snapshot = download(tmp_path)
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(OperatorError, match="holds no weights"):
        read_checkpoint(snapshot)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x02\0\0",
        struct.pack("<Q", 0),
        struct.pack("<Q", 50) + b"{}",
        struct.pack("<Q", HEADER_LIMIT + 1) + b"{}",
        struct.pack("<Q", 2**64 - 1) + b"{}",
        struct.pack("<Q", 4) + b"[[[[",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 3) + b"\xff\xfe\xfd",
        struct.pack("<Q", 60_000) + b"[" * 60_000,
    ],
)
def test_what_is_no_safetensors_file(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(OperatorError, match=str(file)):
        read_header(file)


def test_a_header_over_the_bound_is_not_read(tmp_path: Path) -> None:
    """The file is as long as it says, but sparse."""
    file = tmp_path / "model.safetensors"
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", HEADER_LIMIT + 1))
        opened.truncate(HEADER_LIMIT + 9)
    with pytest.raises(OperatorError, match="no safetensors file"):
        read_header(file)


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        {"dtype": "F16", "shape": [2]},
        {"dtype": 5, "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F16", "shape": 2, "data_offsets": [0, 4]},
        {"dtype": "F16", "shape": [-2], "data_offsets": [0, 4]},
        {"dtype": "F16", "shape": ["2"], "data_offsets": [0, 4]},
        {"dtype": "F16", "shape": [2], "data_offsets": [4, 0]},
        {"dtype": "F16", "shape": [2], "data_offsets": [0, 4, 8]},
        {"dtype": "F16", "shape": [2], "data_offsets": [0, 13]},
        {"dtype": "F16", "shape": [2], "data_offsets": [0.0, 4.0]},
    ],
)
def test_entries_that_make_no_sense(tmp_path: Path, entry: object) -> None:
    file = write_header(tmp_path / "model.safetensors", {"w": entry})
    with pytest.raises(OperatorError, match="the entry of 'w' makes no sense"):
        read_header(file)


def test_a_config_that_is_not_json(tmp_path: Path) -> None:
    snapshot = download(tmp_path)
    (snapshot / "config.json").unlink()
    with pytest.raises(OperatorError, match=r"config\.json"):
        read_checkpoint(snapshot)
    (snapshot / "config.json").write_text("{")
    with pytest.raises(OperatorError, match="this is not JSON"):
        read_checkpoint(snapshot)
