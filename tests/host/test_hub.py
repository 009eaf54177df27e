"""What is read of a model on a hub: headers alone, the token for the hub alone, and why there is nothing to read."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from supervisor.errors import OperatorError
from supervisor.host.hub import FIRST, describe, token
from supervisor.host.weights import read_model
from tests.host.test_weights import MODEL, ONE, write_header
from tests.standin.hub import Hub

NAME = "org/name"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards, the second with a header longer than what is asked for at first."""
    folder = tmp_path / "model"
    folder.mkdir()
    config = MODEL | {"architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    write_header(folder / "one.safetensors", ONE)
    many = {f"w{n}": {"dtype": "F16", "shape": [1], "data_offsets": [2 * n, 2 * n + 2]} for n in range(5000)}
    assert len(json.dumps(many)) > FIRST
    write_header(folder / "two.safetensors", many, 10_000)
    names = {"w": "one.safetensors", **dict.fromkeys(many, "two.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return folder


@pytest.fixture
def hub(folder: Path) -> Iterator[Hub]:
    with Hub({NAME: folder}) as hub:
        yield hub


def env(hub: Hub, **more: str) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url, "HF_HOME": "/nowhere", **more}


async def refusal(name: str, environ: dict[str, str], revision: str | None = None) -> str:
    with pytest.raises(OperatorError) as caught:
        await describe(name, revision, environ)
    return caught.value.message


async def test_a_hub_tells_what_a_download_would(hub: Hub, folder: Path) -> None:
    found = await describe(NAME, None, env(hub))
    assert found == replace(read_model(folder, NAME), where=f"{hub.url}/{NAME}")
    assert len(found.checkpoint.tensors) == 5001


async def test_weights_are_not_downloaded(hub: Hub, folder: Path) -> None:
    with (folder / "one.safetensors").open("r+b") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        file.truncate(8 + length + (1 << 30))
    await describe(NAME, None, env(hub))
    assert hub.sent < 4 << 20
    assert all(span for path, _, span in hub.asked if path.endswith(".safetensors"))


async def test_a_server_without_ranges_is_read_as_far_as_needed(hub: Hub, folder: Path) -> None:
    hub.ranges = False
    (folder / "two.safetensors").unlink()
    (folder / "model.safetensors.index.json").unlink()
    assert len((await describe(NAME, None, env(hub))).checkpoint.tensors) == 1


async def test_pickled_weights_are_counted_in_one(hub: Hub, folder: Path) -> None:
    for name in ("one.safetensors", "two.safetensors", "model.safetensors.index.json"):
        (folder / name).unlink()
    (folder / "pytorch_model.bin").write_bytes(bytes(1000))
    (folder / "training_args.bin").write_bytes(bytes(10))
    assert (await describe(NAME, None, env(hub))).checkpoint.lump == 1000


async def test_the_token_is_shown_to_the_hub_alone(hub: Hub) -> None:
    hub.gated = frozenset([NAME])
    await describe(NAME, None, env(hub, HF_TOKEN="hf_good"))
    shown = {path.startswith("/cdn/"): set[str | None]() for path, _, _ in hub.asked}
    for path, secret, _ in hub.asked:
        shown[path.startswith("/cdn/")].add(secret)
    assert shown == {False: {"hf_good"}, True: {None}}


async def test_a_gated_model(hub: Hub) -> None:
    hub.gated = frozenset([NAME])
    page = f"{hub.url}/{NAME} is for accounts that accepted its terms: accept them there; "
    assert await refusal(NAME, env(hub)) == page + "set HF_TOKEN"
    assert await refusal(NAME, env(hub, HF_TOKEN="hf_bad")) == page + "the account of HF_TOKEN may not"


@pytest.mark.parametrize("more", [{}, {"HF_TOKEN": "hf_good"}])
async def test_a_model_that_is_not_there(hub: Hub, more: dict[str, str]) -> None:
    """The hub answers 401 to whoever shows no token, as it does for what is private."""
    said = f"there is no {hub.url}/org/gone; is its name right? If it is private, set HF_TOKEN"
    assert await refusal("org/gone", env(hub, **more)) == said


async def test_a_revision_that_is_not_there(hub: Hub) -> None:
    assert await refusal(NAME, env(hub), "v9") == f"{hub.url}/{NAME} has no revision v9"


async def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and deaf: connections are refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        said = await refusal(NAME, {"HF_ENDPOINT": url})
    assert said.startswith(f"{url} cannot be reached: ")
    assert said.endswith("or name a folder that holds the weights")


async def test_what_is_meant_to_be_offline_asks_nobody(hub: Hub) -> None:
    assert "HF_HUB_OFFLINE forbids" in await refusal(NAME, env(hub, HF_HUB_OFFLINE="1"))
    assert hub.asked == []


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("config.json", None, "has no config.json"),
        ("config.json", "{", "this is not JSON"),
        ("one.safetensors", "no", "this is no safetensors file, or it is not whole"),
        ("two.safetensors", None, "1 of 2 files of the weights are not here"),
    ],
)
async def test_models_that_cannot_be_believed(
    hub: Hub, folder: Path, file: str, text: str | None, said: str
) -> None:
    (folder / file).unlink()
    if text is not None:
        (folder / file).write_text(text)
    assert said in await refusal(NAME, env(hub))


def test_where_a_token_is_found(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_file\n")
    (tmp_path / "other").write_text("hf_other\n")
    home = {"HF_HOME": str(tmp_path)}
    assert token(home) == "hf_file"
    assert token(home | {"HF_TOKEN_PATH": str(tmp_path / "other")}) == "hf_other"
    assert token(home | {"HF_TOKEN": "hf_env"}) == "hf_env"
    assert token({"HF_HOME": "/nowhere"}) is None
