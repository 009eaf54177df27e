"""What the dashboard shows, in pieces that are sent only when they change. Pure.

Durations that run are told as moments, in seconds since 1970: a clock that ticks is no change.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from supervisor.config import Config, Profile
from supervisor.config.models import DEFAULT_UTILIZATION
from supervisor.core.devices import HOST

Picture = dict[str, dict[str, str]]
"""Section -> key -> the piece as JSON."""


def paint(
    config: Config,
    status: Mapping[str, Any],
    flights: Mapping[str, Any],
    recent: Mapping[str, Any],
    speed: Mapping[str, float],
    wall: float,
    told: Mapping[str, str],
) -> Picture:
    """`wall`: seconds since 1970, now. `told`: the pieces of `recent` painted before, which never change."""
    totals = {device["index"]: device["total"] for device in status["devices"]}
    engines = {
        engine["profile"]: _engine(engine, config.profiles.get(engine["profile"]), speed, totals, wall)
        for engine in status["engines"]
    }
    whole = {
        "daemon": {"daemon": _daemon(config, status, wall)},
        "devices": {device["device"]: _device(device, wall) for device in status["devices"]},
        "engines": engines,
        "loans": {loan["name"]: _loan(loan, wall) for loan in status["loans"]},
        "peers": {peer["peer"]: peer for peer in status["peers"]},
        "flights": flights,
    }
    picture = {section: {key: _json(item) for key, item in items.items()} for section, items in whole.items()}
    return {**picture, "recent": {key: told.get(key) or _json(item) for key, item in recent.items()}}


def changes(old: Picture, new: Picture) -> Picture:
    """The pieces that differ; what has gone is null."""
    found: Picture = {}
    for section, items in new.items():
        before = old.get(section, {})
        differ = {key: item for key, item in items.items() if before.get(key) != item}
        differ |= {key: "null" for key in before if key not in items}
        if differ:
            found[section] = differ
    return found


def message(event: str, picture: Picture, wall: float) -> bytes:
    """An event of the stream; no line break stands within its pieces."""
    sections = (f"{_json(name)}:{{{_pieces(items)}}}" for name, items in picture.items())
    return f'event: {event}\ndata: {{"now":{wall:.2f},"sections":{{{",".join(sections)}}}}}\n\n'.encode()


def _pieces(items: Mapping[str, str]) -> str:
    return ",".join(f"{_json(key)}:{item}" for key, item in items.items())


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), default=str)


def _daemon(config: Config, status: Mapping[str, Any], wall: float) -> dict[str, Any]:
    daemon = status["daemon"]
    troubles = [status["gpu_trouble"], *status["disk_trouble"]]
    troubles += [
        f"not ours, left alone: {stray['incarnation']}: {stray['reason']}" for stray in status["strays"]
    ]
    return {
        "version": daemon.get("version"),
        "started": _moment(wall - daemon.get("uptime_s", 0)),
        "closing": daemon.get("closing", False),
        "mode": daemon.get("mode"),
        "modes": {name: mode.start for name, mode in config.modes.items()},
        "waiting": status["waiting"],
        "troubles": [trouble for trouble in troubles if trouble],
        "warnings": daemon.get("warnings", []),
        "config": {key: daemon.get(f"config_{key}") for key in ("loaded", "newer", "error")},
        "stale_after_s": config.memory.max_age,
    }


def _device(device: Mapping[str, Any], wall: float) -> dict[str, Any]:
    shown = {
        key: device[key]
        for key in ("index", "name", "total", "used", "free", "foreign", "trouble", "quarantined")
    }
    xids = [
        {"xid": x["xid"], "meaning": x["meaning"], "count": x["count"], "at": _moment(wall - x["ago_s"])}
        for x in device.get("xids", ())
    ]
    gauges = {key: device[key] for key in ("utilization", "temperature", "power")}
    return {
        **shown,
        **gauges,
        "xids": xids,
        "host": device["device"] == HOST,
        "read": _moment(wall - device["age_s"]),
    }


_AS_IT_IS = (
    "model", "task", "state", "stage", "percent", "pid", "in_flight", "slots", "queued", "reserved", "measured",
    "starts", "failure", "reason", "available", "asleep", "pinned",
)  # fmt: skip


def _engine(
    engine: Mapping[str, Any],
    profile: Profile | None,
    speed: Mapping[str, float],
    totals: Mapping[int | str | None, int],
    wall: float,
) -> dict[str, Any]:
    """`profile`: None where it is no longer configured, and its engine is on its way out."""
    ttl, state = engine["ttl_left_s"], engine["state"]
    return {
        **{key: engine[key] for key in _AS_IT_IS},
        "since": _moment(wall - engine["since_s"]),
        "eta": round(engine["eta_s"], 1) if engine["eta_s"] is not None and state != "ready" else None,
        "ends": None if ttl is None else _moment(wall + ttl),
        "speed": round(speed.get(engine["profile"], 0.0), 1),
        "planned": _planned(profile, totals) if profile else None,
        "keeps": profile is not None and profile.pin,
        "sleeps": profile is not None and profile.sleep,
    }


def _planned(profile: Profile, totals: Mapping[int | str | None, int]) -> int | None:
    """Bytes in all that the profile may take, before anything is reserved; None where a card is not known."""
    if profile.device == "cpu":
        return profile.memory
    if profile.vram is not None:
        return profile.vram * len(profile.gpus)
    if not all(gpu in totals for gpu in profile.gpus):
        return None
    share = profile.gpu_memory_utilization or DEFAULT_UTILIZATION
    return round(sum(totals[gpu] for gpu in profile.gpus) * share)


def _loan(loan: Mapping[str, Any], wall: float) -> dict[str, Any]:
    ends = None if loan["left_s"] is None else _moment(wall + loan["left_s"])
    return {**{key: loan[key] for key in ("borrower", "gpus", "size", "measured")}, "ends": ends}


def _moment(wall: float) -> int:
    return round(wall)
