"""Addresses that are free, taken, or not this host's."""

from __future__ import annotations

import errno
import os
import socket

import psutil

from supervisor.host.ports import Door, knock


def test_a_free_port_stays_free() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    assert knock("127.0.0.1", port) == Door()
    assert knock("127.0.0.1", port) == Door()


def test_a_port_that_is_taken_names_who_has_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        found = knock("127.0.0.1", taken.getsockname()[1])
    assert found == Door(errno.EADDRINUSE, os.getpid(), psutil.Process().name())


def test_an_address_of_somebody_else() -> None:
    assert knock("192.0.2.1", 8000) == Door(errno.EADDRNOTAVAIL)
    assert knock("none.invalid", 8000) == Door(errno.EADDRNOTAVAIL)
