"""Who may look and who may act: sessions in memory, behind a key with a scope.

A cookie alone does nothing: what changes something also needs the session's token in a header and an Origin that
is this server. Without any [keys] only a browser on this host gets in, under this host's own name: a foreign
page whose name was bent to a loopback address has another one.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from aiohttp import web

from supervisor.config import Config
from supervisor.config.models import Scope
from supervisor.config.secrets import digest
from supervisor.errors import Forbidden, Unauthorized
from supervisor.web.auth import DEFAULT_SOURCE, Keyring

COOKIE = "llmd_session"
TOKEN = "X-Llmd-Token"
LASTS = 12 * 3600.0
"""Seconds from signing in to signing in again."""

MOST = 256
"""Sessions; the oldest makes room."""

_PROXIED = ("Forwarded", "X-Forwarded-For", "X-Real-IP")


@dataclass(frozen=True, slots=True)
class Session:
    """`ends` is monotonic. `key`: the digest of what it was opened with."""

    source: str
    ends: float
    key: str | None = field(repr=False, default=None)
    name: str = field(repr=False, default_factory=lambda: secrets.token_urlsafe(32))
    token: str = field(repr=False, default_factory=lambda: secrets.token_urlsafe(32))


class Gate:
    """`config` is asked whenever somebody comes: it may be another one by then."""

    def __init__(
        self, config: Callable[[], Config], keyring: Keyring, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._config, self._keyring, self._clock = config, keyring, clock
        self._sessions: dict[str, Session] = {}

    def sign_in(self, key: str) -> Session:
        """Raises Unauthorized for an unknown key, Forbidden for one that may not look."""
        source = self._keyring.identify(key)
        if self.scope(source) == "api":
            raise Forbidden(
                f'the key of {source} does not open the dashboard: give it scope = "read" or "admin"'
            )
        return self._begin(source, None if self._keyring.open else digest(key))

    def sign_out(self, session: Session) -> None:
        self._sessions.pop(session.name, None)

    def look(self, request: web.Request) -> Session:
        """The session of who may look. Raises Unauthorized."""
        session = self._sessions.get(request.cookies.get(COOKIE, ""))
        if self._keyring.open:
            _check_local(request)
            return session if session and self.alive(session) else self._begin(DEFAULT_SOURCE)
        if session is None or not self.alive(session):
            raise Unauthorized("sign in with an API key")
        return session

    def act(self, request: web.Request) -> Session:
        """The session of who may act, proven to be the one who asks. Raises Unauthorized, Forbidden."""
        session = self.look(request)
        check_origin(request)
        if not hmac.compare_digest(request.headers.get(TOKEN, "").encode(), session.token.encode()):
            raise Forbidden("this page is out of date: load it again")
        if not self.may_act(session):
            raise Forbidden('this key may only look: its scope is "read"')
        return session

    def alive(self, session: Session) -> bool:
        """Its key may have been revoked since, or may no longer look."""
        good = self._keyring.fits(session.key) and self.scope(session.source) != "api"
        return good and session.name in self._sessions and self._clock() < session.ends

    def may_act(self, session: Session) -> bool:
        return self.scope(session.source) == "admin"

    def scope(self, source: str) -> Scope:
        if self._keyring.open:
            return "admin"
        key = self._config().keys.get(source)
        return key.scope if key else "api"

    def _begin(self, source: str, key: str | None = None) -> Session:
        now = self._clock()
        self._sessions = {name: kept for name, kept in self._sessions.items() if now < kept.ends}
        while len(self._sessions) >= MOST:
            del self._sessions[next(iter(self._sessions))]
        session = Session(source, now + LASTS, key)
        self._sessions[session.name] = session
        return session


def check_origin(request: web.Request) -> None:
    """A browser tells where a request that changes something comes from. Raises Forbidden."""
    host = request.headers.get("Host", "")
    if not host or urlsplit(request.headers.get("Origin", "")).netloc.lower() != host.lower():
        raise Forbidden("this was not asked by a page of this server")


def _check_local(request: web.Request) -> None:
    proxied = any(name in request.headers for name in _PROXIED)
    if (
        proxied
        or not _loopback(request.remote or "")
        or not _loopback(urlsplit(f"//{request.host}").hostname or "")
    ):
        raise Unauthorized(
            "without [keys] in llmd.toml the dashboard opens on this host alone, at http://localhost"
        )


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
