"""Another configuration while engines run: who is left alone, who drains, who comes again, and who hears 404."""

from __future__ import annotations

import datetime
from typing import Any

from supervisor.config import Config, Key, Mode, Peer, Profile, Restarts, Routing
from supervisor.core import events, orders, reconfiguring
from supervisor.core.learned import Learned
from supervisor.core.lifecycle import State
from supervisor.core.peer import Listed
from supervisor.errors import ModelNotFound, NotAvailable
from tests.core.world import World, config, profile

LLAMA, CODER = profile("llama_0", 0), profile("coder_1", 1)


def changed(of: Profile, **fields: Any) -> Profile:
    return of.model_copy(update=fields)


def reload(world: World, *profiles: Profile, learned: Any = None, mode: Any = None, **tables: Any) -> Config:
    found = config(*profiles, **tables)
    world.send(events.Reconfigured(found, ("something",), mode, learned or {}))
    return found


def test_what_did_not_change_keeps_its_engine_and_its_requests():
    world = World(config(LLAMA, CODER))
    world.up("llama_0")
    record, incarnation, lease = (
        world.fleet.engines["llama_0"],
        world.incarnation("llama_0"),
        world.ask("llama"),
    )
    reload(world, LLAMA, changed(CODER, args=("--x",)))
    assert world.fleet.engines["llama_0"] is record
    assert (world.state("llama_0"), world.incarnation("llama_0")) == (State.READY, incarnation)
    assert record.leases.keys() == {lease}
    assert world.notes()[-1] == "reconfigured"


def test_a_changed_engine_ends_its_requests_and_the_next_one_serves_those_that_came_meanwhile():
    world = World(config(LLAMA))
    world.up("llama_0")
    running, before = world.ask("llama"), world.incarnation("llama_0")
    reload(world, changed(LLAMA, max_concurrent=1))
    world.wait(600)
    assert world.state("llama_0") is State.DRAINING  # however long it takes
    assert running in world.granted
    waiting = world.ask("llama")
    world.leave(running)
    assert world.incarnation("llama_0") != before
    world.ready("llama_0")
    assert world.fleet.engines["llama_0"].slots == 1
    assert waiting in world.granted


def test_an_idle_engine_that_changed_comes_again_at_once_and_one_asleep_when_asked_for():
    sleepy = changed(CODER, sleep=True)
    world = World(config(LLAMA, sleepy))
    world.up("llama_0")
    world.up("coder_1")
    world.send(events.SleepAsked("t", "coder_1"))
    assert world.state("coder_1") is State.SLEEPING
    reload(world, changed(LLAMA, env={"A": "1"}), changed(sleepy, args=("--x",)))
    assert world.state("llama_0") is State.STARTING
    assert world.state("coder_1") is State.COLD


def test_a_start_that_is_under_way_begins_anew_and_whoever_waits_for_it_gets_it():
    world = World(config(LLAMA))
    lease, before = world.ask("llama"), world.incarnation("llama_0")
    world.send(events.StartAsked("t", "llama_0"))
    reload(world, changed(LLAMA, max_model_len=100))
    assert world.incarnation("llama_0") != before
    world.ready("llama_0")
    assert lease in world.granted
    assert world.answers["t"].error is None


def test_terms_that_an_engine_does_not_notice_hold_at_once():
    world = World(config(changed(LLAMA, idle_ttl=None)))
    world.up("llama_0")
    world.wait(100)
    before = world.incarnation("llama_0")
    reload(world, changed(LLAMA, idle_ttl=150.0, max_queue=1))
    assert (world.state("llama_0"), world.incarnation("llama_0")) == (State.READY, before)
    world.wait(49)
    assert world.state("llama_0") is State.READY
    world.wait(3)
    assert world.state("llama_0") is State.COLD  # idle for 150 s in all

    world.up("llama_0")
    reload(world, changed(LLAMA, idle_ttl=150.0, pin=True))
    world.wait(400)
    assert world.state("llama_0") is State.READY


def test_a_removed_profile_is_known_no_more_but_what_runs_on_it_ends_well():
    world = World(config(LLAMA, CODER))
    world.up("llama_0")
    lease = world.ask("llama")
    slots = [world.ask("llama") for _ in range(3)]
    waiting = world.ask("llama")
    world.send(events.StartAsked("t", "coder_1"))
    reload(world)
    assert isinstance(world.refused[waiting], ModelNotFound)
    assert isinstance(world.answers["t"].error, ModelNotFound)
    assert isinstance(world.refused[world.ask("llama")], ModelNotFound)
    assert world.state("llama_0") is State.DRAINING
    for name in (*slots, lease):
        world.leave(name)
    assert world.fleet.engines == {}
    assert not world.fleet.claims()


