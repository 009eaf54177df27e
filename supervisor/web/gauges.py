"""The state of engines, devices and the daemon as metric families, made when Prometheus asks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from itertools import product
from typing import Any

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from supervisor.core.failures import FailureClass
from supervisor.core.lifecycle import State
from supervisor.core.tally import KINDS, MODES, REASONS, WAYS, Tally, Total
from supervisor.web.driving import Driver

Json = Mapping[str, Any]
Key = tuple[str, str]
Samples = Iterable[tuple[tuple[str, ...], float]]

_DEVICE = ("device", "gpu")


class Gauges(Collector):
    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def describe(self) -> Iterable[Metric]:
        return []  # else the driver would be asked before it runs

    def collect(self) -> Iterator[Metric]:
        status = self._driver.status()
        yield from _engines(status["engines"])
        for device in (_devices, _memory):
            yield from device(status)
        yield from _counted(self._driver.tally, list(self._driver.config.profiles))
        yield from _peers(status.get("peers", ()))
        yield from _daemon(status)


def _gauge(name: str, text: str, labels: tuple[str, ...], samples: Samples) -> Metric:
    family = GaugeMetricFamily(f"llmd_{name}", text, labels=labels)
    for values, sample in samples:
        family.add_metric(values, sample)
    return family


def _counter(name: str, text: str, labels: tuple[str, ...], samples: Samples) -> Metric:
    family = CounterMetricFamily(f"llmd_{name}", text, labels=labels)
    for values, sample in samples:
        family.add_metric(values, sample)
    return family


def _engines(engines: Iterable[Json]) -> Iterator[Metric]:
    named = [((engine["profile"],), engine) for engine in engines]
    for name, key, text in (
        ("in_flight", "in_flight", "Requests on an engine"),
        ("queued", "queued", "Requests that wait and that the profile could serve"),
        ("slots", "slots", "Requests that an engine takes at a time"),
    ):
        yield _gauge(name, text, ("profile",), ((who, e.get(key) or 0) for who, e in named))
    states = (((*who, state.value), e["state"] == state) for who, e in named for state in State)
    yield _gauge("engine_state", "1 for its state, 0 for the others", ("profile", "state"), states)


def _place(device: Json) -> tuple[str, str]:
    """A device's labels: its UUID, and its index as people count, or "host"."""
    index = device.get("index")
    return str(device["device"]), str(device["device"] if index is None else index)


def _devices(status: Json) -> Iterator[Metric]:
    devices = status["devices"]
    known: Samples
    for name, key, text in (
        ("utilization_ratio", "utilization", "Share of time in which a kernel ran"),
        ("temperature_celsius", "temperature", "Of the chip"),
        ("power_watts", "power", "Drawn now"),
        ("reading_age_seconds", "age_s", "Since the device was last read"),
    ):
        known = ((_place(d), d[key]) for d in devices if d.get(key) is not None)
        yield _gauge(f"device_{name}", text, _DEVICE, known)
    for name, text in (
        ("trouble", "1 where its readings are not to be trusted"),
        (
            "quarantined",
            "1 where its memory did not come back, or its driver reported an error that needs a reset",
        ),
    ):
        yield _gauge(f"device_{name}", text, _DEVICE, ((_place(d), bool(d.get(name))) for d in devices))
    xids = (((*_place(d), str(x["xid"])), x["count"]) for d in devices for x in d.get("xids", ()))
    yield _counter("device_xids", "Errors that the driver reported, by XID", (*_DEVICE, "xid"), xids)
    sizes = (((*_place(d), kind), d[kind]) for d in devices for kind in ("total", "used", "free"))
    known = ((labels, size) for labels, size in sizes if size is not None)
    yield _gauge("memory_bytes", "As the driver tells it", (*_DEVICE, "kind"), known)


def _memory(status: Json) -> Iterator[Metric]:
    """The ledger against the driver: who has what, and what is promised beside what is measured."""
    owned: list[tuple[tuple[str, ...], float]] = []
    ledger: list[tuple[tuple[str, ...], float]] = []
    for device in status["devices"]:
        place, shares = _place(device), _shares(device, status["engines"])
        owned += [((*place, *who), size) for who, size in shares.items()]
        promised = sum(device.get("ours", {}).values())
        measured = sum(size for (owner, _), size in shares.items() if owner in ("engine", "loan"))
        ledger += [((*place, "promised"), promised), ((*place, "measured"), measured)]
    yield _gauge(
        "memory_owner_bytes",
        "Who has a device's memory: engine, loan, foreign, reserved (promised, not taken yet), free",
        (*_DEVICE, "owner", "profile"),
        owned,
    )
    yield _gauge(
        "ledger_bytes", "What llmd promised, and what was measured of it", (*_DEVICE, "kind"), ledger
    )


