"""Who asks: from a presented API key to its source. Keys are known by their digests alone."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field

from supervisor.config import Config
from supervisor.config.secrets import digest, find
from supervisor.errors import Unauthorized

DEFAULT_SOURCE = "default"
"""Everyone, where no keys are configured."""


def resolve_keys(config: Config, environ: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 hex digest -> source. Reads key files; a key that is not to be found is left out."""
    resolved: dict[str, str] = {}
    for source, key in config.keys.items():
        found = find(key, environ)
        if found.digest is not None:
            resolved.setdefault(found.digest, source)
    return resolved


@dataclass(frozen=True, slots=True)
class Keyring:
    """`open` is for a configuration without keys. Keys that are configured but not found let nobody in."""

    sources: Mapping[str, str] = field(repr=False)
    open: bool = False

    @classmethod
    def of(cls, config: Config, environ: Mapping[str, str]) -> Keyring:
        return cls(resolve_keys(config, environ), open=not config.keys)

    def identify(self, presented: str | None) -> str:
        """The source whose key this is. Raises Unauthorized, which never repeats the key."""
        if self.open:
            return DEFAULT_SOURCE
        if not presented:
            raise Unauthorized("no API key given: send `Authorization: Bearer KEY` or `x-api-key: KEY`")
        asked = digest(presented)
        # Every digest is compared, in constant time, so that timing tells nothing of the keys.
        matches = [source for known, source in self.sources.items() if hmac.compare_digest(known, asked)]
        if not matches:
            raise Unauthorized("this API key is not known here")
        return matches[0]


def presented_key(headers: Mapping[str, str]) -> str | None:
    """The key in a request's headers (a case-insensitive mapping); OpenAI's clients use one, Anthropic's either."""
    scheme, _, key = headers.get("Authorization", "").strip().partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return headers.get("x-api-key", "").strip() or None
