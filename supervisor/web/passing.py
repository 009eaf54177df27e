"""What is seen of an answer while its bytes go by: errors inside it, whether it came to its end, what it cost.

Nothing is parsed. The bytes may carry HTTP's chunk lines, which a line feed in JSON is never mistaken for: JSON
writes it as two letters.
"""

from __future__ import annotations

import re

from supervisor.web.dialects import MARKS, Marks

KEPT = 4 << 10
"""Bytes kept from the beginning and, at the least, from the end of an answer."""

MOST = 4 * KEPT

_ERROR = re.compile(rb'(?:^|\n)data: ?(\{(?:"type": ?"error", ?)?"error": ?[{"])')
"""A frame that is an error, as OpenAI's and Anthropic's streams have it; `"error": null` is none."""
_ERROR_EVENT = re.compile(rb"(?:^|\n)(event: error\r?\n)")
_FRAME = b"data: {"
_FRAME_END = re.compile(rb"\n\r?\n")
_LONGEST_OPENING = 48
_CHUNK_LINE = re.compile(rb"\r\n[0-9A-Fa-f]+\r\n")
_PROMPT = re.compile(rb'"(?:prompt|input)_tokens"\s*:\s*(\d+)')
_OUTPUT = re.compile(rb'"(?:completion|output)_tokens"\s*:\s*(\d+)')
"""The newer APIs call them input and output."""


class Passing:
    """`events`: it is a stream of events, which has an end of its own."""

    def __init__(self, events: bool, marks: Marks = MARKS["openai"]) -> None:
        self.events = events
        self._marks = marks
        self._named = marks is not MARKS["openai"]  # its events have names
        self._error = _ERROR_EVENT if self._named else _ERROR
        self._closing = False  # the last event has begun to go by
        self.failed = False  # an error frame went by, whole
        self._in_error = False
        self._frames = 0
        self._edge = b""  # what an error that is not whole yet may have begun with
        self._head = b""
        self._whole_head = False
        self._tail: list[bytes] = []
        self._kept = 0

    def see(self, data: bytes) -> int:
        """How many bytes of `data` may go on where an error frame ends in it (vLLM sends [DONE] after it), else -1."""
        self._tail.append(data)
        self._kept += len(data)
        if self._kept > MOST:
            self._forget()
        if not self._whole_head:
            self._keep_head(data)
        if not self.events:
            return -1
        self._frames += data.count(_FRAME)
        if not self._edge and not self._named and data[-1:] == b"\n" and b'"error"' not in data:
            return -1
        return self._look_closely(data)

    def _look_closely(self, data: bytes) -> int:
        before, seen = len(self._edge), self._edge + data
        self._closing = self._closing or self._marks.end in seen
        end = self._error_end(seen)
        whole = b"" if seen.endswith(b"\n") and not self._named else seen[-_LONGEST_OPENING:]
        self._edge = seen[-2:] if self._in_error else whole
        return end - before if end >= 0 else -1

    def _keep_head(self, data: bytes) -> None:
        self._head += data[: KEPT - len(self._head)]
        self._whole_head = len(self._head) == KEPT

    def _forget(self) -> None:
        """What is neither beginning nor end."""
        last = b"".join(self._tail)[-KEPT:]
        self._tail, self._kept = [last], len(last)

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

    def ended(self) -> bool:
        """Every stream of events has a last one; where that did not come whole, it was broken off."""
        if not self.events:
            return True
        last = self._last().removesuffix(b"\r\n")
        return (self._closing or self._marks.end in b"\n" + last) and last.endswith(self._marks.close)

    def at_boundary(self) -> bool:
        """Whether what came so far ends where an event and its chunk do, so that a chunk of ours may follow."""
        return b"".join(self._tail)[-4:] in (b"\n\n\r\n", b"\r\n\r\n")

    def made(self) -> int | None:
        """Tokens so far, about: engines send most of them in a frame of their own, after one without any."""
        return max(0, self._frames - 1) if self.events else None

    def usage(self) -> tuple[int | None, int | None]:
        """Tokens of the prompt and of the answer; near the end of most answers, near the start of a ranking."""
        for part in (self._last(), self._head):
            if (at := part.rfind(b'"usage"')) >= 0:
                prompt, output = _PROMPT.search(part, at), _OUTPUT.search(part, at)
                if prompt or output:
                    return int(prompt[1]) if prompt else None, int(output[1]) if output else None
        return None, None

    def _last(self) -> bytes:
        """The end of the answer without the lines that chunks begin with."""
        return _CHUNK_LINE.sub(b"", b"".join(self._tail)[-2 * KEPT :])
