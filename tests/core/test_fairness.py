"""Who goes first where several keys wait for one model."""

from __future__ import annotations

from supervisor.config import Key, Scheduling
from supervisor.core import events
from supervisor.core.fairness import Fairness
from supervisor.core.routing import Ask
from tests.core.world import World, config, profile

ONE = profile("llama_0", 0, max_concurrent=1, max_queue=100)
KEYS = {"webui": Key(env="A"), "agent": Key(env="B"), "n8n": Key(env="C", priority="batch")}


def served(world: World, rounds: int, output: int = 100) -> list[str]:
    """Sources in the order in which they got the one slot."""
    order = []
    for _ in range(rounds):
        (lease,) = world.fleet.leases
        order.append(world.fleet.leases[lease].source)
        world.send(events.Left(lease, 10, output))
    return order


def crowded(**tables: object) -> World:
    world = World(config(ONE, keys=KEYS, **tables))
    world.up("llama_0")
    return world


def test_one_key_that_floods_leaves_the_other_its_share():
    world = crowded()
    for _ in range(20):
        world.ask("llama", source="agent")
    for _ in range(5):
        world.ask("llama", source="webui")
    assert served(world, 10).count("webui") == 5


def test_one_person_who_floods_leaves_another_of_the_same_key_every_second_turn():
    world = crowded()
    flood = [world.ask("llama", source="webui", person="ann") for _ in range(20)]
    other = [world.ask("llama", source="webui", person="bob") for _ in range(5)]
    served(world, 11)
    assert set(other) <= world.granted.keys()
    assert sum(lease in world.granted for lease in flood) == 7


def full(*asked: tuple[str, str], queue: int = 4) -> tuple[World, list[str]]:
    """One is served, and as many as may wait are by (key, person); the next come a second apart."""
    world = World(config(profile("llama_0", 0, max_concurrent=1, max_queue=queue), keys=KEYS))
    world.up("llama_0")
    world.ask("llama", source="agent")
    return world, [came(world, *one) for one in asked]


def came(world: World, source: str, person: str = "") -> str:
    lease = world.ask("llama", source=source, person=person)
    world.wait(1)
    return lease


def test_a_key_that_fills_the_queue_makes_room_for_another_until_both_have_as_much():
    world, flood = full(*[("agent", "")] * 4)
    others = [came(world, "webui") for _ in range(3)]
    assert list(world.refused) == [flood[3], flood[2], others[2]]
    assert "4 waiting, 3 of them with this key" in str(world.refused[flood[3]])
    assert len(world.fleet.queues) == 4


def test_a_person_who_fills_the_queue_makes_room_for_others_of_the_same_key():
    world, waiting = full(*[("webui", "ann")] * 3, ("webui", "bob"))
    cid = came(world, "webui", "cid")
    assert list(world.refused) == [waiting[2]]
    more = came(world, "webui", "ann")
    assert list(world.refused) == [waiting[2], more]
    assert cid in world.fleet.queues


def test_batch_makes_room_for_people_and_people_never_for_batch():
    world, waiting = full(("webui", ""), ("webui", ""), ("webui", ""), ("n8n", ""))
    person = came(world, "webui")
    assert list(world.refused) == [waiting[3]]
    night = came(world, "n8n")
    assert list(world.refused) == [waiting[3], night]
    assert person in world.fleet.queues


def test_a_turn_takes_nothing_from_how_long_others_have_waited():
    """Batch that has aged goes before what is younger, whoever of its people has the turn."""
    world = crowded(scheduling=Scheduling(ageing=60.0))
    world.ask("llama", source="webui")
    ann = [world.ask("llama", source="n8n", person="ann") for _ in range(2)]
    world.wait(61)
    bob = world.ask("llama", source="n8n", person="bob")
    served(world, 1)
    assert ann[0] in world.granted
    late = world.ask("llama", source="webui")
    served(world, 1)
    assert (bob in world.granted, late in world.granted) == (True, False)


def test_more_people_are_no_larger_share():
    world = crowded()
    for number in range(20):
        world.ask("llama", source="agent", person=f"p{number}")
        world.ask("llama", source="webui", person="ann")
    assert served(world, 20).count("webui") == 10


def test_a_weight_is_a_share():
    keys = {"webui": Key(env="A", weight=3.0), "agent": Key(env="B")}
    world = World(config(ONE, keys=keys))
    world.up("llama_0")
    for _ in range(40):
        world.ask("llama", source="agent")
        world.ask("llama", source="webui")
    assert 28 <= served(world, 40).count("webui") <= 31


