"""What is known of the memory that engines live in: GPUs and host memory, as read at one moment.

Sizes are bytes. `at` is monotonic seconds, the moment the reading was *taken*, so that its age can be told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

HOST = "host"
"""The device id of host memory. Every other device id is a GPU's UUID as NVML spells it."""

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds memory on a device. `used` is None where the driver does not tell."""

    pid: int
    used: int | None
    name: str = "?"
    user: str = "?"


@dataclass(frozen=True, slots=True)
class Reading:
    """One device at one moment.

    `trouble` says why the numbers must not be trusted (GPU lost, NVML error); None means they may be.
    `unified` marks a GPU that shares the host's memory (NVML answers NOT_SUPPORTED): it is budgeted against
    the host's reading and its own numbers are zero.
    """

    device: str
    total: int
    used: int
    free: int
    at: float
    name: str = "?"
    index: int | None = None
    """CUDA's index under CUDA_DEVICE_ORDER=PCI_BUS_ID; None for host memory."""
    pci: str | None = None
    holders: tuple[Holder, ...] = ()
    unified: bool = False
    trouble: str | None = None
    utilization: float | None = None
    """Share of the last sample period in which a kernel ran, 0 to 1."""
    temperature: float | None = None
    """Degrees Celsius."""
    power: float | None = None
    """Watts."""
    cuda_total: int | None = None
    """What CUDA counts of `total`, as an engine has told; None: not yet."""

    @property
    def capacity(self) -> int:
        """Bytes that programs may have there in all, and vLLM takes its share of."""
        return self.total if self.cuda_total is None else self.cuda_total

    @property
    def unattributed(self) -> int:
        """Bytes in use that no listed process accounts for."""
        return max(0, self.used - sum(holder.used or 0 for holder in self.holders))


class Card(NamedTuple):
    """A GPU as NVML shows it: under another driver, or with ECC switched, CUDA may count otherwise."""

    device: str
    driver: str
    total: int


@dataclass(frozen=True, slots=True)
class Survey:
    """All devices read together. `trouble` says why there are no GPUs to read (no driver, no library)."""

    readings: tuple[Reading, ...] = ()
    at: float = 0.0
    trouble: str | None = None
    driver: str | None = None
    holders_known: bool = field(default=True)
    """False where the driver lists no per-process memory (PID namespaces, some drivers)."""
    by_device: Mapping[str, Reading] = field(init=False, repr=False, compare=False)
    by_index: Mapping[int, Reading] = field(init=False, repr=False, compare=False)
    """Of two GPUs with one index the first: the other is gone."""

    def __post_init__(self) -> None:
        indexed = {reading.index: reading for reading in reversed(self.readings) if reading.index is not None}
        object.__setattr__(self, "by_device", {reading.device: reading for reading in self.readings})
        object.__setattr__(self, "by_index", indexed)

    def card(self, reading: Reading) -> Card:
        return Card(reading.device, self.driver or "", reading.total)

    def with_cuda(self, totals: Mapping[Card, int]) -> Survey:
        """The same, with what is known of CUDA's totals."""
        found = (replace(r, cuda_total=totals.get(self.card(r))) for r in self.readings)
        return replace(self, readings=tuple(found)) if totals else self


def gib(size: float) -> str:
    """`23622320128` -> `"22.00 GiB"`: how sizes are written wherever a person reads them."""
    return f"{size / GIB:.2f} GiB"
