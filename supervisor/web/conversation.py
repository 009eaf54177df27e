"""Which conversation a request belongs to, so that its next turn finds the beginning in the engine's cache. Pure.

Names are digests with a key of this process's own: nobody's words can be read from them, or guessed, and with its
source and model in it no key reaches another's.
"""

from __future__ import annotations

from collections.abc import Mapping

HEADERS = ("X-OpenWebUI-Chat-Id", "X-Session-ID")
"""What clients name their conversations in."""

OPENING = 2048
"""Letters of a message that tell it apart."""

_BITS = (1 << 64) - 1


def by_name(headers: Mapping[str, str], source: str, model: str) -> str | None:
    """As the client calls it; None where it does not."""
    given = session_of(headers)
    return by_session(given, source, model) if given else None


def session_of(headers: Mapping[str, str]) -> str | None:
    return next((headers[name] for name in HEADERS if headers.get(name)), None)


def by_session(session: str, source: str, model: str) -> str:
    return _digest("name", source, model, session)


def by_words(messages: object, prompt: object, source: str, model: str, lead: object = None) -> str | None:
    """By the words up to the user's first, which come again in every later turn; None where there are none. `lead`:
    what stands before all messages, where an API has it apart from them."""
    words = prompt[:OPENING] if isinstance(prompt, str) else _opening(messages)
    if words and lead is not None:
        words = f"{_said(lead)}\n{words}"
    return _digest("words", source, model, words) if words else None


def _opening(messages: object) -> str:
    words = ""
    for message in messages if type(messages) is list else ():
        if type(message) is not dict:
            break
        role = message.get("role")
        words += f"{role}:{_said(message.get('content'))}"
        if role == "user":
            return words
        words += "\n"
    return ""


def _said(content: object) -> str:
    return content[:OPENING] if type(content) is str else _text(content)


def _text(content: object) -> str:
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return "\n".join(text[:OPENING] for text in texts if isinstance(text, str))


def _digest(*parts: str) -> str:
    return f"{hash(parts) & _BITS:016x}"
