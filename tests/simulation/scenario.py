"""One seed's history: hours of traffic and trouble, then calm, and what must be the case in the end."""

from __future__ import annotations

import datetime
import random
from pathlib import Path

from supervisor.config import Config, Key, Mode, Peer, Profile, Restarts, Scheduling
from supervisor.core import events
from supervisor.core.devices import GIB
from supervisor.core.lifecycle import STARTABLE, State
from supervisor.simulation.trace import Request
from tests.simulation.company import OFFERED, Company

HOURS = 1.5
TROUBLED = HOURS * 3600.0
HEALED = TROUBLED + 1200.0
"""When the last thing that broke has mended: a leak lasts 900 s at most."""
SETTLED = HEALED + 1500.0
AT_REST = SETTLED + 2400.0

KEYS = {
    "webui": Key(env="A"),
    "bob": Key(env="B", weight=2.0),
    "n8n": Key(env="C", priority="batch"),
}
MODELS = ("llama", "llama", "llama_0", "coder", "coder", "big", "emb", "far")

NAMED = ("llama_0", "big_dual", "emb_1")
"""Profiles that modes name, which must be there."""


class Scenario(Company):
    """Traffic, operators, neighbours, a calendar and a mortal daemon around two cards."""

    def __init__(self, seed: int) -> None:
        self.mode: str | None = None
        """What the calendar says."""
        self.forced: str | None = None
        self.first = _config(random.Random(f"config {seed}"))
        super().__init__(self.first, seed)

    def play(self) -> None:
        """Everything. Raises AssertionError at the first event after which something does not hold."""
        self._keep_reading()
        self.meet()
        for what, mean in (
            (self.ask, 25), (self.order_about, 600), (self.crowd, 500), (self.break_nvml, 900), (self.change_mode, 2400),
            (self.die, 3000), (self.hand_over, 5000), (self.borrow, 700), (self.trouble_peers, 600),
            (self.report_xid, 1800), (self.warm, 900), (self.send_to_sleep, 700), (self.force_mode, 4000),
            (self.reconfigure, 1200), (self.release, 1500),
        ):  # fmt: skip
            self._again(what, mean)
        self.until(TROUBLED)
        self.quieten()
        self.until(HEALED)
        self.tell_mode()  # one that was rolled back is tried anew by the next change
        leases = [self.probe(name) for name in self.config.profiles if name in self.fleet.available]
        self.until(SETTLED)
        self._all_served(leases)
        self.until(AT_REST)
        self._all_at_rest()

    def _again(self, what, mean: float) -> None:  # type: ignore[no-untyped-def]
        def once() -> None:
            if not self.calm:
                what()
                self._again(what, mean)

        self.later(self.dice.expovariate(1 / mean), once)

    # What goes on

    def ask(self) -> None:
        """Mostly one request, at times a crowd."""
        for _ in range(self.dice.choice((1, 1, 1, 1, 1, 12))):
            patience = self.dice.choice((None, None, None, 1.0, 60.0))
            key = self.dice.choice(("webui", "bob", "n8n", "nobody"))
            model = self.dice.choice(MODELS)
            self._arrive(
                Request(
                    self.now, key, model, self.dice.choice((10, 6000)), self.dice.randint(1, 4000), patience
                )
            )

    def order_about(self) -> None:
        profile, ticket = self.dice.choice(list(self.config.profiles)), f"t{self.dice.getrandbits(32)}"
        what = self.dice.choice((events.StartAsked, events.StartAsked, events.StopAsked))
        pin = {"pin": self.dice.choice((None, None, None, True, False))} if what is events.StartAsked else {}
        self.tell(what(ticket, profile, **pin))
        if self.dice.random() < 0.5:
            self.later(self.dice.uniform(0, 60), lambda: self.tell(events.TicketDropped(ticket)))
        if self.dice.random() < 0.2:
            self.tell(events.StopAsked(f"{ticket}!", profile, at_once=True))

    def crowd(self) -> None:
        """A neighbour takes or leaves memory, as much as there is."""
        index = self.dice.randrange(len(self.cards))
        self.neighbours[index] = 0
        size = self.dice.choice((0, 0, 1, 3, 8)) * GIB
        self.neighbours[index] = min(size, max(0, self._free(f"GPU-{index}")))

    def break_nvml(self) -> None:
        how, lasting = self.dice.choice(("lost", "blind", "hung")), self.dice.uniform(5, 300)
        if how == "lost":
            index = self.dice.randrange(len(self.cards))
            self.lost.add(index)
            self.later(lasting, lambda: self.lost.discard(index))
        else:
            setattr(self, how, True)
            self.later(lasting, lambda: setattr(self, how, False))

    def warm(self) -> None:
        self.tell(events.WarmAsked(self.dice.choice(list(self.config.profiles))))

    def send_to_sleep(self) -> None:
        """A person: mostly one that is ready and may sleep."""
        able = [e.name for e in self.fleet.engines.values() if e.state is State.READY and e.sleeps]
        profile = self.dice.choice(able or list(self.config.profiles))
        self.happened["a person put one to sleep"] += bool(able)
        self.tell(events.SleepAsked(f"s{self.dice.getrandbits(32)}", profile))

    def release(self) -> None:
        """A person wants a GPU used again, mostly one that is not."""
        barred = [n for n in range(len(self.cards)) if self.fleet.ledger.barred(f"GPU-{n}")]
        gpu = self.dice.choice(barred or range(len(self.cards)))
        self.releasing = True
        self.tell(events.ReleaseAsked(f"r{self.dice.getrandbits(32)}", gpu))
        self.releasing = False

    def change_mode(self) -> None:
        self.mode = self.dice.choice(("day", "night"))
        if self.forced is None:
            self.tell_mode()

    def force_mode(self) -> None:
        """A person, for a while; then the calendar holds again."""
        self.forced = self.dice.choice(("day", "night"))
        self.happened["a mode was forced"] += 1
        self.tell_mode()
        self.later(self.dice.uniform(10, 900), self.release_mode)

    def release_mode(self) -> None:
        if self.forced is not None:
            self.forced = None
            self.happened["a mode was released"] += 1
            self.tell_mode()

    def tell_mode(self) -> None:
        """Also a daemon that has just started reads both."""
        if event := self.mode_event():
            self.tell(event)
        elif self.lives > 1:
            self.tell(events.ModeChanged(None))

    def mode_event(self) -> events.ModeChanged | None:
        mode, forced = self.forced or self.mode, self.forced is not None
        if mode is None:
            return None
        other = "night" if mode == "day" else "day"
        coming = self.dice.choice((100.0, 5000.0))
        return events.ModeChanged(mode, other, "some time", coming, forced)

    def hand_over(self) -> None:
        """An orderly stop; engines are left running, or stopped, or as far as they came."""
        if not self.down:
            self.tell(events.ShutdownAsked(keep_engines=self.dice.random() < 0.7))
            self.later(self.dice.choice((1, 30, 120)), self.die)

    def reconfigure(self) -> None:
        """Somebody edits the configuration: one profile goes, another has other arguments, a third other terms."""
        gone, other, eased = self.dice.sample(list(self.first.profiles), 3)
        profiles = dict(self.first.profiles)
        profiles[other] = profiles[other].model_copy(update={"max_concurrent": self.dice.choice((1, 2))})
        profiles[eased] = profiles[eased].model_copy(update={"idle_ttl": 60.0, "max_queue": 2})
        if gone not in NAMED:
            del profiles[gone]
        self.take_up(self.first.model_copy(update={"profiles": profiles}))

    def take_up(self, config: Config) -> None:
        self.config = config
        if self.down:  # the next daemon reads it
            self.fleet = self.new_fleet()
        self.tell(events.Reconfigured(config, mode=self.mode_event() if self.dice.random() < 0.5 else None))

    # The end

    def quieten(self) -> None:
        """From now on nothing new goes wrong, nobody asks, and what is wrong with running engines passes."""
        self.calm = self.fine = True
        self.lost.clear()
        self.neighbours.clear()
        self.blind = self.hung = False
        self.go_home()
        self.mode, self.forced = "day", None
        self.later(0.5, lambda: self.take_up(self.first))
        self.later(1, self.tell_mode)
        self.later(600, self.forgive)

    def forgive(self) -> None:
        """A person looks after what was given up or pinned, and after a card whose reset no reading saw."""
        for n in range(len(self.cards)):
            if f"GPU-{n}" in self.fleet.ledger.sick:
                self.tell(events.ReleaseAsked(f"mend-{n}", n))
        for engine in self.fleet.engines.values():
            if engine.state is State.IMPOSSIBLE or engine.pinned_by_hand:
                self.tell(events.StopAsked(f"mend-{engine.name}", engine.name))

    def probe(self, profile: str) -> str:
        self._arrive(Request(self.now, "webui", profile, 10, 10))
        return f"r{len(self.outcomes) - 1}"

    def _all_served(self, leases: list[str]) -> None:
        unserved = {lease: self.outcomes[lease] for lease in leases if self.outcomes[lease].granted is None}
        assert not unserved, f"not served though nothing is wrong any more: {unserved}"
        assert not self.fleet.queues
        assert not self.fleet.leases
        ledger = self.fleet.ledger
        assert not ledger.quarantined, "memory is back, its card still quarantined"
        assert not ledger.sick, "its card was reset, and is still out of use"
        late = [e for e in self.fleet.engines.values() if e.wanted and e.state is not State.READY]
        assert not late, f"wanted, but {late}"

    def _all_at_rest(self) -> None:
        self._as_wished()
        left = [o for o in self.outcomes.values() if o.ended is None and o.refused is None]
        assert not left, f"never ended: {left}"
        pinned = {name for name, profile in self.config.profiles.items() if profile.pin}
        busy = [e for e in self.fleet.engines.values() if e.state not in STARTABLE and e.name not in pinned]
        assert not busy, f"idle for long, yet {busy}"
        assert {tree.profile for tree in self.trees.values()} <= pinned, f"trees are left: {self.trees}"

    def _as_wished(self) -> None:
        """What the core believes is what there is, and what it was told to want."""
        fleet = self.fleet
        found = fleet.mode.name, fleet.mode.forced, fleet.transition
        assert found == ("day", False, None), f"{found}, {fleet.rolled_back}"
        assert not fleet.loans, "its borrower has gone home"
        assert all(peer.trouble is None for peer in fleet.peers.values()), "they answer"
        known = {e.incarnation: e.name for e in fleet.engines.values() if e.incarnation}
        assert known == {t.incarnation: t.profile for t in self.trees.values()}, (
            "a tree or an engine too many"
        )
        assert known == {name: profile for name, (profile, _) in self.records.items()}
        for index in range(len(self.cards)):
            promised = sum(claim.reserved for claim in fleet.claims().get(f"GPU-{index}", ()))
            assert promised >= self._used(f"GPU-{index}"), "more is held than promised"


