"""The address of this host in its Tailscale network, and addresses to listen on as people write them."""

from __future__ import annotations

import ipaddress
import socket

import psutil

TAILNET = "tailscale"
"""Written where a host goes, means this host's tailnet address."""

_RANGES = (ipaddress.ip_network("100.64.0.0/10"), ipaddress.ip_network("fd7a:115c:a1e0::/48"))
"""Where Tailscale gives addresses: the carrier-grade NAT range and its own part of the private ones."""

_PREFIXES = ("tailscale", "utun", "ts")


def tailnet_address() -> str | None:
    """IPv4 before IPv6; None where the interface is not there or has no address yet."""
    interfaces = psutil.net_if_addrs()
    for name in sorted(interfaces, key=lambda name: (name != "tailscale0", name)):
        if not name.startswith(_PREFIXES):
            continue
        ours = [entry for entry in interfaces[name] if _in_tailnet(entry.address)]
        if ours:
            return min(ours, key=lambda entry: entry.family != socket.AF_INET).address
    return None


def resolve(listen: str) -> tuple[str, int] | None:
    """`127.0.0.1:8000`, `[::1]:8000` or `tailscale:8000` -> host and port.

    None while the tailnet has no address: wait and ask again. Nothing else is ever listened on in its place.
    Raises ValueError where it is none of these.
    """
    host, colon, port = listen.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{listen!r} is not HOST:PORT")
    if host != TAILNET:
        return host.removeprefix("[").removesuffix("]"), int(port)
    address = tailnet_address()
    return None if address is None else (address, int(port))


def _in_tailnet(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:  # a link-layer address
        return False
    return any(parsed in known for known in _RANGES)
