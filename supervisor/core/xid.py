"""What the errors mean that an NVIDIA driver reports of its GPUs, by number (XID), and what is done about each. Pure.

The meanings and what NVIDIA advises at once are those of its catalogue (NVIDIA GPU Deployment and Management
Documentation, XID Errors: docs.nvidia.com/deploy/xid-errors). What it tells to reset the GPU or the host for puts the
GPU out of use; what it tells to restart the application for is left to the engine, which ends of it. A number that is
not here is noted.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Policy(StrEnum):
    QUARANTINE = "quarantine"
    """Nothing may run there until the GPU was reset."""
    APPLICATION = "application"
    """The fault of a program on it: its engine ends, and is started again as after any crash."""
    NOTE = "note"
    """Nothing has to be done at once."""


@dataclass(frozen=True, slots=True)
class Xid:
    policy: Policy
    meaning: str


_Q, _A, _N = Policy.QUARANTINE, Policy.APPLICATION, Policy.NOTE

KNOWN: dict[int, Xid] = {
    8: Xid(_A, "the GPU stopped processing for a program"),
    13: Xid(_A, "graphics engine exception, as of an illegal address or instruction"),
    31: Xid(_A, "GPU memory page fault, as of an illegal address"),
    32: Xid(_A, "invalid or corrupted push buffer"),
    43: Xid(_A, "a program's channel was reset after a fault of its own"),
    45: Xid(_A, "a program was removed from the GPU, as when it is killed"),
    46: Xid(_Q, "the GPU stopped processing"),
    48: Xid(_Q, "double-bit ECC error, which memory cannot correct"),
    61: Xid(_N, "internal micro-controller breakpoint or warning"),
    62: Xid(_Q, "internal micro-controller halt"),
    63: Xid(_N, "a row of its memory is remapped, or a page retired, at the next reset"),
    64: Xid(_Q, "a row of its memory could not be remapped, or a page not retired"),
    68: Xid(_A, "video decoder exception"),
    69: Xid(_A, "graphics engine class error"),
    74: Xid(_Q, "NVLink error"),
    79: Xid(_Q, "the GPU has fallen off the bus"),
    92: Xid(_N, "many single-bit ECC errors, which memory corrected"),
    94: Xid(_A, "contained ECC error: only the program that met it is harmed"),
    95: Xid(_Q, "uncontained ECC error: every program on the GPU may be harmed"),
    109: Xid(_A, "context switch timeout"),
    110: Xid(_Q, "security fault"),
    119: Xid(_Q, "the GPU's system processor (GSP) does not answer"),
    120: Xid(_Q, "error of the GPU's system processor (GSP)"),
    140: Xid(_Q, "ECC error that was not recovered"),
    143: Xid(_Q, "the GPU could not be initialised"),
    154: Xid(_N, "the driver changed the recovery that it advises, for an error reported beside"),
}

UNKNOWN = Xid(Policy.NOTE, "see NVIDIA's catalogue of XID errors")


def judge(number: int) -> Xid:
    return KNOWN.get(number, UNKNOWN)
