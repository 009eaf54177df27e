"""Peers as places for requests: order, limits, being down, and none of our memory."""

from __future__ import annotations

from typing import Any

import pytest

from supervisor.config import Peer, Profile
from supervisor.core import events, orders
from supervisor.core.peer import Listed
from supervisor.core.routing import Candidate
from supervisor.core.why import explain
from supervisor.errors import ContextExceeded, ModelNotFound, NotAvailable, Overloaded
from tests.core.world import World, config, profile

LLAMA = profile("llama_0", 0, max_concurrent=1)
BIG = {"llama-70b": Listed(65536, True)}
SAME = {"llama": Listed(8192, True)}


def world_with(*profiles: Profile, listed: dict[str, Listed] | None = None, **fields: Any) -> World:
    world = World(config(*profiles, peers={"dgx": Peer(url="https://dgx:8000", **fields)}))
    if listed is not None:
        world.send(events.PeerHeard("dgx", listed))
    return world


def test_what_only_the_peer_has_goes_there_and_holds_no_memory():
    world = world_with(LLAMA, listed=BIG)
    lease = world.ask("llama-70b")
    assert world.granted[lease] == "dgx"
    assert world.fleet.claims() == {}
    assert world.fleet.is_empty
    world.leave(lease)
    assert not world.fleet.peers["dgx"].leases


def test_this_hosts_own_comes_first_and_the_peer_takes_what_spills_over():
    world = world_with(LLAMA, listed=SAME)
    world.up("llama_0")
    first, second = world.ask("llama"), world.ask("llama")
    assert (world.granted[first], world.granted[second]) == ("llama_0", "dgx")


def test_warm_there_comes_before_cold_here():
    world = world_with(LLAMA, listed=SAME)
    assert world.granted[world.ask("llama")] == "dgx"
    assert world.fleet.engines["llama_0"].state == "cold"


def test_cold_there_does_not():
    world = world_with(LLAMA, listed={"llama": Listed(8192, warm=False)})
    assert world.ask("llama") not in world.granted
    assert world.fleet.engines["llama_0"].is_coming


def test_cold_there_does_where_that_comes_first():
    world = world_with(LLAMA, listed={"llama": Listed(8192, warm=False)}, priority=1)
    world.up("llama_0")
    assert world.granted[world.ask("llama")] == "dgx"


def test_cold_there_and_nowhere_here_goes_there():
    world = world_with(LLAMA, listed={"llama-70b": Listed(8192, warm=False)})
    assert world.granted[world.ask("llama-70b")] == "dgx"


def test_without_spill_the_peer_has_only_what_is_not_here():
    world = world_with(LLAMA, listed=SAME | BIG, spill=False)
    world.up("llama_0")
    world.ask("llama")
    assert world.ask("llama") not in world.granted
    assert world.granted[world.ask("llama-70b")] == "dgx"


def test_a_higher_priority_goes_before_this_hosts_own():
    world = world_with(LLAMA, listed=SAME, priority=1)
    world.up("llama_0")
    assert world.granted[world.ask("llama")] == "dgx"


def test_its_own_limits_hold():
    world = world_with(listed=BIG, max_concurrent=2, max_queue=1)
    asked = [world.ask("llama-70b") for _ in range(4)]
    assert [world.granted.get(lease) for lease in asked] == ["dgx", "dgx", None, None]
    refused = world.refused[asked[3]]
    assert isinstance(refused, Overloaded)
    assert "in flight dgx 2/2" in refused.message
    world.leave(asked[0])
    assert world.granted[asked[2]] == "dgx"


def test_a_peer_that_is_down_is_no_candidate_and_the_refusal_says_why():
    world = world_with(LLAMA, listed=BIG | SAME)
    world.send(events.PeerLost("dgx", "cannot be reached: Connection refused"))
    refused = world.refused[world.ask("llama-70b")]
    assert isinstance(refused, NotAvailable)
    assert refused.message == (
        "model 'llama-70b' is served by peers alone; dgx: down: cannot be reached: Connection refused"
    )
    assert refused.retry_after == 10
    world.up("llama_0")
    assert world.granted[world.ask("llama")] == "llama_0"
    assert world.ask("llama") not in world.granted
    assert world.notes().count("peer_down") == 1


def test_those_who_wait_for_a_peer_hear_when_it_goes_down():
    world = world_with(listed=BIG, max_concurrent=1)
    world.ask("llama-70b")
    waiting = world.ask("llama-70b")
    world.send(events.PeerLost("dgx", "gone"))
    assert "peer dgx is down: gone" in str(world.refused[waiting])


def test_a_peer_that_failed_a_request_is_not_asked_again_for_it():
    world = world_with(LLAMA, listed=SAME, priority=1)
    world.up("llama_0")
    assert world.granted[world.ask("llama", tried=frozenset({"dgx"}))] == "llama_0"


def test_configured_models_bound_its_list_and_are_known_before_it_answers():
    world = world_with(models=("llama-70b",))
    assert isinstance(world.refused[world.ask("llama-70b")], NotAvailable)
    assert isinstance(world.refused[world.ask("qwen")], ModelNotFound)
    world.send(events.PeerHeard("dgx", BIG | {"qwen": Listed()}))
    assert world.granted[world.ask("llama-70b")] == "dgx"
    assert isinstance(world.refused[world.ask("qwen")], ModelNotFound)


@pytest.mark.parametrize(("hops", "granted"), [(0, "dgx"), (2, "dgx"), (3, None)])
def test_a_request_is_passed_on_three_times(hops: int, granted: str | None):
    world = world_with(listed=BIG)
    assert world.granted.get(world.ask("llama-70b", hops=hops)) == granted


def test_what_came_from_a_peer_is_not_spilled_to_one():
    world = world_with(LLAMA, listed=SAME)
    world.up("llama_0")
    world.ask("llama")
    assert world.ask("llama", hops=1) not in world.granted


def test_its_context_counts():
    world = world_with(listed=BIG)
    assert isinstance(world.refused[world.ask("llama-70b", least=65537)], ContextExceeded)


def test_a_mode_that_changes_leaves_those_who_wait_for_a_peer():
    world = world_with(listed=BIG, max_concurrent=1)
    world.ask("llama-70b")
    waiting = world.ask("llama-70b")
    world.send(events.ModeChanged(None))
    assert waiting in world.fleet.queues


def test_who_was_passed_over_is_told_with_the_route():
    world = world_with(LLAMA, listed=SAME, spill=False)
    world.ask("llama", request="id")
    (routed,) = [order for order in world.log if isinstance(order, orders.Routed)]
    assert routed.route.passed_over == (Candidate("dgx", "it takes only what this host does not serve"),)


def test_why_tells_of_peers():
    world = world_with(LLAMA, listed=BIG)
    (peer,) = explain(world.fleet, "llama-70b")["peers"]
    assert (peer["peer"], peer["up"], peer["url"]) == ("dgx", True, "https://dgx:8000")
    assert explain(world.fleet, "llama")["peers"] == []
