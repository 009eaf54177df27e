"""Which places may serve a request, in order of preference, each with its reason; who may not, and why.

Pure: the request's facts, the configuration, the profiles of this mode and what peers offer go in; a route or a typed
error comes out. Whether a candidate can serve *now* is `placement`'s question.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from functools import lru_cache

import msgspec
from msgspec.structs import force_setattr

from supervisor.config import Config, Profile
from supervisor.core import context
from supervisor.core.abroad import Offer, why_not
from supervisor.errors import ModelNotFound, NotAvailable, WrongTask

ASK_AGAIN = 10.0
ONLY, ELSEWHEN = "the only profile", "not in this mode"

LONGEST_NAME = 200
"""Letters of a name that nobody has, as it is told and written down."""


class Ask(msgspec.Struct, frozen=True, gc=False):
    """A request as routing sees it. `tokens`: estimated prompt tokens. `tasks`: what could answer the route.
    `max_tokens`: the most it wants written, None where it did not say. `letters`: of its text, None where it is not
    text alone, so that its tokens cannot be told from them. `stream`: token by token."""

    model: str
    source: str = "default"
    tokens: int = 0
    tasks: frozenset[str] = frozenset()
    max_tokens: int | None = None
    letters: int | None = None
    stream: bool = False
    least: int = 0
    """Prompt tokens that it has, the longest of several, even if every guess was too high."""
    conversation: str | None = None
    """The same for all turns of one conversation."""
    hops: int = 0
    """How often other llmds have passed it on."""
    tried: frozenset[str] = frozenset()
    """Places that failed it already: peers, and an engine by its incarnation."""
    request: str = ""
    """The request's id, for those who ask why."""
    person: str = ""
    """Who of those that share the source; they take turns."""


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """`profile`: its name, or the name of a peer."""

    profile: str
    reason: str


class Route(msgspec.Struct, frozen=True, gc=False):
    candidates: tuple[Candidate, ...] = ()
    passed_over: tuple[Candidate, ...] = ()
    """Who serves the model, but not this request, and why."""
    sticky: bool = False
    """The first candidate has the conversation in its cache."""
    profiles: tuple[str, ...] = ()
    """The candidates' names."""

    def __post_init__(self) -> None:
        force_setattr(self, "profiles", tuple(candidate.profile for candidate in self.candidates))


def candidates(ask: Ask, config: Config, available: Collection[str]) -> tuple[Candidate, ...]:
    """Those of `route` on this host."""
    return route(ask, config, available).candidates


def route(
    ask: Ask,
    config: Config,
    available: Collection[str],
    offers: Sequence[Offer] = (),
    home: str | None = None,
) -> Route:
    """Where `ask` may go, best first; nowhere when no profile that could serve it is `available`.

    `home`: where the conversation's earlier turns are cached. Raises ModelNotFound, WrongTask, ContextExceeded, or
    NotAvailable where peers alone serve the model and none can.
    """
    able = _able(ask, config, offers)
    if len(able) == 1 and not offers:
        return _only(ask, able[0], available, home)
    windows = {profile.name: profile.max_model_len for profile in able}
    context.check(ask.model, ask.least, {**windows, **{offer.peer: offer.window for offer in offers}})
    here = [profile for profile in able if profile.name in available]
    closed = [Candidate(p.name, ELSEWHEN) for p in able if p.name not in available]
    local, short = _fitting(ask, _ranked(ask, config, here) if here else (), windows)
    abroad, refused = _abroad(ask, offers, bool(local))
    if offers and not able and not abroad:
        raise _nobody(ask, refused)
    return _homeward(Route(_merged(local, abroad), (*closed, *short, *refused)), home)


def reach(ask: Ask, config: Config) -> tuple[float, float]:
    """The longest prompt, and the most tokens with its reply, up to which every ask like this one is routed as it is
    while no peer offers its model: beyond them a longer context is sought, or the request refused."""
    able = _able(ask, config, ())
    most = min((p.max_model_len for p in able if p.max_model_len is not None), default=math.inf)
    return math.inf if len(able) == 1 else config.routing.long_context_tokens, most


def _only(ask: Ask, profile: Profile, available: Collection[str], home: str | None) -> Route:
    window = profile.max_model_len
    if window is not None and ask.least > window:
        context.check(ask.model, ask.least, {profile.name: window})
    return _alone(profile.name, profile.name in available, profile.name == home)


@lru_cache(maxsize=1024)
def _alone(name: str, available: bool, at_home: bool) -> Route:
    """The same for nearly all requests, so that it is made once, and kept once."""
    if not available:
        return Route((), (Candidate(name, ELSEWHEN),))
    return _homeward(Route((Candidate(name, ONLY),)), name if at_home else None)


