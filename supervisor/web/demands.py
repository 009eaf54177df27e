"""What a request demands of an engine beyond text: tools to choose from, media to fetch. Pure.

An engine fetches what a URL names with the host's own network rights, so no URL but `data:` leaves llmd unless its
host is allowed, and none that two readers could understand differently.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from supervisor.config import Profile
from supervisor.errors import BadRequest

_TELLING = (b'"tools"', b'_url"', b'"source"', b"\\u")
"""A body with none of these has no demands: keys can be written otherwise only with \\u escapes. With their quotes they
are found in a third less time, and hardly ever in prose."""

_SEARCHED = 16 << 10
"""Bytes up to which looking for these costs less than reading the body; of 2 MB it takes 4 to 12 ms, reading 0.7."""

_MEDIA = frozenset({"image_url", "audio_url", "video_url", "file_url"})
_PLAIN = re.compile(r"https?://([a-z0-9.-]+)(:\d{1,5})?(?:[/?#][!-\[\]-~]*)?", re.ASCII | re.IGNORECASE)
"""Visible ASCII without a backslash, no user, no brackets in the host: every parser reads the same host."""

_QUOTED = 80

_object = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(frozen=True, slots=True)
class Demands:
    """`tools`: how many, where the model may choose among them. `urls`: of media, those that hold data left out."""

    tools: int = 0
    urls: tuple[str, ...] = ()

    @classmethod
    def of(cls, body: bytes | mmap.mmap | memoryview) -> Demands:
        """What is no JSON demands nothing: it is refused elsewhere."""
        if len(body) <= _SEARCHED and not _tells(bytes(body)):
            return _NONE
        try:
            read = msgspec.json.decode(body)
            urls = tuple(url for url in _urls(read) if url[:5].lower() != "data:")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return _NONE
        return cls(_choosable(read), urls) if isinstance(read, dict) else _NONE

    def __bool__(self) -> bool:
        return bool(self.tools or self.urls)

    def check(self, profile: Profile) -> None:
        """Raises BadRequest where an engine of this profile may not be given them."""
        for url in self.urls:
            if not _allowed(url, profile.allowed_media_domains):
                raise BadRequest(_not_fetched(url, profile), param="messages")
        if self.tools and profile.tools == "refuse" and profile.tool_parser is None:
            raise BadRequest(f"{profile.name} serves {profile.model} without tools", param="tools")

    def check_any(self, profiles: Collection[Profile]) -> None:
        """Raises BadRequest where none of these may be given them: nobody need wait to hear that."""
        refusals = []
        for profile in profiles:
            try:
                return self.check(profile)
            except BadRequest as error:
                refusals.append(error)
        if refusals:
            raise refusals[0]
        return None

    def drops_tools(self, profile: Profile) -> bool:
        return bool(self.tools) and profile.tools == "drop" and profile.tool_parser is None


_NONE = Demands()


def _tells(body: bytes) -> bool:
    return any(word in body for word in _TELLING)


def without_tools(body: bytes | mmap.mmap) -> bytes:
    """The same request without its tools, all else as it was written."""
    kept = _object.decode(body)
    for key in ("tools", "tool_choice", "parallel_tool_calls"):
        kept.pop(key, None)
    return msgspec.json.encode(kept)


def _choosable(body: dict[str, Any]) -> int:
    """Tools that the model may use or not. One that it must use, or none, takes no parser."""
    tools, choice = body.get("tools"), body.get("tool_choice", "auto")
    if isinstance(choice, dict):
        choice = choice.get("type")
    return len(tools) if isinstance(tools, list) and choice in (None, "auto") else 0


def _urls(value: object) -> Iterator[str]:
    """Of media, wherever they stand: OpenAI's parts hold a URL or an object with one, Anthropic's a source."""
    if isinstance(value, list):
        for part in value:
            yield from _urls(part)
    elif isinstance(value, dict):
        for key, part in value.items():
            if key in _MEDIA or (key == "source" and isinstance(part, dict) and part.get("type") == "url"):
                yield from _named(part)
            yield from _urls(part)


def _named(part: object) -> Iterator[str]:
    found = part.get("url") if isinstance(part, dict) else part
    if isinstance(found, str):
        yield found


def _allowed(url: str, hosts: Collection[str]) -> bool:
    plain = _PLAIN.fullmatch(url)
    return plain is not None and plain[1].lower() in hosts


def _not_fetched(url: str, profile: Profile) -> str:
    hosts = ", ".join(profile.allowed_media_domains)
    allowed = f"data: URLs and those of {hosts}" if hosts else "data: URLs alone"
    return f"{profile.name} takes media as {allowed}, not {url[:_QUOTED]!r}"
