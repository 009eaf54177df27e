"""What becomes of peers: heard of, lost, given requests. They hold no memory, so nothing here touches the ledger."""

from __future__ import annotations

from supervisor.core import orders
from supervisor.core.engine import Granted
from supervisor.core.events import PeerHeard, PeerLost
from supervisor.core.fleet import Fleet
from supervisor.core.peer import Peer
from supervisor.core.queueing import Waiter


def heard(event: PeerHeard, fleet: Fleet) -> None:
    peer = fleet.peers.get(event.peer)
    if peer is None:
        return  # no longer configured
    was_down = peer.trouble is not None
    peer.heard(event.listed)
    if was_down:
        fleet.unsettle({peer.name})
        _note(fleet, "peer_up", f"peer {peer.name} answers, with {len(peer.listed)} models", "INFO", peer)


def lost(event: PeerLost, fleet: Fleet) -> None:
    peer = fleet.peers.get(event.peer)
    if peer is None:
        return
    if peer.trouble != event.reason:
        _note(fleet, "peer_down", f"peer {peer.name} is down: {event.reason}", "WARNING", peer)
    peer.trouble = event.reason
    fleet.unsettle({peer.name})


def grant(fleet: Fleet, waiter: Waiter, peer: Peer, reason: str) -> None:
    ask = waiter.ask
    peer.leases.add(waiter.lease)
    fleet.leases[waiter.lease] = Granted(peer.name, "", ask.source, ask.tokens, 0, fleet.now)
    fleet.fairness.charge(ask.source, ask.tokens, 0)
    fleet.homes.settle(ask.conversation, peer.name, "", fleet.now)
    fleet.order(orders.Grant(waiter.lease, peer.name, "", reason, ask, None if waiter.told else waiter.route))


def left(fleet: Fleet, lease: str, granted: Granted) -> None:
    if peer := fleet.peers.get(granted.profile):
        peer.leases.discard(lease)
        peer.served(fleet.now - granted.at)


def _note(fleet: Fleet, event: str, message: str, level: str, peer: Peer) -> None:
    fleet.order(orders.Note(event, None, message, level, {"peer": peer.name}))
