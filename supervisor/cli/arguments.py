"""Durations, sizes and patterns as arguments, written as the configuration writes them."""

from __future__ import annotations

import re

import click


class Duration(click.ParamType[float]):
    """`2h`, `90m`, `45s`, or seconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        from pydantic_core import PydanticCustomError

        from supervisor.config.quantities import duration

        try:
            return duration(float(str(value)) if str(value).isdecimal() else value)
        except PydanticCustomError as error:
            self.fail(f"{error.message()}; {(error.context or {}).get('instead')}", param, ctx)


class Size(click.ParamType[int]):
    """`12GiB`, `512MiB`, or bytes."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from pydantic_core import PydanticCustomError

        from supervisor.config.quantities import size

        try:
            return size(int(str(value)) if str(value).isdecimal() else value)
        except PydanticCustomError as error:
            self.fail(f"{error.message()}; {(error.context or {}).get('instead')}", param, ctx)


class Pattern(click.ParamType["re.Pattern[str]"]):
    """A regular expression, as Python has them."""

    name = "pattern"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> re.Pattern[str]:
        try:
            return re.compile(str(value))
        except re.error as error:
            self.fail(f"{value!r} is no regular expression: {error}", param, ctx)
