"""NVML, through nvidia-ml-py: the only importer of it. Every call here blocks, and may hang in a sick driver.

Memory comes from nvmlDeviceGetMemoryInfo_v2, or from v1 where the driver lacks it (before 510). `used` is
computed as total - free: NVML's own `used` includes what the driver reserves in v1 and excludes it in v2, and
to admit an engine only what a new process can get matters.

A GPU that was read once never silently disappears: lost, failing or gone, it stays in every later survey under
its last known identity with `trouble` set. MIG slices are not read one by one.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import psutil
import pynvml

from supervisor.core.devices import Holder, Reading, Survey

_T = TypeVar("_T")

_TROUBLES = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "no NVIDIA driver: libnvidia-ml.so.1 was not found",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "the NVIDIA driver is not loaded",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
        "NVIDIA driver/library version mismatch: the driver was updated under a running kernel; "
        "reload it or reboot"
    ),
    pynvml.NVML_ERROR_NO_PERMISSION: "no permission to use the NVIDIA driver (/dev/nvidiactl)",
    pynvml.NVML_ERROR_GPU_IS_LOST: "GPU is lost",
}
_SESSION_ERRORS = {
    pynvml.NVML_ERROR_UNINITIALIZED,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
}
"""They say nothing about one GPU: the driver went away, and NVML must be initialised anew."""

_MISSING = (
    pynvml.NVMLError_FunctionNotFound,
    pynvml.NVMLError_ArgumentVersionMismatch,
    pynvml.NVMLError_NotSupported,
)
"""How drivers say that they do not have a call, or not in this version, or not for this GPU."""

_PATIENCE = 1000
"""Milliseconds that a wait for an error lasts, and after which the daemon's end is noticed."""
LISTEN_AGAIN = 10.0
"""Seconds after which to listen anew to GPUs of which one could not be listened to."""


@dataclass(frozen=True, slots=True)
class _Identity:
    device: str
    index: int
    name: str = "?"
    pci: str | None = None

    def broken(self, trouble: str, at: float) -> Reading:
        return Reading(
            self.device, 0, 0, 0, at, name=self.name, index=self.index, pci=self.pci, trouble=trouble
        )


class Session:
    """One NVML session, re-opened when it breaks, and the GPUs ever seen in it."""

    def __init__(self) -> None:
        self._open = False
        self._known: dict[str, _Identity] = {}

    def survey(self, at: float) -> Survey:
        try:
            if not self._open:
                pynvml.nvmlInit()
                self._open = True
            driver = pynvml.nvmlSystemGetDriverVersion()
            cards = [self._read(index, at) for index in range(pynvml.nvmlDeviceGetCount())]
        except pynvml.NVMLError as error:
            self.close()
            return self._failed(_explain(error), at)
        seen = {card.device for card, _ in cards}
        gone = [known.broken("GPU is gone", at) for known in self._known.values() if known.device not in seen]
        return Survey(
            readings=(*(card for card, _ in cards), *gone),
            at=at,
            driver=driver,
            holders_known=all(listed for _, listed in cards),
        )

    def close(self) -> None:
        if self._open:
            self._open = False
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()

    def _failed(self, trouble: str, at: float) -> Survey:
        readings = tuple(known.broken(trouble, at) for known in self._known.values())
        return Survey(readings=readings, at=at, trouble=trouble, holders_known=False)

    def _read(self, index: int, at: float) -> tuple[Reading, bool]:
        """The reading of one GPU, and whether the memory of each of its processes is known."""
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            return _measure(handle, self._identify(handle, index), at)
        except pynvml.NVMLError as error:
            if error.value in _SESSION_ERRORS:
                raise
            return self._remembered(index).broken(_explain(error), at), True

    def _identify(self, handle: Any, index: int) -> _Identity:
        device = pynvml.nvmlDeviceGetUUID(handle)
        pci = pynvml.nvmlDeviceGetPciInfo(handle).busId
        identity = _Identity(device, index, pynvml.nvmlDeviceGetName(handle), _text(pci))
        self._known[device] = identity
        return identity

    def _remembered(self, index: int) -> _Identity:
        # Behind a GPU that is gone the others move up: of two with one index, the later is still there.
        for known in reversed(self._known.values()):
            if known.index == index:
                return known
        return _Identity(f"gpu:{index}", index)


class Alarm:
    """Errors as the driver reports them, in an NVML session of its own."""

    def __init__(self) -> None:
        self._set: Any = None
        self._devices: dict[int, str] = {}
        """Handle -> device: a GPU that is lost cannot be asked who it is."""
        self._until: float | None = None
        """When to listen anew, for the sake of GPUs that could not be listened to; monotonic seconds."""

    @property
    def listens(self) -> bool:
        return bool(self._devices)

    def wait(self) -> list[tuple[str, int]]:
        """(device, XID) of the next error; none where there was none for a while."""
        try:
            if self._set is None:
                self._open()
            data = pynvml.nvmlEventSetWait_v2(self._set, _PATIENCE)
        except pynvml.NVMLError_Timeout:
            if self._until is not None and time.monotonic() >= self._until:
                self.close()
            return []
        except pynvml.NVMLError:  # the reading thread says what is wrong
            self.close()
            return []
        return [(self._devices[_address(data.device)], int(data.eventData))]

    def _open(self) -> None:
        pynvml.nvmlInit()
        try:
            self._set = pynvml.nvmlEventSetCreate()
        except pynvml.NVMLError:
            pynvml.nvmlShutdown()
            raise
        for index in range(pynvml.nvmlDeviceGetCount()):
            try:
                self._register(pynvml.nvmlDeviceGetHandleByIndex(index))
            except pynvml.NVMLError_NotSupported:
                continue
            except pynvml.NVMLError:
                self._until = time.monotonic() + LISTEN_AGAIN

    def _register(self, handle: Any) -> None:
        device = pynvml.nvmlDeviceGetUUID(handle)
        pynvml.nvmlDeviceRegisterEvents(handle, pynvml.nvmlEventTypeXidCriticalError, self._set)
        self._devices[_address(handle)] = device

    def close(self) -> None:
        if self._set is not None:
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlEventSetFree(self._set)
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()
        self._set, self._until = None, None
        self._devices.clear()


