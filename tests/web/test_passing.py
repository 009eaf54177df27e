"""What is seen of an answer as it goes by, however the network cut it, with the lines of HTTP's chunks or without."""

from __future__ import annotations

import pytest

from supervisor.web.passing import MOST, Events, Passing

STREAM = b'data: {"x": 1}\n\ndata: {"error": {"message": "EngineDead"}}\n\ndata: [DONE]\n\n'
ANTHROPIC = (
    b'event: error\ndata: {"type": "error", "error": {"type": "api_error"}}\n\nevent: message_stop\n\n'
)
SIZES = pytest.mark.parametrize("size", [1, 2, 3, 7, 16, 40, 1000])


def chunks(*events: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(event), event) for event in events)


def through(passing: Passing, data: bytes, size: int) -> bytes:
    """What may go on of `data`, cut into pieces of `size` bytes."""
    out = b""
    for at in range(0, len(data), size):
        piece = data[at : at + size]
        end = passing.see(piece)
        out += piece if end < 0 else piece[:end]
        if passing.failed:
            break
    return out


@SIZES
@pytest.mark.parametrize(
    ("stream", "after"),
    [
        (STREAM, b"data: [DONE]\n\n"),
        (ANTHROPIC, b"event: message_stop\n\n"),
        (STREAM.replace(b"\n\n", b"\r\n\r\n"), b"data: [DONE]\r\n\r\n"),
    ],
)
def test_an_error_frame_ends_a_stream_however_it_is_cut(stream: bytes, after: bytes, size: int) -> None:
    passing = Events()
    assert through(passing, stream, size) == stream.removesuffix(after)
    assert passing.failed


@SIZES
def test_an_error_frame_is_seen_between_the_lines_of_chunks(size: int) -> None:
    frames = [frame + b"\n\n" for frame in STREAM.split(b"\n\n")[:3]]
    passing = Events()
    assert through(passing, chunks(*frames), size) == chunks(*frames[:2]).removesuffix(b"\r\n")


@SIZES
@pytest.mark.parametrize(
    "text",
    [
        b'data: {"content": "data: {\\"error\\""}\n\n',
        b'data: {"type": "response.created", "response": {"error": null}}\n\n',
        b'data: {"error": null, "content": "x"}\n\n',
    ],
)
def test_a_stream_that_only_speaks_of_errors_goes_by(text: bytes, size: int) -> None:
    passing = Events()
    assert through(passing, text + b"data: [DONE]\n\n", size) == text + b"data: [DONE]\n\n"
    assert not passing.failed
    assert passing.ended()


@SIZES
def test_the_end_is_known_between_the_lines_of_chunks(size: int) -> None:
    passing = Events()
    through(passing, chunks(b"data: {}\n\n", b"data: [DO", b"NE]\n\n") + b"0\r\n\r\n", size)
    assert passing.ended()


@SIZES
@pytest.mark.parametrize("line", [b"\n", b"\r\n"])
@pytest.mark.parametrize("more", [b"", b"0\r\n\r\n"])
def test_a_frame_of_ours_has_its_place_behind_a_whole_chunk(line: bytes, more: bytes, size: int) -> None:
    """And before the one that ends the answer, which is withheld."""
    for text, whole in ((b"data: {}" + 2 * line, True), (b"data: {}" + line, False), (b"data: {", False)):
        passing = Events()
        through(passing, chunks(text) + more, size)
        assert passing.at_boundary() == whole


@SIZES
@pytest.mark.parametrize("line", [b"\n", b"\r\n"])
def test_in_the_middle_of_a_chunk_there_is_no_place(line: bytes, size: int) -> None:
    whole = chunks(b"data: 10" + 2 * line)
    for end in range(1, len(whole)):
        passing = Events()
        through(passing, whole[:end], size)
        assert not passing.at_boundary()


@pytest.mark.parametrize("filling", [b"", b"x" * 50_000])
@pytest.mark.parametrize("size", [1, 700, 1 << 20])
def test_usage_is_found_at_either_end(filling: bytes, size: int) -> None:
    usage = b'"usage": {"prompt_tokens": 5, "total_tokens": 8, "completion_tokens":3}'
    for answer in (b'{"data": "' + filling + b'", ' + usage + b"}", b"{" + usage + b', "r": "' + filling):
        passing = Passing()
        assert through(passing, answer, size) == answer
        assert passing.usage() == (5, 3)


def test_what_no_tokens_could_be_is_no_usage() -> None:
    passing = Passing()
    through(passing, b'{"usage": {"prompt_tokens": 5, "completion_tokens": %d}}' % 10**20, 1000)
    assert passing.usage() == (5, None)


def test_usage_is_found_across_chunks() -> None:
    passing = Passing()
    through(passing, chunks(b'{"usage": {"prompt_tok', b'ens": 5}}') + b"0\r\n\r\n", 1000)
    assert passing.usage() == (5, None)


@pytest.mark.parametrize("size", [1, 512, 513, 100_000])
def test_what_is_remembered_is_bounded(size: int) -> None:
    passing = Events()
    for _ in range(1000):
        passing.see(b"x" * size)
        assert len(passing._head) + len(passing._last) + sum(map(len, passing._pieces)) <= MOST


@SIZES
def test_tokens_under_way_are_counted_whenever_they_are_asked_for(size: int) -> None:
    stream = chunks(*[b'data: {"content": "x"}\n\n'] * 100)
    asked, unasked = Events(), Events()
    for at in range(0, len(stream), size):
        unasked.see(stream[at : at + size])
        asked.see(stream[at : at + size])
        assert asked.made() == max(0, stream[: at + size].count(b"data: {") - 1)
    assert unasked.made() == 99
