"""From keys to sources, and that whatever cannot be told apart stays out."""

from __future__ import annotations

from pathlib import Path

import pytest
from multidict import CIMultiDict

from supervisor.config import Config, Key
from supervisor.config.secrets import digest, digests
from supervisor.errors import Unauthorized
from supervisor.web.auth import Keyring, presented_key


def config(**keys: Key) -> Config:
    return Config(path=Path("llmd.toml"), keys=keys)


def test_keys_from_environment_file_and_hash(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from-file\n")
    keys = config(
        webui=Key(env="WEBUI_API_KEY"),
        n8n=Key(file=tmp_path / "key"),
        ci=Key(hash=f"sha256:{digest('hashed')}"),
    )
    ring = Keyring.of(keys, {"WEBUI_API_KEY": "from-env"})
    asked = {key: ring.identify(key) for key in ("from-env", "from-file", "hashed")}
    assert asked == {"from-env": "webui", "from-file": "n8n", "hashed": "ci"}


@pytest.mark.parametrize("key", [None, "", "wrong", "secret ", "sécret", "\udcff"])
def test_other_keys_are_refused(key: str | None) -> None:
    ring = Keyring.of(config(a=Key(env="A")), {"A": "secret"})
    with pytest.raises(Unauthorized) as caught:
        ring.identify(key)
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")


def test_the_digest_itself_is_no_key() -> None:
    ring = Keyring.of(config(a=Key(env="A")), {"A": "secret"})
    with pytest.raises(Unauthorized):
        ring.identify(digest("secret"))


def test_without_keys_everyone_is_the_default_source() -> None:
    ring = Keyring.of(config(), {})
    assert [ring.identify(None), ring.identify("anything")] == ["default", "default"]


@pytest.mark.parametrize("environ", [{}, {"A": ""}, {"A": "  "}])
@pytest.mark.parametrize("key", [None, "", "  ", "anything"])
def test_keys_that_cannot_be_found_let_nobody_in(environ: dict[str, str], key: str | None) -> None:
    ring = Keyring.of(config(a=Key(env="A"), b=Key(file=Path("/nowhere/key"))), environ)
    with pytest.raises(Unauthorized):
        ring.identify(key)


def test_a_key_that_two_sources_share_is_the_first_ones() -> None:
    assert digests(config(a=Key(env="A"), b=Key(env="B")), {"A": "x", "B": "x"}) == {digest("x"): "a"}


def test_no_secret_is_shown() -> None:
    ring = Keyring.of(config(a=Key(env="A")), {"A": "secret"})
    assert digest("secret") not in repr(ring)
    with pytest.raises(Unauthorized) as caught:
        ring.identify("hunter2")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ({"Authorization": "Bearer abc"}, "abc"),
        ({"authorization": "bearer  abc "}, "abc"),
        ({"X-Api-Key": "abc"}, "abc"),
        ({"Authorization": "Basic abc", "x-api-key": "def"}, "def"),
        ({"Authorization": "Bearer ", "x-api-key": "def"}, "def"),
        ({"Authorization": "Bearer abc", "x-api-key": "def"}, "abc"),
        ({"Authorization": "abc"}, None),
        ({"x-api-key": " "}, None),
        ({}, None),
    ],
)
def test_where_a_key_is_presented(headers: dict[str, str], key: str | None) -> None:
    assert presented_key(CIMultiDict(headers)) == key