def _address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0


def _measure(handle: Any, identity: _Identity, at: float) -> tuple[Reading, bool]:
    memory = _memory(handle)
    holders = _holders(handle)
    reading = Reading(
        device=identity.device,
        total=memory.total if memory else 0,
        used=memory.total - memory.free if memory else 0,
        free=memory.free if memory else 0,
        at=at,
        name=identity.name,
        index=identity.index,
        pci=identity.pci,
        holders=holders or (),
        unified=memory is None,
        utilization=_told(lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100),
        temperature=_told(lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)),
        power=_told(lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000),
    )
    return reading, holders is not None and all(holder.used is not None for holder in holders)


@dataclass(frozen=True, slots=True)
class Health:
    """How one GPU fares. What its driver or its kind does not tell is None, or empty."""

    index: int
    uncorrected: int | None = None
    """Memory errors since the driver was loaded that ECC could not mend."""
    pending: bool | None = None
    """Rows of its memory wait for a reset to be replaced."""
    worn: bool | None = None
    """A row could not be replaced."""
    slowed: tuple[str, ...] = ()
    """Why its clocks are held down, where that is no mere saving of power."""
    slows_at: int | None = None
    """Degrees Celsius."""
    persistent: bool | None = None


_SLOWED = {
    pynvml.nvmlClocksThrottleReasonHwThermalSlowdown: "heat",
    pynvml.nvmlClocksThrottleReasonSwThermalSlowdown: "heat, as the driver sees it",
    pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown: "the power supply's brake",
    pynvml.nvmlClocksThrottleReasonHwSlowdown: "heat or power, as its hardware sees it",
}


def read_health() -> tuple[Health, ...]:
    """Of each GPU that answers; none without a driver. Blocks, and may hang: for a thread of its own."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    count = _told(pynvml.nvmlDeviceGetCount) or 0
    health = tuple(filter(None, map(_health, range(count))))
    _told(pynvml.nvmlShutdown)
    return health


def _health(index: int) -> Health | None:
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    except pynvml.NVMLError:
        return None
    rows = _told(lambda: pynvml.nvmlDeviceGetRemappedRows(handle))
    held = _told(lambda: pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)) or 0
    mode = _told(lambda: pynvml.nvmlDeviceGetPersistenceMode(handle))
    uncorrected = pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
    slowdown = pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
    return Health(
        index,
        uncorrected=_told(lambda: pynvml.nvmlDeviceGetTotalEccErrors(handle, *uncorrected)),
        pending=None if rows is None else bool(rows[2]),
        worn=None if rows is None else bool(rows[3]),
        slowed=tuple(why for bit, why in _SLOWED.items() if held & bit),
        slows_at=_told(lambda: pynvml.nvmlDeviceGetTemperatureThreshold(handle, slowdown)),
        persistent=None if mode is None else bool(mode),
    )


def _told(read: Callable[[], _T]) -> _T | None:
    """None where the driver lacks the call, or the GPU the sensor. That is no trouble: its memory is read apart."""
    try:
        return read()
    except pynvml.NVMLError:
        return None


def _memory(handle: Any) -> Any | None:
    """NVML's memory struct; None where the GPU has no memory of its own (unified with the host's)."""
    with contextlib.suppress(*_MISSING):
        return pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    try:
        return pynvml.nvmlDeviceGetMemoryInfo(handle)
    except pynvml.NVMLError_NotSupported:
        return None


def _holders(handle: Any) -> tuple[Holder, ...] | None:
    """The processes on one GPU by pid; None where the driver does not list them."""
    # The unversioned calls turn a missing symbol into an error outside NVMLError: name the version.
    try:
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses_v3(handle)
        with contextlib.suppress(pynvml.NVMLError_NotSupported):  # no graphics, so no graphics processes
            processes += pynvml.nvmlDeviceGetGraphicsRunningProcesses_v3(handle)
    except (*_MISSING, pynvml.NVMLError_NoPermission):
        return None
    held: dict[int, int | None] = {}
    for process in processes:
        # A process that computes and draws is in both lists with the same memory: not a sum.
        sizes = (held.get(process.pid), process.usedGpuMemory)
        held[process.pid] = max((size for size in sizes if size is not None), default=None)
    return tuple(_describe(pid, used) for pid, used in sorted(held.items()))


def _describe(pid: int, used: int | None) -> Holder:
    try:
        process = psutil.Process(pid)
        return Holder(pid, used, process.name(), process.username())
    except psutil.Error:  # gone since, hidden from us, or in another PID namespace
        return Holder(pid, used)


def _explain(error: pynvml.NVMLError) -> str:
    return _TROUBLES.get(error.value, f"NVML: {error}")


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
