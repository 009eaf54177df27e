"""API keys, found where the configuration says they are, and kept only as digests from then on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from supervisor.config.models import Config, Key, Peer

_OTHERS = 0o007


@dataclass(frozen=True, slots=True)
class Found:
    """`digest` is None where there is no key to be had; `trouble` says why, or what is unwise about it."""

    digest: str | None = None
    trouble: str | None = None


def digest(secret: str) -> str:
    """SHA-256 in hex. Bytes that are no UTF-8 arrive as surrogates, from the environment and from HTTP alike."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def find(key: Key, environ: Mapping[str, str]) -> Found:
    """Looks the key up. Whitespace around it is dropped: a file written with an editor ends in a newline."""
    if key.hash is not None:
        return Found(key.hash.removeprefix("sha256:"))
    if key.env is not None:
        secret = environ.get(key.env, "").strip()
        return Found(digest(secret)) if secret else Found(trouble=f"{key.env} is not set in the environment")
    assert key.file is not None
    return _in_file(key.file)


def digests(config: Config, environ: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 hex digest -> source. Reads key files; a key that is not to be found is left out."""
    resolved: dict[str, str] = {}
    for source, key in config.keys.items():
        found = find(key, environ)
        if found.digest is not None:
            resolved.setdefault(found.digest, source)
    return resolved


def peer_key(peer: Peer, environ: Mapping[str, str]) -> tuple[str | None, str | None]:
    """(the key that a peer is sent, why there is none or what is unwise about it); none where it needs none."""
    if peer.key_env is not None:
        secret = environ.get(peer.key_env, "").strip()
        return (secret, None) if secret else (None, f"{peer.key_env} is not set in the environment")
    return (None, None) if peer.key_file is None else _read(peer.key_file)


def _in_file(file: Path) -> Found:
    secret, trouble = _read(file)
    return Found(None if secret is None else digest(secret), trouble)


def _read(file: Path) -> tuple[str | None, str | None]:
    """(the secret in a file, what is wrong or unwise about it)."""
    try:
        secret = file.read_text(encoding="utf-8").strip()
        mode = file.stat().st_mode
    except OSError as error:
        return None, f"{file} cannot be read: {error.strerror}"
    except UnicodeDecodeError:
        return None, f"{file} is not UTF-8 text"
    if not secret:
        return None, f"{file} is empty"
    return secret, f"{file} is open to every user of this host" if mode & _OTHERS else None
