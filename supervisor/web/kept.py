"""Which engine keeps which answer: /v1/responses can be asked for again, and go on from, by id."""

from __future__ import annotations

import mmap
import re
from collections import OrderedDict
from dataclasses import dataclass

import msgspec

from supervisor.core.command import names_of
from supervisor.core.routing import Ask
from supervisor.errors import BadRequest, ModelNotFound
from supervisor.web.driving import Driver, Lease

_ID = re.compile(rb'"id"\s*:\s*"(resp_[A-Za-z0-9_-]{1,100})"')
_MOST = 10_000

RESPONSES = "/v1/responses"


class _Continuing(msgspec.Struct):
    previous_response_id: str | None = None


_decoder = msgspec.json.Decoder(_Continuing)


def previous(data: bytes | mmap.mmap) -> str | None:
    """The answer that a request goes on from. Raises BadRequest."""
    try:
        return _decoder.decode(data).previous_response_id
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(str(error), param="previous_response_id") from None


@dataclass(frozen=True, slots=True)
class Place:
    """Where an answer is, and whose it is."""

    profile: str
    incarnation: str
    source: str


class Kept:
    """The newest ids alone: vLLM forgets none of its answers, but a restart of the engine forgets them all."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._places: OrderedDict[str, Place] = OrderedDict()

    def note(self, lease: Lease, beginning: bytes, *, source: str) -> None:
        """Remember an answer by its first bytes, whole or as a stream's first event."""
        if found := _ID.search(beginning[:4096]):
            place = Place(lease.profile, lease.incarnation, source)
            self._places[found[1].decode()] = place
            if len(self._places) > _MOST:
                self._places.popitem(last=False)

    def profile_of(self, name: str, source: str) -> str:
        """Raises ModelNotFound where no engine that lives keeps it, or it is someone else's: ids are no keys."""
        place = self._places.get(name)
        if place is None or place.source != source or not self._lives(place):
            raise ModelNotFound(f"no response {name[:200]!r} is kept here", param="response_id")
        return place.profile

    def continued(self, name: str, ask: Ask) -> str:
        """The profile that keeps answer `name` and serves what is asked for. Raises ModelNotFound, BadRequest."""
        profile = self.profile_of(name, ask.source)
        known = self._driver.config.profiles.get(profile)
        if known is None or ask.model not in names_of(known):
            raise BadRequest(f"response {name!r} is not of model {ask.model!r}", param="previous_response_id")
        return profile

    def _lives(self, place: Place) -> bool:
        engines = self._driver.status()["engines"]
        return any(engine["incarnation"] == place.incarnation for engine in engines)
