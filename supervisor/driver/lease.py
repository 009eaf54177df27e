"""A request's right to use an engine, as the shell holds it."""

from __future__ import annotations

import aiohttp
import msgspec

from supervisor.config import Peer, Profile
from supervisor.host.incarnation import Incarnation
from supervisor.host.peers import Contact
from supervisor.host.upstream import Pool


class Lease(msgspec.Struct, eq=False):
    """A request's right to use an engine, under a `name` of its own."""

    profile: str
    reason: str
    queued: float
    hit: str
    _engine: Incarnation | Contact
    name: str = ""
    prompt: int | None = None
    output: int | None = None

    def count(self, by: int) -> None:
        """One more or less in flight; what watches an engine for silence goes by that."""
        if isinstance(self._engine, Incarnation):
            self._engine.in_flight += by

    def used(self, prompt: int | None, output: int | None) -> None:
        """Note the tokens that the engine counted; None where it did not tell."""
        self.prompt, self.output = prompt, output

    @property
    def incarnation(self) -> str:
        """Or the name of the peer."""
        return self._engine.name

    @property
    def configured(self) -> Profile:
        """The profile that its engine was started with, which may no longer be what is configured."""
        assert not isinstance(self._engine, Contact), "a peer has no profile"
        return self._engine.profile

    @property
    def session(self) -> aiohttp.ClientSession:
        return self._engine.session if isinstance(self._engine, Contact) else self._engine.open_session()

    @property
    def pool(self) -> Pool:
        return self._engine.pool

    def answered(self) -> None:
        """The first byte came."""
        if isinstance(self._engine, Incarnation):
            self._engine.breaker.answered()

    def failed(self, why: str) -> None:
        """It did not; too often in a row, and the engine is replaced."""
        if isinstance(self._engine, Incarnation):
            self._engine.count_failure(why)

    @property
    def peer(self) -> Peer | None:
        """The peer that it is on; None on an engine of ours."""
        return self._engine.config if isinstance(self._engine, Contact) else None

    def log_tail(self) -> tuple[str, ...]:
        return () if isinstance(self._engine, Contact) else self._engine.tail()
