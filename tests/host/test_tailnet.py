from __future__ import annotations

import socket
from collections.abc import Mapping

import psutil
import pytest

from supervisor.host.tailnet import resolve, tailnet_address

V4, V6, LINK = socket.AF_INET, socket.AF_INET6, socket.AF_PACKET


@pytest.fixture
def interfaces(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[int, str]]]:
    """What psutil finds on the host, by interface: (family, address)."""
    found: dict[str, list[tuple[int, str]]] = {}

    def net_if_addrs() -> Mapping[str, list[object]]:
        entry = type("Entry", (), {})
        made: dict[str, list[object]] = {}
        for name, addresses in found.items():
            for family, address in addresses:
                one = entry()
                one.family, one.address = family, address
                made.setdefault(name, []).append(one)
        return made

    monkeypatch.setattr(psutil, "net_if_addrs", net_if_addrs)
    return found


def test_not_there_yet(interfaces: dict[str, list[tuple[int, str]]]) -> None:
    assert resolve("tailscale:8000") is None
    interfaces["tailscale0"] = [(LINK, "00:00:00:00:00:00"), (V6, "fe80::1%tailscale0")]
    assert resolve("tailscale:8000") is None


def test_four_before_six(interfaces: dict[str, list[tuple[int, str]]]) -> None:
    interfaces["tailscale0"] = [(V6, "fd7a:115c:a1e0::5"), (V4, "100.101.102.103")]
    assert resolve("tailscale:8000") == ("100.101.102.103", 8000)
    interfaces["tailscale0"].pop()
    assert tailnet_address() == "fd7a:115c:a1e0::5"


def test_only_the_tailnets_interfaces_count(interfaces: dict[str, list[tuple[int, str]]]) -> None:
    interfaces["eth0"] = [(V4, "100.64.0.9")]  # a provider's own NAT uses the same range
    interfaces["utun2"] = [(V4, "10.0.0.1")]
    assert tailnet_address() is None
    interfaces["utun3"] = [(V4, "100.64.0.1")]
    interfaces["tailscale0"] = [(V4, "100.64.0.2")]
    assert tailnet_address() == "100.64.0.2"


@pytest.mark.parametrize(
    ("listen", "expected"),
    [
        ("127.0.0.1:8000", ("127.0.0.1", 8000)),
        ("[::1]:80", ("::1", 80)),
        ("localhost:0", ("localhost", 0)),
    ],
)
def test_addresses_as_written(listen: str, expected: tuple[str, int]) -> None:
    assert resolve(listen) == expected


@pytest.mark.parametrize("listen", ["", "8000", ":8000", "tailscale", "127.0.0.1:", "h:70000", "h:x", "h:²"])
def test_not_an_address(listen: str) -> None:
    with pytest.raises(ValueError, match="is not HOST:PORT"):
        resolve(listen)
