"""Single values as they may be written: addresses, names, paths, GPUs, lines of cron. Each says what to write instead."""

from __future__ import annotations

import re
import zoneinfo
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field

from supervisor.config.quantities import wrong

T = TypeVar("T")


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _path(value: object) -> object:
    return Path(_text(value)) if isinstance(value, str) and value else value


def _text(value: str) -> str:
    if "\0" in value:
        raise wrong("a NUL character cannot be passed to a program", "leave it out")
    return value


def _variable(value: str) -> str:
    if not value or "=" in value:
        raise wrong(f"{value!r} is no name of a variable", "write one without =")
    return _text(value)


def _listen(value: str) -> str:
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\s:\[\]]+):(\d{1,5})", value)
    if match is None or int(match[2]) > 65535:
        raise wrong(f"{value!r} is no address", 'write "127.0.0.1:8000", "[::1]:8000" or "tailscale:8000"')
    return value


def _url(value: str) -> str:
    """Where its /v1 is found, without that; what is wrong is not repeated: it may hold a password."""
    if not re.fullmatch(r"https?://([\w.-]+|\[[0-9a-fA-F:.]+\])(:\d{1,5})?(/[\w./~-]*)?", value):
        raise wrong(
            "this is no URL of a server", 'write "https://HOST:PORT", without a name or a password in it'
        )
    return value.rstrip("/").removesuffix("/v1")


def _gpu(value: object) -> object:
    if type(value) is int and value >= 0:
        return value
    if isinstance(value, str) and re.fullmatch(
        r"GPU-[0-9a-fA-F-]+|([0-9a-fA-F]+:)?[0-9a-fA-F]+:[\w.]+", value
    ):
        return value
    raise wrong(f"{value!r} names no GPU", 'write an index such as 0, a UUID "GPU-..." or a PCI id "01:00.0"')


def _model_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*", value):
        raise wrong(f"{value!r} is no model name", "write letters, digits and . _ : / @ -, without spaces")
    return value


def _hash(value: str) -> str:
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", value):
        raise wrong("this is no key hash", 'write "sha256:" and 64 lower-case hex digits')
    return value


def _timezone(value: str) -> str:
    try:
        zoneinfo.ZoneInfo(value)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise wrong(
            f"this host knows no time zone {value!r}", 'write an IANA name such as "Europe/Berlin"'
        ) from None
    return value


def _host(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", value):
        raise wrong(f"{value!r} is no host name", 'write it in small letters, such as "images.example.org"')
    return value


def _drafting(value: dict[str, object]) -> dict[str, object]:
    if not {"method", "model"} & set(value):
        raise wrong(
            "it says neither method nor model", 'write { method = "ngram", num_speculative_tokens = 4 }'
        )
    return value


_CRON = (("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 7))
_CRON_NAMES: dict[str, tuple[str, ...]] = {
    "weekday": ("sun", "mon", "tue", "wed", "thu", "fri", "sat"),
    "month": ("", "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"),
}


def _cron(value: str) -> str:
    """Five fields of numbers, names, ranges, lists and steps, as cron knows them."""
    fields = value.split()
    instead = 'write minute, hour, day, month and weekday, such as "0 8 * * 1-5"'
    if len(fields) != len(_CRON):
        raise wrong(f"{value!r} has {len(fields)} fields instead of five", instead)
    for field, (name, low, high) in zip(fields, _CRON, strict=True):
        if not all(_is_span(part, name, low, high) for part in field.lower().split(",")):
            raise wrong(f"{field!r} is no {name} of cron", instead)
    return value


def _is_span(part: str, name: str, low: int, high: int) -> bool:
    """Whether it is one of a field's list: a number, a range or all of them, in steps."""
    span, slash, step = part.partition("/")
    ends = [] if span == "*" else [_cron_number(end, name) for end in span.split("-")]
    within = len(ends) <= 2 and all(low <= end <= high for end in ends)
    ordered = len(ends) < 2 or ends[0] <= ends[1] or name == "weekday"
    return within and ordered and (not slash or re.fullmatch(r"[1-9]\d?", step) is not None)


def _cron_number(text: str, name: str) -> int:
    names = _CRON_NAMES.get(name, ())
    if text and text in names:
        return names.index(text)
    return int(text) if re.fullmatch(r"\d{1,2}", text) else -1


ListOf = Annotated[tuple[T, ...], BeforeValidator(_tuple)]
Text = Annotated[str, AfterValidator(_text)]
Name = Annotated[str, Field(min_length=1), AfterValidator(_text)]
Env = dict[Annotated[str, AfterValidator(_variable)], Text]
Strings = ListOf[Text]
Command = Annotated[ListOf[Text], Field(min_length=1)]
FilePath = Annotated[Path, BeforeValidator(_path)]
Listen = Annotated[str, AfterValidator(_listen)]
Url = Annotated[str, AfterValidator(_url)]
Host = Annotated[str, AfterValidator(_host)]
Gpu = Annotated[int | str, BeforeValidator(_gpu)]
ModelName = Annotated[str, AfterValidator(_model_name)]
KeyHash = Annotated[str, AfterValidator(_hash)]
Timezone = Annotated[str, AfterValidator(_timezone)]
Cron = Annotated[str, AfterValidator(_cron)]
Drafting = Annotated[dict[str, str | int | float | bool], AfterValidator(_drafting)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]