def _shares(device: Json, engines: Iterable[Json]) -> dict[tuple[str, str], float]:
    """(owner, profile) -> bytes; together what the device has."""
    measured = {e["profile"]: e["measured"].get(device["device"]) for e in engines}
    shares: dict[tuple[str, str], float] = {}
    reserved: dict[tuple[str, str], float] = {}
    for profile, held in device.get("ours", {}).items():
        if profile not in measured:  # its name is the borrower's own
            shares["loan", ""] = shares.get(("loan", ""), 0) + held
            continue
        taken = held if measured[profile] is None else measured[profile]
        shares["engine", profile] = taken
        reserved["reserved", profile] = max(0, held - taken)
    shares["foreign", ""] = max(0, (device["used"] or 0) - sum(shares.values()))
    shares |= reserved
    shares["free", ""] = max(0, (device["total"] or 0) - sum(shares.values()))
    return shares


def _counted(tally: Tally, profiles: list[str]) -> Iterator[Metric]:
    """Each begins at 0: Prometheus sees no increase in a counter that appears with its first event."""

    def totals(
        name: str, text: str, label: str, words: Iterable[str], found: dict[Key, Total]
    ) -> Iterator[Metric]:
        every = dict.fromkeys(product(profiles, words), Total()) | found
        labels = ("profile", label)
        yield _counter(name, text, labels, ((key, total.count) for key, total in every.items()))
        seconds = ((key, total.seconds) for key, total in every.items())
        yield _counter(f"{name[:-1]}_seconds", f"{text}: how long they took", labels, seconds)

    yield from totals("engine_starts", "Ways up that ended in ready", "way", WAYS.values(), tally.starts)
    yield from totals("engine_stops", "Ends, until the memory was back", "reason", REASONS, tally.stops)
    yield from totals("engine_sleeps", "Engines put to sleep", "reason", REASONS, tally.sleeps)
    text = "Engines that made room, until their memory was back; a swap costs one that was in use"
    yield from totals("evictions", text, "kind", KINDS, tally.evictions)
    classes = [kind.replace(" ", "_") for kind in FailureClass]
    failures = dict.fromkeys(product(profiles, classes), 0) | tally.restarts
    yield _counter("engine_failures", "Ends nobody asked for", ("profile", "class"), failures.items())
    modes = dict.fromkeys(MODES.values(), 0) | tally.modes
    ended = (((outcome,), count) for outcome, count in modes.items())
    yield _counter("mode_changes", "By how they ended", ("outcome",), ended)


def _peers(peers: Iterable[Json]) -> Iterator[Metric]:
    for name, key, text in (
        ("up", "up", "1 for a server that lists its models"),
        ("in_flight", "in_flight", "Requests on a peer"),
        ("slots", "max_concurrent", "Requests that it is given at a time"),
    ):
        yield _gauge(f"peer_{name}", text, ("peer",), (((peer["peer"],), peer[key]) for peer in peers))


def _daemon(status: Json) -> Iterator[Metric]:
    daemon = status.get("daemon", {})
    yield _gauge("build_info", "1, with the version", ("version",), [((version("llmd"),), 1)])
    yield _gauge("waiting", "Requests that wait", (), [((), status.get("waiting", 0))])
    yield _gauge("strays", "Processes that could not be proven ours", (), [((), len(status["strays"]))])
    yield _gauge(
        "disk_trouble", "Things that could not be kept", (), [((), len(status.get("disk_trouble", ())))]
    )
    trouble = bool(status.get("gpu_trouble"))
    yield _gauge("gpu_trouble", "1 where there are no GPUs to read", (), [((), trouble)])
    mode = daemon.get("mode") or {}
    yield _gauge("mode", "1 for the mode that holds", ("mode",), [((mode["name"],), 1)] if mode else [])
    yield _gauge(
        "mode_rolled_back", "1 while a mode could not begin", (), [((), bool(mode.get("rolled_back")))]
    )
    thinned = [((), status.get("suppressed", 0))]
    yield _counter("log_lines_suppressed", "Lines like others of the same second", (), thinned)
    lost = (((what,), count) for what, count in status.get("dropped", {}).items())
    yield _counter("dropped", "Lines and entries given up, by what they were", ("what",), lost)
