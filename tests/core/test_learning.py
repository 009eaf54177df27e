"""What the fleet learns from its history, and what it makes of it."""

from __future__ import annotations

import pytest

from supervisor.core import decide, events, learning, orders
from supervisor.core.devices import GIB
from supervisor.core.fleet import Fleet
from supervisor.core.learned import Learned
from supervisor.core.lifecycle import State
from supervisor.core.routing import Ask
from tests.core.world import World, config, profile

LLAMA = profile("llama_0", 0)
SLEEPER = profile("llama_0", 0, sleep=True, sleep_after=60.0)


def known(world: World, name: str = "llama_0") -> Learned:
    return world.fleet.engines[name].learned


def kept(world: World) -> list[Learned]:
    return [order.learned for order in world.log if isinstance(order, orders.Remember)]


def start(
    world: World, seconds: float = 0.0, version: str | None = None, *, gib: float | None = None
) -> None:
    """Start llama_0, which takes `seconds`, tells its version, and holds `gib` of its card."""
    world.send(events.StartAsked("t", "llama_0"))
    world.wait(seconds)
    incarnation = world.incarnation("llama_0")
    if gib is not None:
        world.held[incarnation] = {"GPU-0": int(gib * GIB)}
    if version:
        world.send(events.Told(incarnation, version=version))
    world.ready("llama_0")


def restart(world: World, seconds: float, version: str, *, gib: float | None = None) -> None:
    world.send(events.StopAsked("s", "llama_0"))
    start(world, seconds, version, gib=gib)


def drifts(world: World) -> list[orders.Note]:
    return [order for order in world.log if isinstance(order, orders.Note) and order.event == "drift"]


def test_start_seconds_and_peak_are_learned_and_kept():
    world = World(config(LLAMA))
    start(world, 30, "0.32.0")
    assert (known(world).version, known(world).start, known(world).peak) == (
        "0.32.0",
        30,
        {"GPU-0": 20 * GIB},
    )
    assert kept(world)[-1] == known(world)
    world.wait(300)
    assert len(kept(world)) <= 3, "nothing new, nothing to keep"


def test_the_next_daemon_expects_what_the_last_one_learned():
    world = World(config(LLAMA))
    start(world, 30, "0.32.0")
    fleet = Fleet(config(LLAMA), lambda: "i9", learned={"llama_0": kept(world)[-1:], "gone": [Learned()]})
    engine = fleet.engines["llama_0"]
    assert (engine.eta, engine.way_back) == (30, 30)
    assert fleet.forecast(["llama_0"]) == 30
    lease = events.Arrived("r1", Ask("llama"), 290)
    assert not [order for order in decide.handle(fleet, lease, 0) if isinstance(order, orders.Remember)]


def test_while_it_loads_no_peak_is_learned():
    world = World(config(LLAMA))
    world.send(events.StartAsked("t", "llama_0"))
    world.wait(20)
    assert not known(world).peak
    assert not kept(world)


def test_sleep_teaches_residue_and_wake_and_the_ledger_counts_on_it():
    world = World(config(SLEEPER))
    start(world)
    world.send(events.Told(world.incarnation("llama_0"), weights=15 * GIB))
    world.wait(60)
    assert world.state("llama_0") is State.SLEEPING
    world.held[world.incarnation("llama_0")] = {"GPU-0": int(1.2 * GIB)}
    world.send(events.Slept(world.incarnation("llama_0")))
    world.wait(6)
    assert known(world).residue == {"GPU-0": int(1.2 * GIB)}
    world.ask("llama")
    assert world.state("llama_0") is State.WAKING
    world.wait(4)
    world.ready("llama_0")
    engine = world.fleet.engines["llama_0"]
    assert (known(world).wake, engine.way_back, engine.host_need) == (4, 4, 15 * GIB)
    assert learning.usual_residue(world.fleet, engine) == {"GPU-0": int(1.2 * GIB)}
    assert kept(world)[-1].wake == 4


def test_a_new_version_is_expected_to_be_as_the_last_one_until_it_is_measured():
    world = World(config(LLAMA))
    start(world, 30, "0.32.0")
    engine = world.fleet.engines["llama_0"]
    world.send(events.Told(world.incarnation("llama_0"), version="0.33.0"))
    assert known(world).start is None
    assert engine.eta == 30


