"""Tools without a parser, and URLs of media: what an engine is given, and what is refused before it."""

from __future__ import annotations

import contextlib
import json
import mmap
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.config import Profile
from supervisor.errors import BadRequest
from supervisor.web.contents import read
from supervisor.web.demands import Demands, without_tools

PLAIN = Profile(name="llama_0", model="llama", weights="w", gpus=(0,))
OPEN = PLAIN.model_copy(update={"name": "llama_1", "allowed_media_domains": ("img.example.org",)})
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}

EVIL = [
    "http://169.254.169.254/latest/meta-data",
    "http://127.0.0.1:8000/x.png",
    "http://[::1]/x.png",
    "http://[::ffff:7f00:1]/x.png",
    "http://2130706433/x.png",
    "http://0x7f000001/x.png",
    "http://0177.0.0.1/x.png",
    "http://127.1/x.png",
    "http://localhost/x.png",
    "file:///etc/passwd",
    "FILE:///etc/passwd",
    "ftp://img.example.org/x.png",
    "//img.example.org/x.png",
    " data:image/png;base64,AA",
    "http://img.example.org\\@127.0.0.1/x.png",
    "http://127.0.0.1\\@img.example.org/x.png",
    "http:\\\\127.0.0.1/x.png",
    "http://img.example.org@127.0.0.1/x.png",
    "http://user:pw@img.example.org/x.png",
    "http://127.0.0.1#@img.example.org/x.png",
    "http://127.0.0.1?img.example.org/",
    "http://img.example.org.evil.example/x.png",
    "http://evil-img.example.org/x.png",
    "http://img.example.org./x.png",
    "http://img.example.org\t/x.png",
    "http://127.0.0.1\n.img.example.org/x.png",
    "http://img.example.org:80@127.0.0.1/x.png",
    "http://\u0131mg.example.org/x.png",
    "http://img\u3002example.org/x.png",
    "http://img.example.org/\u00e4.png",
    "",
]


def asking(*parts: dict[str, Any], **fields: Any) -> bytes:
    content = [{"type": "text", "text": "What is this?"}, *parts]
    return json.dumps(
        {"model": "llama", "messages": [{"role": "user", "content": content}], **fields}
    ).encode()


def demands_of(body: bytes | mmap.mmap) -> Demands:
    return read(body, "webui", frozenset({"generate"}))[1]


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


@pytest.mark.parametrize("url", EVIL)
@pytest.mark.parametrize("profile", [PLAIN, OPEN], ids=["none allowed", "one allowed"])
def test_no_url_leads_an_engine_elsewhere(url: str, profile: Profile) -> None:
    with pytest.raises(BadRequest, match="takes media as data: URLs"):
        demands_of(asking(image(url))).check(profile)


@pytest.mark.parametrize(
    "url",
    ["https://img.example.org/a.png?x=1&y=[2]#z", "HTTP://IMG.example.org:8080/", "http://img.example.org"],
)
def test_an_allowed_host_is_fetched_from_by_the_profile_that_allows_it(url: str) -> None:
    demands = demands_of(asking(image(url)))
    demands.check(OPEN)
    demands.check_any([PLAIN, OPEN])
    with pytest.raises(BadRequest):
        demands.check(PLAIN)


@pytest.mark.parametrize("url", ["data:image/png;base64,AAAA", "DATA:,x"])
def test_data_goes_to_every_engine(url: str) -> None:
    demands_of(asking(image(url))).check(PLAIN)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": "http://a.b/c"},
        {"image_url": "http://a.b/c"},
        {"type": "audio_url", "audio_url": {"url": "http://a.b/c"}},
        {"type": "video_url", "video_url": {"url": "http://a.b/c"}},
        {"type": "input_image", "image_url": "http://a.b/c"},
        {"type": "input_file", "file_url": "http://a.b/c"},
        {"type": "image", "source": {"type": "url", "url": "http://a.b/c"}},
        {"type": "tool_result", "content": [image("http://a.b/c")]},
    ],
)
def test_urls_are_found_in_every_shape(part: dict[str, Any]) -> None:
    assert demands_of(asking(part)).urls == ("http://a.b/c",)
    assert demands_of(json.dumps({"model": "llama", "input": [{"content": [part]}]}).encode()).urls


def test_a_url_among_numbers_is_found() -> None:
    body = {
        "model": "llama",
        "prompt": [1, 2, image("http://a.b/c")],
        "input": [[3, [image("http://a.b/d")]]],
    }
    assert demands_of(json.dumps(body).encode()).urls == ("http://a.b/c", "http://a.b/d")