def test_interactive_goes_before_batch_until_batch_has_aged():
    world = crowded(scheduling=Scheduling(ageing=60.0))
    world.ask("llama", source="webui")
    old = world.ask("llama", source="n8n")
    world.ask("llama", source="webui")
    assert served(world, 2) == ["webui", "webui"]
    world.leave(old)
    world.ask("llama", source="webui")
    world.ask("llama", source="n8n")
    world.wait(61)
    world.ask("llama", source="webui")
    world.ask("llama", source="webui")
    assert served(world, 2) == ["webui", "n8n"]  # aged, and served least


def test_who_comes_back_from_idleness_has_saved_nothing_up():
    fairness = Fairness()
    fairness.charge("a", 1000, 1000)
    fairness.arrive("b", {"a"})
    assert fairness.counter("b") == fairness.counter("a")
    fairness.charge("a", 10, 0)
    fairness.arrive("b", {"a", "b"})  # active all the time: keeps what it is owed
    assert fairness.counter("b") < fairness.counter("a")


def test_an_estimate_is_put_right_by_what_was_used():
    world = crowded()
    lease = world.ask("llama", source="webui", tokens=400)
    assert world.fleet.fairness.counter("webui") == 400  # by the estimate
    world.send(events.Left(lease, 350, 10))
    assert world.fleet.fairness.counter("webui") == 350 + 2 * 10


def test_a_request_waits_while_its_tokens_do_not_fit_the_kv_cache():
    world = World(config(profile("llama_0", 0, max_concurrent=8)))
    world.up("llama_0")
    world.send(events.Told(world.incarnation("llama_0"), kv_tokens=10_000))
    big = [world.ask("llama", tokens=4000) for _ in range(3)]
    assert [lease in world.granted for lease in big] == [True, True, False]  # 3 x (4000 + 512) > 10,000
    world.leave(big[0])
    assert big[2] in world.granted


def test_one_request_larger_than_the_kv_cache_is_left_to_the_engine():
    world = World(config(profile("llama_0", 0)))
    world.up("llama_0")
    world.send(events.Told(world.incarnation("llama_0"), kv_tokens=1000))
    assert world.ask("llama", tokens=4000) in world.granted


def test_replies_are_taken_to_be_as_long_as_nine_of_ten_were():
    world = World(config(profile("llama_0", 0, max_concurrent=32)))
    world.up("llama_0")
    engine = world.fleet.engines["llama_0"]
    for length in range(1, 65):
        world.send(events.Left(world.ask("llama"), 10, length))
    assert engine.needs(Ask("llama")) == (58, 58)
    assert engine.needs(Ask("llama", max_tokens=20)) == (20, 20)


def test_a_long_prompt_gets_its_space_though_short_ones_keep_coming():
    """Each that ends would make room for another, and never for the long one."""
    world = World(config(profile("llama_0", 0, max_concurrent=8)))
    world.up("llama_0")
    world.send(events.Told(world.incarnation("llama_0"), kv_tokens=10_000))
    short = [world.ask("llama", source="agent", tokens=1500, max_tokens=400) for _ in range(6)]
    long = world.ask("llama", source="webui", tokens=8800, max_tokens=500)
    for ended in short[:5]:
        world.wait(5)
        world.send(events.Left(ended, 1500, 400))
        short.append(world.ask("llama", source="agent", tokens=1500, max_tokens=400))
    assert long in world.granted
    assert not set(short[6:]) & set(world.granted)  # nobody behind it was let past


def test_space_is_kept_for_nobody_who_has_gone():
    world = World(config(profile("llama_0", 0, max_concurrent=8)))
    world.up("llama_0")
    world.send(events.Told(world.incarnation("llama_0"), kv_tokens=10_000))
    world.ask("llama", source="agent", tokens=4000)
    long = world.ask("llama", source="webui", tokens=8800)
    short = world.ask("llama", source="agent", tokens=100)
    assert short not in world.granted
    world.leave(long)
    assert short in world.granted


def test_who_was_away_gets_its_share_from_now_on_and_nothing_for_before():
    world = crowded()
    for _ in range(10):
        world.ask("llama", source="agent")
    served(world, 9)
    for _ in range(10):
        world.ask("llama", source="agent")
        world.ask("llama", source="webui")
    assert 4 <= served(world, 10).count("webui") <= 6


def test_what_only_reads_takes_no_space_for_a_reply():
    world = World(config(profile("bge_0", 0, task="embed", max_concurrent=8)))
    world.up("bge_0")
    world.send(events.Told(world.incarnation("bge_0"), kv_tokens=1000))
    assert all(world.ask("bge", tokens=300) in world.granted for _ in range(3))


def test_no_request_takes_more_space_than_a_context_has():
    world = World(config(profile("llama_0", 0, max_concurrent=8, max_model_len=4000)))
    world.up("llama_0")
    world.send(events.Told(world.incarnation("llama_0"), kv_tokens=8000))
    assert [world.ask("llama", tokens=3900) in world.granted for _ in range(3)] == [True, True, False]
