"""What the daemon writes down for later: what was learned, what was decided, who asked for what. All of it beside
the event loop, and none of it needed to serve."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from supervisor.config import Config
from supervisor.core import command, orders
from supervisor.core.devices import Card
from supervisor.core.fleet import Fleet
from supervisor.core.learned import Learned
from supervisor.core.why import profiles_called
from supervisor.host.activity import Activity, Register
from supervisor.host.almanac import FILE, Almanac
from supervisor.host.chronicle import Chronicle
from supervisor.host.scribe import Scribe


class Books:
    """`fleet` is read for the configuration that holds."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet, config = fleet, fleet.config
        self._scribe = Scribe()
        state = config.server.state_dir
        self._almanac = Almanac(state / FILE)
        self._chronicle = Chronicle(state / "decisions.jsonl")
        self.register = Register(Activity(state / "activity.db", config.activity), self._scribe)

    @property
    def _config(self) -> Config:
        return self._fleet.config

    async def recall(self, config: Config) -> dict[str, tuple[Learned, ...]]:
        """What was learned of its profiles as they are in `config`, under each version of vLLM, the newest first."""
        arguments = {name: command.fingerprint(p, config) for name, p in config.profiles.items()}
        return await self._scribe.ask(lambda: self._almanac.recall(arguments))

    async def totals(self) -> dict[Card, int]:
        """What CUDA counts on GPUs that engines told of, bytes."""
        return await self._scribe.ask(self._almanac.totals)

    def reconfigure(self) -> None:
        self.register.activity.limits = self._config.activity

    def remember(self, profile: str, learned: Learned) -> None:
        arguments = command.fingerprint(self._config.profiles[profile], self._config)
        self._scribe.write(lambda: self._almanac.keep(profile, arguments, learned))

    def remember_total(self, card: Card, total: int) -> None:
        self._scribe.write(lambda: self._almanac.keep_total(card, total))

    def note(self, note: orders.Note) -> None:
        """Write a decision down."""
        profile = self._config.profiles.get(note.profile or "")
        head = {"event": note.event, "level": note.level, "profile": note.profile}
        model = {"model": profile.model} if profile else {}
        entry = {**head, **model, "message": note.message, **note.facts}
        self._scribe.write(lambda: self._chronicle.write(entry))

    async def decisions(self, name: str | None, since: float | None, limit: int) -> list[dict[str, Any]]:
        """The newest decisions about a profile or a model, oldest first. `since`: seconds back."""
        names = frozenset() if name is None else frozenset({name, *profiles_called(name, self._config)})
        after = None if since is None else datetime.now(UTC) - timedelta(seconds=since)
        return await self._scribe.ask(lambda: self._chronicle.read(names=names, since=after, limit=limit))

    @property
    def lost(self) -> dict[str, int]:
        """What was given up because the disk does not keep up."""
        return {"entry": self._scribe.dropped, "request": self.register.lost}

    def trouble(self) -> list[str]:
        """What is not kept, in words."""
        books = self._almanac.trouble, self._chronicle.trouble, self.register.activity.trouble
        found = [trouble for trouble in books if trouble]
        if self._scribe.dropped:
            found.append(f"{self._scribe.dropped} entries were given up: the disk does not keep up")
        return found

    async def close(self) -> None:
        self.register.flush()
        await self._scribe.ask(self._close)
        await self._scribe.close()

    def _close(self) -> None:
        self._almanac.close()
        self._chronicle.close()
        self.register.activity.close()