def _config(dice: random.Random) -> Config:
    """Seeds differ in what they run too: with sleep and without, quick and slow to swap, patient and not."""
    sleep = dice.random() < 0.5

    def profile(name: str, *gpus: int, gib: float = 20, **fields: object) -> Profile:
        fields = {"max_concurrent": 3, "max_queue": 6, "idle_ttl": 900.0, "sleep": sleep} | fields
        fields["finish_start"] = dice.random() < 0.7
        fields |= {"sleep_after": 200.0} if sleep and dice.random() < 0.5 else {}
        model = name.rsplit("_", 1)[0]
        return Profile.model_validate(
            {"name": name, "model": model, "weights": "w", "gpus": gpus, "vram": int(gib * GIB), **fields}
        )

    found = [
        profile("llama_0", 0, gib=dice.choice((10, 20))),
        profile("llama_1", 1, gib=dice.choice((10, 20)), max_concurrent=1),
        profile("coder_0", 0),
        profile("coder_1", 1, gib=12),
        profile("big_dual", 0, 1, gib=22),
        profile("emb_1", 1, gib=2, task="embed", pin=dice.random() < 0.2),
    ]
    modes = {
        "day": Mode(start=datetime.time(6), warm=("llama_0",), drain=dice.choice((10.0, 300.0))),
        "night": Mode(
            start=datetime.time(2), profiles=("big_dual", "emb_1"), warm=("big_dual",), within=600.0
        ),
    }
    return Config(
        path=Path("llmd.toml"),
        profiles={p.name: p for p in found},
        keys=KEYS,
        modes=modes,
        peers={
            name: Peer(url="https://peer:8000", max_concurrent=2) for name in OFFERED if dice.random() < 0.6
        },
        restarts=Restarts(jitter=dice.choice((0.0, 0.25))),
        scheduling=Scheduling(
            quantum=dice.choice((5.0, 30.0)),
            min_residency=dice.choice((0.0, 60.0)),
            swaps_per_hour=dice.choice((4, 60)),
        ),
    )
