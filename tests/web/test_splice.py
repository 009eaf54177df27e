"""Another model's name in a body, and not a byte else."""

from __future__ import annotations

import json
import mmap
import tempfile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.web.splice import with_model

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["model", "a", '"', "\\"]), inner)
    ),
    max_leaves=20,
)
BODIES = st.dictionaries(st.sampled_from(["model", "messages", 'mo"del', "tools", "\\", "modèle"]), VALUES)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'{"model":"a"}', b'{"model":"new"}'),
        (b' {\n "model" : "a" , "x": 1 }\n', b' {\n "model" : "new" , "x": 1 }\n'),
        (b'{"x":{"model":"a"},"model":"a"}', b'{"x":{"model":"a"},"model":"new"}'),
        (b'{"x":[{"model":"a"}],"model":"a"}', b'{"x":[{"model":"a"}],"model":"new"}'),
        (b'{"mod\\u0065l":"a"}', b'{"mod\\u0065l":"new"}'),
        (b'{"model":"a","model":"b"}', b'{"model":"new","model":"new"}'),
        (b'{"a":"model","model":"b"}', b'{"a":"model","model":"new"}'),
        (b'{"a":"\\"model\\":\\"x","model":"b"}', b'{"a":"\\"model\\":\\"x","model":"new"}'),
        (b'{"a":"\\\\","model":"b"}', b'{"a":"\\\\","model":"new"}'),
        (b'{"model":{"model":["a"]},"b":[]}', b'{"model":"new","b":[]}'),
        (b'{"a":[],"b":{},"model":null}', b'{"a":[],"b":{},"model":"new"}'),
        (b'{"a":"model"}', b'{"a":"model"}'),
    ],
)
def test_only_the_outermost_model_is_replaced(before: bytes, after: bytes) -> None:
    assert with_model(before, "new") == after


@given(BODIES, st.text(), st.sampled_from([None, 1]), st.booleans())
def test_whatever_the_body_only_its_model_is_another(
    body: dict[str, Any], model: str, indent: int | None, plain: bool
) -> None:
    written = json.dumps(body, indent=indent, ensure_ascii=plain).encode(errors="replace")
    expected = json.loads(written)
    if "model" in body:
        expected["model"] = model
    assert json.loads(with_model(written, model)) == expected


def test_a_file_is_read_where_it_lies() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b'{"model":"a","x":"' + b"y" * 100_000 + b'"}')
        file.flush()
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    assert with_model(pages, "b") == b'{"model":"b","x":"' + b"y" * 100_000 + b'"}'
