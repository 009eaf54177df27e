"""Whether a request fits a model's context. Estimates decide where it goes; only certainty refuses it. Pure.

vLLM cuts a reply short where prompt and reply together pass the context, so `max_tokens` never makes a request too
long: it only makes a longer context the better place. A window of None is one that nobody has told.
"""

from __future__ import annotations

from collections.abc import Mapping

from supervisor.errors import ContextExceeded

LETTERS_PER_TOKEN = 8
"""More than prose or code of any language has on average, so letters over this are tokens that there must be."""

SHARE = 0.5
"""Of what a model's learned line expects: another language may take half the tokens of those it has seen."""


def least(letters: int, ids: int = 0) -> int:
    """Prompt tokens that there are at the least."""
    return letters // LETTERS_PER_TOKEN + ids


def check(model: str, tokens: int, windows: Mapping[str, int | None]) -> None:
    """Raises ContextExceeded where `tokens`, told at their least, fit nowhere."""
    known = {name: window for name, window in windows.items() if window is not None}
    if not windows or len(known) < len(windows) or tokens <= max(known.values()):
        return
    sizes = ", ".join(f"{name} {window}" for name, window in known.items())
    raise ContextExceeded(
        f"the prompt has at least {tokens} tokens; the context of {model!r} is {max(known.values())} ({sizes})",
        param="messages",
    )


def too_short(tokens: int, reply: int | None, windows: Mapping[str, int | None]) -> dict[str, str]:
    """Name -> why, for those whose context is likely too short. Never for the longest: an estimate may be wrong."""
    wanted = tokens + (reply or 0)
    longest = max((float("inf") if w is None else w for w in windows.values()), default=0)
    return {
        name: f"its context of {window} tokens is too short for about {tokens} and a reply of {reply or 0}"
        for name, window in windows.items()
        if window is not None and window < wanted and window < longest
    }
