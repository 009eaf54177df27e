"""A field of a form, among files that look like one."""

from __future__ import annotations

import pytest

from supervisor.errors import BadRequest
from supervisor.web.forms import boundary, field


def form(*parts: tuple[str, bytes]) -> bytes:
    whole = [
        b'--xx\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (n.encode(), v) for n, v in parts
    ]
    return b"".join([*whole, b"--xx--\r\n"])


def test_a_field_is_found_wherever_it_stands() -> None:
    sound = b'\r\nContent-Disposition: form-data; name="model"\r\n\r\nimpostor\r\n-xx'
    for parts in ([("model", b"whisper"), ("file", sound)], [("file", sound), ("model", b"whisper")]):
        assert field(form(*parts), b"--xx", "model") == "whisper"


def test_a_field_that_is_not_there_is_none() -> None:
    assert field(form(("file", b"1")), b"--xx", "model") is None


def test_other_headers_of_a_part_are_passed_over() -> None:
    part = b"--xx\r\nContent-Type: text/plain\r\nCONTENT-disposition: form-data; filename=f; name=model\r\n\r\na\r\n--xx--"
    assert field(part, b"--xx", "model") == "a"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"--",
        b"--xx",
        b"--xx\r\n",
        b"{}",
        form(("model", b"a"))[:-8],
        form(("model", b"a"), ("model", b"b")),
        form(("model", b"\xff")),
        form(("model", b"a" * 5000)),
        form(*[("x", b"")] * 1001),
    ],
)
def test_what_is_no_form_is_refused(data: bytes) -> None:
    with pytest.raises(BadRequest):
        field(data, b"--xx", "model")


def test_the_boundary_is_told_by_the_content_type() -> None:
    assert boundary('multipart/form-data; boundary="a b"') == b"--a b"


@pytest.mark.parametrize(
    "told", ["", "application/json", "multipart/form-data", "multipart/form-data; boundary=" + "x" * 71]
)
def test_a_form_without_a_boundary_is_refused(told: str) -> None:
    with pytest.raises(BadRequest):
        boundary(told)