def test_a_removed_engine_that_dies_with_requests_in_flight_leaves_nothing_behind():
    world = World(config(LLAMA))
    world.up("llama_0")
    lease = world.ask("llama")
    reload(world)
    world.crash("llama_0", "boom")
    assert world.fleet.engines == {}
    world.leave(lease)
    assert not world.fleet.leases


def test_what_comes_back_while_it_drains_is_served_by_a_new_engine():
    world = World(config(LLAMA))
    world.up("llama_0")
    lease, before = world.ask("llama"), world.incarnation("llama_0")
    reload(world)
    reload(world, LLAMA)
    waiting = world.ask("llama")
    world.leave(lease)
    world.ready("llama_0")
    assert waiting in world.granted
    assert world.incarnation("llama_0") != before


def test_added_profiles_take_requests_that_wait_already():
    world = World(config(LLAMA))
    world.up("llama_0")
    for _ in range(4):
        world.ask("llama")
    waiting = world.ask("llama")
    reload(world, LLAMA, profile("llama_1", 1))
    assert list(world.fleet.engines) == ["llama_0", "llama_1"]
    world.wait(5)
    world.send(events.StartAsked("t", "llama_1"))
    world.ready("llama_1")
    assert world.granted[waiting] == "llama_1"


def test_what_was_given_up_is_tried_again_once_its_profile_changes():
    world = World(config(LLAMA, CODER, restarts=Restarts(jitter=0)))
    for name in ("llama_0", "coder_1"):
        world.send(events.StartAsked(name, name))
        world.crash(name, "error: unrecognized arguments: --x", code=2)
        assert world.state(name) is State.IMPOSSIBLE
    reload(world, changed(LLAMA, idle_ttl=60.0), CODER, restarts=Restarts(jitter=0))
    assert world.state("llama_0") is State.COLD
    assert world.state("coder_1") is State.IMPOSSIBLE
    world.ask("llama")
    assert world.state("llama_0") is State.STARTING


def test_fewer_slots_after_running_out_of_memory_are_forgotten_with_the_profile():
    world = World(config(LLAMA, restarts=Restarts(jitter=0, first_delay=1)))
    world.up("llama_0")
    world.ask("llama")
    head = "(EngineCore pid=95) ERROR 11-23 09:45:24 [core.py:1310] "
    world.crash(
        "llama_0", f"{head}torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", code=0
    )
    assert world.fleet.engines["llama_0"].slots == 2
    reload(world, changed(LLAMA, max_model_len=100), restarts=Restarts(jitter=0, first_delay=1))
    assert world.fleet.engines["llama_0"].slots == 4
    assert world.state("llama_0") is State.STARTING  # it was to come again, and does not wait for that


def test_what_was_learned_with_the_new_arguments_is_known_at_once_and_the_old_engine_teaches_no_more():
    world = World(config(LLAMA))
    world.up("llama_0")
    lease = world.ask("llama")
    reload(world, changed(LLAMA, max_model_len=100), learned={"llama_0": [Learned(start=33.0)]})
    told = world.send(events.Told(world.incarnation("llama_0"), weights=1 << 30))
    assert not [order for order in told if isinstance(order, orders.Remember)]
    world.leave(lease)
    assert world.fleet.engines["llama_0"].eta == 33.0


def test_whoever_waits_is_routed_by_what_holds_now():
    world = World(config(LLAMA, profile("llama_1", 1)))
    world.foreign = {0: (), 1: ()}
    lease = world.ask("llama")
    assert world.state("llama_0") is State.STARTING
    prefer = Routing(prefer={"default": ("llama_1",)})
    reload(world, LLAMA, profile("llama_1", 1), routing=prefer)
    (waiter,) = world.fleet.queues
    assert (waiter.lease, waiter.profiles) == (lease, ("llama_1", "llama_0"))
    reload(world, LLAMA, keys={"n8n": Key(env="A", weight=2.0)})
    (waiter,) = world.fleet.queues
    assert waiter.profiles == ("llama_0",)
    assert world.fleet.fairness.weights == {"n8n": 2.0}


DAY = Mode(start=datetime.time(6))
NIGHT = Mode(start=datetime.time(2), profiles=("coder_1",))


def test_modes_that_change_hold_at_once():
    world = World(config(LLAMA, CODER, modes={"day": DAY, "night": NIGHT}))
    world.send(events.ModeChanged("day", "night", "02:00", 1000.0))
    world.up("llama_0")
    world.ask("llama")
    other = {"day": DAY, "night": NIGHT.model_copy(update={"profiles": ("coder_1", "llama_0")})}
    reload(world, LLAMA, CODER, modes=other, mode=events.ModeChanged("day", "night", "02:00", 900.0))
    assert world.state("llama_0") is State.DRAINING
    assert isinstance(world.refused[world.ask("llama")], NotAvailable)

    reload(world, LLAMA, CODER, mode=events.ModeChanged(None))
    assert world.fleet.available == {"llama_0", "coder_1"}