def test_an_escaped_key_is_the_same_key() -> None:
    body = asking(image("http://a.b/c")).replace(b"image_url", b"image\\u005furl")
    assert demands_of(body).urls == ("http://a.b/c",)


def test_the_last_of_two_equal_keys_counts_as_it_does_for_the_engine() -> None:
    body = b'{"model": "llama", "messages": [{"image_url": {"url": "data:,x", "url": "http://a.b/c"}}]}'
    assert demands_of(body).urls == ("http://a.b/c",)
    assert json.loads(body)["messages"][0]["image_url"]["url"] == "http://a.b/c"


def test_a_text_about_urls_is_text() -> None:
    assert demands_of(asking({"type": "text", "text": 'say "image_url": "http://a.b/c"'})) == Demands()


@pytest.mark.parametrize(
    "odd",
    [
        b"1e999",
        b"NaN",
        b'"\\ud800"',
        b'"\xed\xa0\x80"',
        b'"\xff"',
        b"[" * 990 + b"]" * 990,
        b"[" * 3000 + b"]" * 3000,
    ],
    ids=["number", "no number", "half a letter", "half a letter in bytes", "no letter", "deep", "deeper"],
)
@pytest.mark.parametrize("name", [b"unknown", b"tools", b"messages"])
@pytest.mark.parametrize("size", [0, 64 << 10], ids=["short", "long"])
def test_nothing_hides_behind_what_an_engine_may_read_and_llmd_cannot(
    name: bytes, odd: bytes, size: int
) -> None:
    body = b'{"messages": [{"image_url": "http://a.b/c"}], "input": [{"image_url": "http://a.b/c"}], "model": "m"'
    with contextlib.suppress(BadRequest):
        assert demands_of(body + b', "other": "' + b"x" * size + b'", "' + name + b'": ' + odd + b"}").urls


@given(st.recursive(st.none() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_nothing_odd_breaks_it(value: Any) -> None:
    assert not demands_of(json.dumps({"model": "llama", "messages": value}).encode())


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"tools": [TOOL, TOOL]}, 2),
        ({"tools": [TOOL], "tool_choice": None}, 1),
        ({"tools": [TOOL], "tool_choice": "auto"}, 1),
        ({"tools": [TOOL], "tool_choice": {"type": "auto"}}, 1),
        ({"tools": [TOOL], "tool_choice": "none"}, 0),
        ({"tools": [TOOL], "tool_choice": "required"}, 0),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}}, 0),
        ({"tools": [TOOL], "tool_choice": ["auto"]}, 0),
        ({"tools": []}, 0),
        ({"tools": "none"}, 0),
    ],
)
def test_only_tools_that_the_model_may_choose_need_a_parser(fields: dict[str, Any], count: int) -> None:
    assert demands_of(asking(**fields)).tools == count


def test_tools_are_dropped_refused_or_passed_as_the_profile_says() -> None:
    demands = demands_of(asking(tools=[TOOL]))
    profiles = {
        how: PLAIN.model_copy(update=fields)
        for how, fields in {
            "drop": {},
            "refuse": {"tools": "refuse"},
            "pass": {"tools": "pass"},
            "parsed": {"tool_parser": "hermes"},
            "parsed anyway": {"tool_parser": "hermes", "tools": "refuse"},
        }.items()
    }
    assert [how for how, profile in profiles.items() if demands.drops_tools(profile)] == ["drop"]
    with pytest.raises(BadRequest, match="without tools"):
        demands.check(profiles["refuse"])
    for how in ("drop", "pass", "parsed", "parsed anyway"):
        demands.check(profiles[how])
    demands.check_any([profiles["refuse"], profiles["parsed"]])


def test_all_but_the_tools_stays_as_it_was_written() -> None:
    body = b'{"model":"llama", "tools": [{"a": 1}], "tool_choice":"auto","parallel_tool_calls":true,'
    body += b'"temperature": 0.10, "seed": 12345678901234567890123, "x": {"tools": [1]}}'
    assert without_tools(body) == (
        b'{"model":"llama","temperature":0.10,"seed":12345678901234567890123,"x":{"tools": [1]}}'
    )


@pytest.mark.parametrize("size", [10, 1 << 20])
def test_a_body_of_any_size_tells_what_it_demands(size: int) -> None:
    words = {"type": "text", "text": "x" * size}
    assert not demands_of(asking(words))
    assert demands_of(asking(words, image("http://a.b/c"))).urls == ("http://a.b/c",)
    assert demands_of(asking(words, tools=[TOOL])).tools == 1
    with mmap.mmap(-1, len(body := asking(words, tools=[TOOL]))) as pages:
        pages.write(body)
        assert demands_of(pages).tools == 1
