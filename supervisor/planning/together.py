"""Which sets of profiles fit at the same time. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

Needs = Mapping[str, Mapping[str, int]]
"""Profile -> device -> bytes."""


def maximal_sets(needs: Needs, room: Mapping[str, int]) -> Iterator[tuple[str, ...]]:
    """Every set that fits in `room` and to which no other profile could be added, in the order of `needs`.

    Their number can grow exponentially with the profiles: take as many as you need.
    """
    names = [name for name in needs if _fits(needs[name], room)]
    yield from _grow((), (), names, dict(room), needs)


def _grow(
    chosen: tuple[str, ...], left_out: tuple[str, ...], names: list[str], room: dict[str, int], needs: Needs
) -> Iterator[tuple[str, ...]]:
    """`left_out` fit when they were passed over: one that still will at the end makes the set not maximal."""
    if any(_surely(name, names, room, needs) for name in left_out):
        return
    if not names:
        yield chosen
        return
    first, *rest = names
    if not _fits(needs[first], room):
        yield from _grow(chosen, left_out, rest, room, needs)
        return
    yield from _grow((*chosen, first), left_out, rest, _less(room, needs[first]), needs)
    yield from _grow(chosen, (*left_out, first), rest, room, needs)


def _surely(name: str, names: list[str], room: dict[str, int], needs: Needs) -> bool:
    """Whether `name` fits even beside all of `names`, so that it cannot be left out of any set from here on."""
    return all(
        size + sum(needs[other].get(device, 0) for other in names) <= room[device]
        for device, size in needs[name].items()
    )


def _fits(need: Mapping[str, int], room: Mapping[str, int]) -> bool:
    return all(size <= room.get(device, -1) for device, size in need.items())


def _less(room: dict[str, int], need: Mapping[str, int]) -> dict[str, int]:
    return {device: size - need.get(device, 0) for device, size in room.items()}