def _able(ask: Ask, config: Config, offers: Sequence[Offer]) -> list[Profile]:
    asked = config.named.get(ask.model, ())
    if not asked and not offers:
        known = ", ".join(sorted({name for p in config.profiles.values() for name in (p.model, *p.lora)}))
        said = ask.model[:LONGEST_NAME]
        raise ModelNotFound(f"model {said!r} is not configured here; there are: {known}", param="model")
    fitting = [profile for profile in asked if not ask.tasks or profile.task in ask.tasks]
    if asked and not fitting:
        raise _wrong_task(ask, config, asked)
    return fitting


def _wrong_task(ask: Ask, config: Config, asked: Sequence[Profile]) -> WrongTask:
    able = sorted({p.model for p in config.profiles.values() if p.task in ask.tasks})
    instead = f"; models that do: {', '.join(able)}" if able else "; no configured model does"
    tasks = "/".join(sorted({profile.task for profile in asked}))
    return WrongTask(f"model {ask.model!r} ({tasks}) does not serve this route{instead}", param="model")


def _nobody(ask: Ask, refused: Sequence[Candidate]) -> NotAvailable:
    said = "; ".join(f"{candidate.profile}: {candidate.reason}" for candidate in refused)
    return NotAvailable(f"model {ask.model!r} is served by peers alone; {said}", retry_after=ASK_AGAIN)


# On this host


def _ranked(ask: Ask, config: Config, profiles: list[Profile]) -> tuple[Candidate, ...]:
    if len(profiles) == 1:
        return (Candidate(profiles[0].name, ONLY),)
    routing = config.routing
    if ask.tokens > routing.long_context_tokens:
        ordered = sorted(profiles, key=lambda p: -(p.max_model_len or 0))
        reason = f"about {ask.tokens} tokens, over {routing.long_context_tokens}: longest context first"
        return tuple(Candidate(profile.name, reason) for profile in ordered)
    for who in (ask.source, "default"):
        places = routing.prefer.get(who)
        if places:
            ordered = sorted(profiles, key=lambda p: _rank(p, places))
            return tuple(Candidate(p.name, f"{who} prefers {', '.join(places)}") for p in ordered)
    return tuple(Candidate(profile.name, "by name") for profile in profiles)


def _rank(profile: Profile, places: tuple[str, ...]) -> int:
    here = {profile.name, *(f"gpu:{gpu}" for gpu in profile.gpus)}
    if profile.device == "cpu":
        here.add("cpu")
    return next((rank for rank, place in enumerate(places) if place in here), len(places))


def _fitting(
    ask: Ask, ranked: tuple[Candidate, ...], windows: dict[str, int | None]
) -> tuple[list[Candidate], list[Candidate]]:
    """Those whose context takes the request, and those who fall short."""
    batched = bool(ask.tasks) and "generate" not in ask.tasks
    tokens = ask.least if batched else ask.tokens  # read one by one, each has the context to itself
    short = context.too_short(tokens, ask.max_tokens, {c.profile: windows[c.profile] for c in ranked})
    kept = [candidate for candidate in ranked if candidate.profile not in short]
    return kept, [Candidate(name, reason) for name, reason in short.items()]


# At peers


def _abroad(
    ask: Ask, offers: Sequence[Offer], served_here: bool
) -> tuple[list[tuple[int, Candidate]], list[Candidate]]:
    """(priority, candidate) of the peers that may serve it; those that may not."""
    able: list[tuple[int, Candidate]] = []
    refused: list[Candidate] = []
    for offer in offers:
        if (why := why_not(ask, offer, served_here)) is not None:
            refused.append(Candidate(offer.peer, why))
        else:
            able.append((offer.priority, Candidate(offer.peer, f"a peer of priority {offer.priority}")))
    return able, refused


def _merged(local: list[Candidate], abroad: list[tuple[int, Candidate]]) -> tuple[Candidate, ...]:
    """By priority; this host's profiles have 0, and come first among equals."""
    ranked = [*((0, candidate) for candidate in local), *abroad]
    return tuple(candidate for _, candidate in sorted(ranked, key=lambda pair: -pair[0]))


def _homeward(found: Route, home: str | None) -> Route:
    if home is None or home not in [candidate.profile for candidate in found.candidates]:
        return found
    first = Candidate(home, "has the earlier turns of this conversation in its cache")
    others = (candidate for candidate in found.candidates if candidate.profile != home)
    return Route((first, *others), found.passed_over, sticky=True)
