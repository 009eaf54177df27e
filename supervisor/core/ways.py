"""Where requests of one kind go, and on what terms they wait: worked out once, kept until the fleet is settled next.

Both rest on the configuration, the mode and what peers offer, and of a request on its model, its key, the route that
it came by, where its conversation is cached and how long it is. No more than that changes without the fleet being
settled. What peers offer, and who takes what is longer than most, is worked out for each request.
"""

from __future__ import annotations

import msgspec

from supervisor.core import calendar, routing
from supervisor.core.fleet import Fleet
from supervisor.core.queueing import Waiter
from supervisor.core.routing import Ask, Route

BATCH_WEIGHT = 0.2
"""What a second of a batch request's waiting counts for, against an interactive one's."""


class Way(msgspec.Struct, frozen=True):
    """`patience` and `weight`: as a Waiter's. `longest` prompt, and `most` tokens with its reply, of those that all
    go this way; none by default."""

    route: Route
    patience: float
    weight: float
    longest: float = -1.0
    most: float = -1.0

    def takes(self, ask: Ask) -> bool:
        """Whether its length chooses nothing."""
        prompt = ask.tokens if ask.tokens > ask.least else ask.least
        return prompt <= self.longest and prompt + (ask.max_tokens or 0) <= self.most

    def waiter(self, lease: str, ask: Ask, arrived: float, deadline: float) -> Waiter:
        """One who waits for what it leads to."""
        route = self.route
        return Waiter(lease, ask, route, route.profiles, arrived, deadline, self.patience, self.weight)


def find(fleet: Fleet, ask: Ask, patience: float) -> Way:
    """As `look`, where it has to look."""
    home = fleet.home(ask.conversation)
    kind = ask.model, ask.source, ask.tasks, home
    way = fleet.ways.get(kind)
    if way is None or not way.takes(ask):
        way = look(fleet, ask, home, patience)
        if way.takes(ask):
            fleet.ways[kind] = way
    return way


def look(fleet: Fleet, ask: Ask, home: str | None, patience: float) -> Way:
    """Where a request may go whose conversation is cached at `home`: what there is now, else what the next mode
    brings within its patience. Raises what routing raises."""
    config, offers, terms = fleet.config, fleet.offers(ask.model), _terms(fleet, ask.source)
    found = routing.route(ask, config, fleet.available, offers, home)
    if not found.candidates:
        return Way(routing.route(ask, config, calendar.soon(fleet, patience), offers), *terms)
    if offers:
        return Way(found, *terms)
    return Way(found, *terms, *routing.reach(ask, config))


def _terms(fleet: Fleet, source: str) -> tuple[float, float]:
    policy = fleet.config.scheduling
    if fleet.is_batch(source):
        return policy.patience_batch, BATCH_WEIGHT
    return policy.patience_interactive, 1.0
