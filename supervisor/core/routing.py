"""Which profiles may serve a request, in order of preference, each with its reason.

Pure: the request's facts, the configuration and the set of profiles available in this mode go in;
candidates or a typed error come out. Whether a candidate can serve *now* is `placement`'s question.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from supervisor.config import Config, Profile
from supervisor.errors import ModelNotFound, WrongTask


@dataclass(frozen=True, slots=True)
class Ask:
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


@dataclass(frozen=True, slots=True)
class Candidate:
    profile: str
    reason: str


def candidates(ask: Ask, config: Config, available: Collection[str]) -> tuple[Candidate, ...]:
    """The profiles that may serve `ask`, best first; none when none of those that could is `available`.

    Raises ModelNotFound or WrongTask.
    """
    asked = _named(ask.model, config)
    fitting = [profile for profile in asked if not ask.tasks or profile.task in ask.tasks]
    if not fitting:
        raise _wrong_task(ask, config, asked)
    open_now = [profile for profile in fitting if profile.name in available]
    return _ranked(ask, config, open_now) if open_now else ()


def _named(model: str, config: Config) -> list[Profile]:
    if model in config.profiles:
        return [config.profiles[model]]
    found = [p for p in config.profiles.values() if p.model == model or model in p.lora]
    if not found:
        known = ", ".join(sorted({name for p in config.profiles.values() for name in (p.model, *p.lora)}))
        raise ModelNotFound(f"model {model!r} is not configured here; there are: {known}", param="model")
    return found


def _wrong_task(ask: Ask, config: Config, asked: list[Profile]) -> WrongTask:
    able = sorted({p.model for p in config.profiles.values() if p.task in ask.tasks})
    instead = f"; models that do: {', '.join(able)}" if able else "; no configured model does"
    tasks = "/".join(sorted({profile.task for profile in asked}))
    return WrongTask(f"model {ask.model!r} ({tasks}) does not serve this route{instead}", param="model")


def _ranked(ask: Ask, config: Config, profiles: list[Profile]) -> tuple[Candidate, ...]:
    if len(profiles) == 1:
        return (Candidate(profiles[0].name, "the only profile"),)
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
