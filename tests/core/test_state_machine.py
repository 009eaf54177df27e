"""A state machine over the core: any order of facts that a shell could report, shrunk to the shortest that breaks it.

After every rule all invariants have been checked by the world. The chaos simulation has more of reality in it; this
one finds the shortest history.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from supervisor.config import Key
from supervisor.core import events
from supervisor.core.devices import GIB, Holder
from supervisor.core.engine import Engine
from supervisor.core.lifecycle import LIVE, State
from tests.core.world import World, config, profile

PROFILES = (
    profile("llama_0", 0, max_concurrent=2, max_queue=2, sleep=True),
    profile("llama_1", 1, max_concurrent=1, max_queue=1),
    profile("coder_1", 1, sleep=True, sleep_after=100.0),
    profile("big_dual", 0, 1, gib=22),
    profile("emb_1", 1, gib=2, task="embed"),
)
NAMES = st.sampled_from([p.name for p in PROFILES])
SERVING = (State.READY, State.DRAINING)
LOADING = (State.STARTING, State.ADOPTING, State.WAKING)


class Core(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.world = World(config(*PROFILES, keys={"n8n": Key(env="A", priority="batch")}))
        self.tickets = 0
        self.world.up("llama_0")
        self.world.up("coder_1")

    def engines(self, *states: State) -> list[Engine]:
        return [engine for engine in self.world.fleet.engines.values() if engine.state in states]

    def inside(self) -> list[str]:
        check = self.world.check
        return sorted(check.waiting | check.granted)

    @rule(
        model=st.sampled_from(("llama", "coder", "big", "emb", "llama_1")),
        source=st.sampled_from(("webui", "n8n")),
        tokens=st.sampled_from((0, 6000)),
        patience=st.sampled_from((0.5, 60.0, 290.0)),
        people=st.lists(st.sampled_from(("", "ann", "bob")), min_size=1, max_size=4),
    )
    def ask(self, model: str, source: str, tokens: int, patience: float, people: list[str]) -> None:
        for person in people:
            self.world.ask(model, source=source, tokens=tokens, patience=patience, person=person)

    @precondition(lambda self: self.inside())
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.world.leave(data.draw(st.sampled_from(self.inside())))

    @precondition(lambda self: self.engines(*LOADING))
    @rule()
    def answer(self) -> None:
        for engine in self.engines(*LOADING):
            self.world.ready(engine.name)

    @precondition(lambda self: self.engines(*LIVE))
    @rule(
        data=st.data(),
        tail=st.sampled_from(("", "", "", "CUDA out of memory", "error: argument --x", "GPU is lost")),
    )
    def crash(self, data: st.DataObject, tail: str) -> None:
        engine = data.draw(st.sampled_from(self.engines(*LIVE)))
        self.world.crash(engine.name, tail)

    @precondition(lambda self: self.engines(*SERVING))
    @rule(data=st.data())
    def fail_probes(self, data: st.DataObject) -> None:
        engine = data.draw(st.sampled_from(self.engines(*SERVING)))
        self.world.send(events.Unhealthy(self.world.incarnation(engine.name), "no answer"))

    @precondition(lambda self: self.engines(State.SLEEPING))
    @rule(data=st.data(), back=st.booleans())
    def sleep(self, data: st.DataObject, back: bool) -> None:
        """Its memory comes back; or it says that it cannot sleep."""
        incarnation = self.world.incarnation(data.draw(st.sampled_from(self.engines(State.SLEEPING))).name)
        if back:
            self.world.held[incarnation] = dict.fromkeys(self.world.held[incarnation], GIB)
            self.world.read()
        else:
            self.world.send(events.SleepFailed(incarnation, "500"))

    @rule(name=NAMES, up=st.booleans(), at_once=st.booleans())
    def order_about(self, name: str, up: bool, at_once: bool) -> None:
        self.tickets += 1
        ticket = f"t{self.tickets}"
        asked = events.StartAsked(ticket, name) if up else events.StopAsked(ticket, name, at_once)
        self.world.send(asked)

    @rule(seconds=st.sampled_from((0.5, 20.0, 70.0, 700.0)))
    def wait(self, seconds: float) -> None:
        self.world.wait(seconds)

    @rule(card=st.sampled_from((0, 1)), size=st.sampled_from((0, 0, 1, 8)))
    def crowd(self, card: int, size: int) -> None:
        """A neighbour takes memory, if there is so much."""
        self.world.foreign[card] = ()
        if 0 < size * GIB <= self.world.card(card).free:
            self.world.foreign[card] = (Holder(99, size * GIB),)
        self.world.read()

    @rule(card=st.sampled_from((0, 1)), seconds=st.sampled_from((0.5, 20.0, 300.0)))
    def lose(self, card: int, seconds: float) -> None:
        """A GPU falls off the bus, and comes back."""
        self.world.trouble[card] = "GPU is lost"
        self.world.wait(seconds)
        del self.world.trouble[card]
        self.world.read()

    @rule(name=NAMES, seconds=st.sampled_from((0.5, 20.0, 300.0)))
    def leak(self, name: str, seconds: float) -> None:
        """Memory of trees that are killed meanwhile comes back late."""
        self.world.sticky = True
        self.order_about(name, up=False, at_once=True)
        self.world.wait(seconds)
        self.world.sticky = False
        for incarnation in set(self.world.held) - self.world.alive:
            del self.world.held[incarnation]
        self.world.read()

    def teardown(self) -> None:
        """With nothing wrong any more, and nobody asking, everything comes to rest."""
        if not hasattr(self, "world"):
            return
        for card in (0, 1):
            self.crowd(card, 0)
            self.lose(card, 0.5)
        for lease in self.inside():
            self.world.leave(lease)
        for _ in range(10):
            for engine in self.engines(*LOADING):
                self.world.ready(engine.name)
            self.world.wait(700)
        assert self.world.fleet.is_empty, list(self.world.fleet.engines.values())
        assert not self.world.fleet.ledger.quarantined


Core.TestCase.settings = settings(
    max_examples=80,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestCore = Core.TestCase
