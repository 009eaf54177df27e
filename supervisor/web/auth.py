"""Who asks: from a presented API key to its source. Keys are known by their digests alone."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field

from supervisor.config import Config
from supervisor.config.secrets import digest, digests
from supervisor.errors import Unauthorized

DEFAULT_SOURCE = "default"
"""Everyone, where no keys are configured."""


@dataclass(slots=True)
class Keyring:
    """`sources`: digest -> source. `open` is for a configuration without keys. Keys that are configured but not found
    let nobody in."""

    sources: Mapping[str, str] = field(repr=False)
    open: bool = False

    @classmethod
    def of(cls, config: Config, environ: Mapping[str, str]) -> Keyring:
        return cls(digests(config, environ), open=not config.keys)

    def change(self, sources: Mapping[str, str], open: bool) -> None:
        """Other keys fit from now on, for everyone who holds this ring."""
        self.sources, self.open = sources, open

    def fits(self, known: str | None) -> bool:
        """Whether a key of this digest is still good; None: whoever came without one."""
        return self.open if known is None else known in self.sources

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