def test_a_mode_that_goes_takes_its_transition_along():
    modes = {"day": DAY, "night": NIGHT.model_copy(update={"warm": ("coder_1",)})}
    world = World(config(LLAMA, CODER, modes=modes))
    world.send(events.ModeChanged("day"))
    world.send(events.ModeChanged("night"))
    assert world.fleet.transition is not None
    reload(world, LLAMA, modes={"day": DAY}, mode=events.ModeChanged("day"))
    world.wait(3000)
    assert world.fleet.mode.name == "day"


def test_what_waits_to_be_restarted_stays_down_where_its_mode_has_it_no_longer():
    world = World(config(LLAMA, CODER, modes={"day": DAY, "night": NIGHT}))
    world.send(events.ModeChanged("day", "night", "02:00", 3600.0))
    world.up("llama_0")
    world.crash("llama_0")
    assert world.state("llama_0") is State.BACKOFF
    other = {"day": DAY.model_copy(update={"profiles": ("coder_1",)}), "night": NIGHT}
    reload(world, LLAMA, CODER, modes=other, mode=events.ModeChanged("day", "night", "02:00", 3600.0))
    world.wait(60)
    assert world.state("llama_0") is State.COLD


def test_the_same_modes_begin_nothing_anew():
    """A mode that could not begin is not tried again because an unrelated line changed."""
    modes = {"day": DAY, "night": NIGHT}
    world = World(config(LLAMA, CODER, modes=modes))
    world.send(events.ModeChanged("night"))
    world.up("coder_1")
    before = world.incarnation("coder_1")
    reload(world, LLAMA, CODER, modes=modes, restarts=Restarts(jitter=0))
    assert (world.fleet.mode.name, world.incarnation("coder_1")) == ("night", before)


def test_peers_come_change_and_go_with_requests_on_them():
    dgx = Peer(url="https://dgx:8000", max_concurrent=2)
    world = World(config(LLAMA, peers={"dgx": dgx}))
    world.send(events.PeerHeard("dgx", {"big": Listed(), "huge": Listed()}))
    first, second = world.ask("big"), world.ask("big")
    assert world.granted == {first: "dgx", second: "dgx"}

    reload(world, LLAMA, peers={"dgx": dgx.model_copy(update={"max_concurrent": 1, "models": ("big",)})})
    assert world.fleet.peers["dgx"].listed.keys() == {"big"}
    world.leave(first)
    third = world.ask("big")
    assert third not in world.granted  # one at a time, and one is there

    reload(world, LLAMA)
    assert isinstance(world.refused[third], ModelNotFound)
    world.send(events.PeerLost("dgx", "late news"))
    reload(world, LLAMA, peers={"dgx": dgx})
    assert world.fleet.peers["dgx"].leases == {second}
    world.leave(second)
    assert not world.fleet.peers["dgx"].leases


def test_a_peer_at_another_address_is_to_be_heard_of_first():
    dgx = Peer(url="https://dgx:8000")
    world = World(config(LLAMA, peers={"dgx": dgx}))
    world.send(events.PeerHeard("dgx", {"big": Listed()}))
    reload(world, LLAMA, peers={"dgx": dgx.model_copy(update={"url": "https://dgx:9000"})})
    assert world.fleet.peers["dgx"].trouble == "it has not answered yet"
    assert isinstance(world.refused[world.ask("big")], ModelNotFound)


def test_a_profile_with_the_name_of_a_former_peer_keeps_their_requests_apart():
    world = World(config(LLAMA, peers={"dgx": Peer(url="https://dgx:8000")}))
    world.send(events.PeerHeard("dgx", {"big": Listed()}))
    abroad = world.ask("big")
    reload(world, profile("dgx", 0))
    world.up("dgx")
    world.ask("dgx")
    world.leave(abroad)
    assert len(world.fleet.engines["dgx"].leases) == 1
    reload(world, LLAMA, peers={"dgx": Peer(url="https://dgx:8000")})
    assert not world.fleet.peers["dgx"].leases


def test_what_would_become_of_engines_is_told_beforehand():
    world = World(config(LLAMA, CODER, profile("emb_1", 1, gib=2)))
    for name in ("llama_0", "coder_1", "emb_1"):
        world.up(name)
    world.ask("llama")
    after = config(changed(LLAMA, args=("--x",)), changed(CODER, idle_ttl=5.0))
    assert reconfiguring.foresee(world.fleet, after) == {
        "llama_0": "its engine ends after 1 in flight and starts anew",
        "coder_1": "its engine runs on",
        "emb_1": "its engine ends",
    }
    assert world.state("llama_0") is State.READY
