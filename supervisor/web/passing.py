"""What is seen of an answer while its bytes go by: errors inside it, whether it came to its end, what it cost.

Nothing is parsed. The bytes may carry HTTP's chunk lines, which a line feed in JSON is never mistaken for: JSON
writes it as two letters.
"""

from __future__ import annotations

import re

from supervisor.web.dialects import MARKS, Marks

KEPT = 2 << 10
"""Bytes kept from the beginning and, at the least, from the end of an answer."""

_SMALL = 512
_PIECES = 32
"""Pieces of so many bytes are looked over together, so many at once."""

MOST = 2 * KEPT + _PIECES * _SMALL
"""Bytes of an answer that are held."""

_ERROR = re.compile(rb'(?:^|\n)data: ?(\{(?:"type": ?"error", ?)?"error": ?[{"])')
"""A frame that is an error, as OpenAI's and Anthropic's streams have it; `"error": null` is none."""
_ERROR_EVENT = re.compile(rb"(?:^|\n)(event: error\r?\n)")
_FRAME = b"data: {"
_FRAME_END = re.compile(rb"\n\r?\n")
_LONGEST_OPENING = 48
_CHUNK_LINE = re.compile(rb"\r\n[0-9A-Fa-f]+\r\n")
_PROMPT = re.compile(rb'"(?:prompt|input)_tokens"\s*:\s*(\d{1,12})(?!\d)')
_OUTPUT = re.compile(rb'"(?:completion|output)_tokens"\s*:\s*(\d{1,12})(?!\d)')
"""The newer APIs call them input and output. No engine makes a million million of them."""


class Passing:
    """An answer in one piece, or in many: its beginning and its end are kept."""

    events = failed = False
    """It is a stream of events; one that told of an error went by, whole."""

    def __init__(self) -> None:
        self._head = self._last = b""
        self._pieces: list[bytes] = []  # what came behind that

    def see(self, data: bytes) -> int:
        """How many bytes of `data` may go on where an error frame ends in it (vLLM sends [DONE] after it), else -1."""
        self._pieces.append(data)
        if len(data) > _SMALL or len(self._pieces) >= _PIECES:
            self._look_over()
        return -1

    def _look_over(self) -> bytes:
        """What came, to keep no more of it than its beginning and its end."""
        came = b"".join(self._pieces)
        self._pieces.clear()
        if len(self._head) < KEPT:
            self._head += came[: KEPT - len(self._head)]
        self._last = (self._last + came)[-KEPT:] if len(came) < KEPT else came[-KEPT:]
        return came

    def _end(self) -> bytes:
        if self._pieces:
            self._look_over()
        return self._last

    def ended(self) -> bool:
        """Whether what ends it came: of a stream of events alone can it be told apart from where it broke off."""
        return True

    def at_boundary(self) -> bool:
        """Whether what came so far, but for the chunk that ends an answer, ends where an event and its chunk do, so
        that a chunk of ours may follow."""
        return self._end().removesuffix(b"0\r\n\r\n").endswith((b"\n\n\r\n", b"\n\r\n\r\n"))

    def made(self) -> int | None:
        """Tokens so far, about; None where they cannot be told."""
        return None

    def usage(self) -> tuple[int | None, int | None]:
        """Tokens of the prompt and of the answer; near the end of most answers, near the start of a ranking."""
        for part in (self._text_end(), self._head):
            if (at := part.rfind(b'"usage"')) >= 0:
                prompt, output = _PROMPT.search(part, at), _OUTPUT.search(part, at)
                if prompt or output:
                    return int(prompt[1]) if prompt else None, int(output[1]) if output else None
        return None, None

    def _text_end(self) -> bytes:
        """The end of the answer without the lines that chunks begin with."""
        return _CHUNK_LINE.sub(b"", self._end())


class Events(Passing):
    """A stream of events, which has an end of its own."""

    events = True

    def __init__(self, marks: Marks = MARKS["openai"]) -> None:
        super().__init__()
        self._marks = marks
        self._named = marks is not MARKS["openai"]  # its events have names
        self._error = _ERROR_EVENT if self._named else _ERROR
        self._closing = False  # the last event has begun to go by
        self._in_error = False
        self._frames = 0
        self._edge = b""  # what an error that is not whole yet may have begun with

    def see(self, data: bytes) -> int:
        self._pieces.append(data)
        if len(data) > _SMALL or len(self._pieces) >= _PIECES:
            self._look_over()
        if not self._edge and not self._named and data[-1:] == b"\n" and data.find(b'"error"') < 0:
            return -1
        return self._look_closely(data)

    def _look_closely(self, data: bytes) -> int:
        before, seen = len(self._edge), self._edge + data
        self._closing = self._closing or self._marks.end.search(seen) is not None
        end = self._error_end(seen)
        whole = b"" if seen.endswith(b"\n") and not self._named else seen[-_LONGEST_OPENING:]
        self._edge = seen[-2:] if self._in_error else whole
        return end - before if end >= 0 else -1

    def _error_end(self, seen: bytes) -> int:
        start = 0
        if not self._in_error:
            found = self._error.search(seen)
            if found is None:
                return -1
            self._in_error, start = True, found.start(1)
        end = _FRAME_END.search(seen, start)
        self.failed = end is not None
        return end.end() if end else -1

    def _look_over(self) -> bytes:
        before = self._last[1 - len(_FRAME) :]
        came = super()._look_over()
        self._frames += (before + came).count(_FRAME)
        return came

    def ended(self) -> bool:
        """Every stream of events has a last one; where that did not come whole, it was broken off."""
        last = self._text_end()
        closing = self._closing or self._marks.end.search(b"\n" + last) is not None
        return closing and last.endswith(self._marks.close)

    def made(self) -> int:
        """Tokens so far, about: engines send most of them in a frame of their own, after one without any."""
        self._end()
        return max(0, self._frames - 1)
