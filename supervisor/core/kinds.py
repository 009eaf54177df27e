"""Kinds of requests: where all of one kind go, and on what terms they wait, kept until the fleet is settled next.

Both rest on the configuration, the mode and what peers offer, which change in no event after which the fleet is not
settled; and of a request on its model, its key, the route that it came by, where its conversation is cached and how
long it is. Where peers offer its model, or its length chooses, each request is a kind of its own.
"""

from __future__ import annotations

import msgspec

from supervisor.core import calendar, routing
from supervisor.core.fleet import Fleet
from supervisor.core.queueing import Waiter
from supervisor.core.routing import Ask, Route

BATCH_WEIGHT = 0.2
"""What a second of a batch request's waiting counts for, against an interactive one's."""


class Kind(msgspec.Struct, frozen=True):
    """`patience` and `weight`: as a Waiter's. `longest` prompt, and `most` tokens with its reply, of those that are
    of this kind; none by default."""

    route: Route
    patience: float
    weight: float
    longest: float = -1.0
    most: float = -1.0

    def covers(self, ask: Ask) -> bool:
        """Whether its length chooses nothing."""
        prompt = ask.tokens if ask.tokens > ask.least else ask.least
        return prompt <= self.longest and prompt + (ask.max_tokens or 0) <= self.most

    def waiter(self, lease: str, ask: Ask, arrived: float, deadline: float) -> Waiter:
        """One of this kind."""
        route = self.route
        return Waiter(lease, ask, route, route.profiles, arrived, deadline, self.patience, self.weight)


def find(fleet: Fleet, ask: Ask, patience: float) -> Kind:
    """As `look`, where it has to look."""
    home = fleet.home(ask.conversation)
    marks = ask.model, ask.source, ask.tasks, home
    kind = fleet.kinds.get(marks)
    if kind is None or not kind.covers(ask):
        kind = look(fleet, ask, home, patience)
        if kind.covers(ask):
            fleet.kinds[marks] = kind
    return kind


def look(fleet: Fleet, ask: Ask, home: str | None, patience: float) -> Kind:
    """Where a request may go whose conversation is cached at `home`: what there is now, else what the next mode
    brings within its patience. Raises what routing raises."""
    config, offers, terms = fleet.config, fleet.offers(ask.model), _terms(fleet, ask.source)
    found = routing.route(ask, config, fleet.available, offers, home)
    if not found.candidates:
        return Kind(routing.route(ask, config, calendar.soon(fleet, patience), offers), *terms)
    if offers:
        return Kind(found, *terms)
    return Kind(found, *terms, *routing.reach(ask, config))


def _terms(fleet: Fleet, source: str) -> tuple[float, float]:
    policy = fleet.config.scheduling
    if fleet.is_batch(source):
        return policy.patience_batch, BATCH_WEIGHT
    return policy.patience_interactive, 1.0
