"""What a request demands of an engine beyond text: tools to choose from, media to fetch. Pure.

An engine fetches what a URL names with the host's own network rights, so no URL but `data:` leaves llmd unless its
host is allowed, and none that two readers could understand differently.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from supervisor.config import Profile
from supervisor.errors import BadRequest

_MEDIA = frozenset({"image_url", "audio_url", "video_url", "file_url"})
_NUMBERS = frozenset({int})
_TELLING = _MEDIA | {"source"}
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
    def of(cls, fields: Mapping[str, Any]) -> Demands:
        """A body's."""
        urls = tuple(url for url in found if url[:5].lower() != "data:") if (found := _urls(fields)) else ()
        tools = _choosable(fields) if "tools" in fields else 0
        return cls(tools, urls) if tools or urls else NO_DEMANDS

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


NO_DEMANDS = Demands()


def without_tools(body: bytes | mmap.mmap) -> bytes:
    """The same request without its tools, all else as it was written."""
    kept = _object.decode(body)
    for key in ("tools", "tool_choice", "parallel_tool_calls"):
        kept.pop(key, None)
    return msgspec.json.encode(kept)


def _choosable(body: Mapping[str, Any]) -> int:
    """Tools that the model may use or not. One that it must use, or none, takes no parser."""
    tools, choice = body.get("tools"), body.get("tool_choice", "auto")
    if isinstance(choice, dict):
        choice = choice.get("type")
    return len(tools) if isinstance(tools, list) and choice in (None, "auto") else 0


def _urls(fields: Mapping[str, Any]) -> list[str]:
    """Of media, wherever they stand: OpenAI's parts hold a URL or an object with one, Anthropic's a source."""
    found: list[str] = []
    parts: list[Any] = [fields]
    for part in parts:  # and those within, which follow
        if type(part) is dict and not _TELLING.isdisjoint(part):
            found.extend(_named(part))
        for inner in part.values() if type(part) is dict else part:
            if type(inner) is dict or (type(inner) is list and not are_numbers(inner)):
                parts.append(inner)
    return found


def are_numbers(values: list[Any]) -> bool:
    """Such as token ids, of which there may be many thousands."""
    return bool(values) and type(values[0]) is int and _NUMBERS.issuperset(map(type, values))


def _named(part: Mapping[str, Any]) -> Iterator[str]:
    for key in _TELLING & part.keys():
        said = part[key]
        if key == "source" and not (isinstance(said, dict) and said.get("type") == "url"):
            continue
        url = said.get("url") if isinstance(said, dict) else said
        if isinstance(url, str):
            yield url


def _allowed(url: str, hosts: Collection[str]) -> bool:
    plain = _PLAIN.fullmatch(url)
    return plain is not None and plain[1].lower() in hosts


def _not_fetched(url: str, profile: Profile) -> str:
    hosts = ", ".join(profile.allowed_media_domains)
    allowed = f"data: URLs and those of {hosts}" if hosts else "data: URLs alone"
    return f"{profile.name} takes media as {allowed}, not {url[:_QUOTED]!r}"