@pytest.mark.parametrize(
    ("seconds", "gib", "words"),
    [
        (60, 20, "it starts in 60 s, it took 30 s"),
        (30, 12, "it takes 12.00 GiB of GPU-0, it took 20.00 GiB"),
        (60, 12, "it starts in 60 s, it took 30 s; it takes 12.00 GiB of GPU-0, it took 20.00 GiB"),
    ],
)
def test_a_version_that_drifts_is_warned_of_once_with_both_numbers(seconds: float, gib: float, words: str):
    world = World(config(LLAMA))
    start(world, 30, "0.32.0")
    restart(world, seconds, "0.33.0", gib=gib)
    world.wait(60)
    restart(world, seconds, "0.33.0", gib=gib)
    (note,) = drifts(world)
    assert note.level == "WARNING"
    assert note.message == f"llama_0 differs under vLLM 0.33.0 from 0.32.0: {words}"


def test_whoever_goes_back_to_an_older_version_finds_its_record():
    world = World(config(LLAMA))
    start(world, 30, "0.32.0")
    restart(world, 90, "0.33.0")
    engine = world.fleet.engines["llama_0"]
    later = World(config(LLAMA))
    later.fleet.recall({"llama_0": [engine.learned, engine.versions["0.32.0"]]})
    for each in (world, later):
        restart(each, 20, "0.32.0")
        assert (known(each).version, known(each).start) == ("0.32.0", 25)
        assert kept(each)[-1].start == 25


@pytest.mark.parametrize("held", [1.2, 8.0])
def test_a_sleeper_that_leaves_more_behind_is_warned_of(held: float):
    world = World(config(SLEEPER))
    world.fleet.recall({"llama_0": [Learned("0.32.0", start=30.0, residue={"GPU-0": GIB})]})
    start(world, 60, "0.33.0")
    world.send(events.Told(world.incarnation("llama_0"), weights=15 * GIB))
    world.wait(60)
    world.held[world.incarnation("llama_0")] = {"GPU-0": int(held * GIB)}
    world.send(events.Slept(world.incarnation("llama_0")))
    world.wait(60)
    told = [note.message for note in drifts(world)]
    assert told[0].endswith("it starts in 60 s, it took 30 s")
    said = [words for words in told if "it leaves 8.00 GiB of GPU-0 asleep, it left 1.00 GiB" in words]
    assert len(said) == (held == 8.0)
    assert sum("it starts in" in words for words in told) == 1


def test_no_warning_within_a_quarter_nor_within_one_version():
    world = World(config(LLAMA))
    start(world, 30, "0.32.0")
    restart(world, 36, "0.33.0", gib=19)
    assert not drifts(world)
    again = World(config(LLAMA))
    start(again, 30, "0.32.0")
    restart(again, 90, "0.32.0", gib=10)
    assert not drifts(again)


def test_a_requests_tokens_are_estimated_as_its_model_has_shown():
    world = World(config(LLAMA, profile("llama_1", 1)))
    start(world)
    for _ in range(50):
        lease = "n"
        world.send(events.Arrived(lease, Ask("llama", tokens=500, letters=2000), 290))
        world.send(events.Left(lease, prompt=740, output=5))
        world.log = [order for order in world.log if not isinstance(order, orders.Grant)]
    world.send(events.Arrived("r", Ask("llama", tokens=500, letters=2000), 290))
    assert world.fleet.leases["r"].prompt == pytest.approx(740, rel=0.05)
    assert kept(world)[-1].tokens.seen >= 32


def test_without_letters_the_guess_stands():
    world = World(config(LLAMA))
    start(world)
    world.send(events.Arrived("r", Ask("llama", tokens=500, letters=2000), 290))
    world.send(events.Left("r", prompt=740))
    world.send(events.Arrived("picture", Ask("llama", tokens=500), 290))
    assert world.fleet.leases["picture"].prompt == 500
    world.send(events.Left("picture", prompt=3000))
    assert known(world).tokens.seen == 1


def test_a_long_prompt_is_routed_by_what_was_learned():
    short, long = profile("llama_0", 0, max_model_len=8192), profile("llama_1", 1, max_model_len=32768)
    world = World(config(short, long))
    taught = Learned()
    for _ in range(50):
        taught = taught.counted(9000, 4500).counted(1000, 500)
    world.fleet.recall({"llama_0": [taught]})
    world.send(events.Arrived("r", Ask("llama", tokens=2500, letters=10_000), 290))
    assert world.state("llama_1") is State.STARTING
