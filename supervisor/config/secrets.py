"""API keys, found where the configuration says they are, and kept only as digests from then on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from supervisor.config.models import Key

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


def _in_file(file: Path) -> Found:
    try:
        secret = file.read_text(encoding="utf-8").strip()
        mode = file.stat().st_mode
    except OSError as error:
        return Found(trouble=f"{file} cannot be read: {error.strerror}")
    except UnicodeDecodeError:
        return Found(trouble=f"{file} is not UTF-8 text")
    if not secret:
        return Found(trouble=f"{file} is empty")
    return Found(digest(secret), f"{file} is open to every user of this host" if mode & _OTHERS else None)
