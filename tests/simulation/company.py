"""Who else is around the cards: borrowers of memory, other servers, and drivers that report errors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from supervisor.core import events, orders
from supervisor.core.devices import GIB, Holder
from supervisor.core.events import Event
from supervisor.core.peer import Listed
from supervisor.core.xid import KNOWN, Policy
from tests.simulation.chaos import Chaos

OFFERED = {"peer_a": ("llama", "far"), "peer_b": ("coder", "far")}
"""What each peer serves; nobody here has `far`."""

FATAL = tuple(number for number, known in KNOWN.items() if known.policy is Policy.QUARANTINE)
PASSING = tuple(number for number, known in KNOWN.items() if known.policy is not Policy.QUARANTINE)


@dataclass(slots=True)
class Borrower:
    """Another program with a loan. `life`: the daemon that lent, and so knows it."""

    life: int
    pid: int
    index: int
    size: int
    held: dict[str, int] = field(default_factory=dict)


class Company(Chaos):
    def begin(self) -> None:
        self.borrowers: dict[str, Borrower] = {}
        self.peers_up: set[str] = set()
        self.ailing: set[int] = set()
        """Cards that need a reset."""

    # Borrowers

    def borrow(self) -> None:
        name, index = f"loan{self.dice.getrandbits(32)}", self.dice.randrange(len(self.cards))
        size, ttl = self.dice.choice((1, 4, 12, 30)) * GIB, self.dice.choice((20.0, 200.0, 900.0))
        self.borrowers[name] = Borrower(self.lives, 5000 + len(self.outcomes), index, size)
        self.tell(events.LoanAsked(name, "train.py", (index,), size, ttl))
        if self.dice.random() < 0.3:
            self.later(self.dice.uniform(0, 60), lambda: self.tell(events.TicketDropped(name)))
        self.later(self.dice.uniform(30, 1200), lambda: self.repay(name))

    def answered(self, order: orders.Answer) -> None:
        """A borrower that has its loan takes memory, no more than is there; one that has not goes home."""
        borrower = self.borrowers.get(order.ticket)
        if borrower is None:
            return
        if order.error:
            del self.borrowers[order.ticket]
        elif self.dice.random() < 0.8:
            self.later(self.dice.uniform(0, 20), lambda: self.use(borrower, order.ticket))

    def use(self, borrower: Borrower, name: str) -> None:
        device = f"GPU-{borrower.index}"
        if self.borrowers.get(name) is borrower:
            borrower.held = {device: max(0, min(borrower.size, self._free(device)))}
            self.happened["a borrower took its memory"] += 1

    def repay(self, name: str) -> None:
        """Also long after its time ran out."""
        borrower = self.borrowers.pop(name, None)
        if borrower is not None and borrower.life == self.lives:
            self.happened["a borrower kept it past its time"] += name not in self.fleet.loans and bool(
                borrower.held
            )
            self.tell(events.LoanEnded(name, "it was given back"))

    def lent(self) -> bool:
        return any(loan.until is not None for loan in self.fleet.loans.values())

    def _reading(self) -> events.DevicesRead:
        """A daemon knows the borrowers that it lent to."""
        told = super()._reading()
        known = {name: b for name, b in self.borrowers.items() if b.life == self.lives}
        ours = {name: {} if self.blind else dict(b.held) for name, b in known.items()}
        return events.DevicesRead(told.survey, {**told.measured, **ours}, told.ours)

    def strangers(self, device: str) -> int:
        return super().strangers(device) + sum(b.held.get(device, 0) for b in self.borrowers.values())

    def _used(self, device: str) -> int:
        return super()._used(device) + sum(b.held.get(device, 0) for b in self.borrowers.values())

    def _holders(self, device: str) -> Iterator[Holder]:
        yield from super()._holders(device)
        for borrower in self.borrowers.values():
            if device in borrower.held:
                yield Holder(borrower.pid, borrower.held[device], "train.py", "someone")

    # Peers

    def meet(self) -> None:
        """A new daemon asks its peers."""
        for peer in self.fleet.peers:
            self.later(0.3, lambda peer=peer: self.hear(peer))  # type: ignore[misc]

    def hear(self, peer: str) -> None:
        """It answers with its models, or does not; the daemon asks again and again."""
        if self.calm or peer in self.peers_up:
            models = {
                model: Listed(self.dice.choice((None, 4096)), self.dice.random() < 0.7)
                for model in OFFERED[peer]
            }
            self.tell(events.PeerHeard(peer, models))
        else:
            self.tell(events.PeerLost(peer, "it does not answer"))

    def trouble_peers(self) -> None:
        """One goes or comes back; what it was working on is cut."""
        if not self.fleet.peers:
            return
        peer = self.dice.choice(list(self.fleet.peers))
        self.peers_up ^= {peer}
        if peer not in self.peers_up:
            for lease in [lease for lease, place in self.serving.items() if place == peer]:
                self.happened["a peer broke off a request"] += 1
                self.later(0.1, lambda lease=lease: self.over(lease))  # type: ignore[misc]
        self.hear(peer)

    def serve_abroad(self, order: orders.Grant) -> None:
        outcome = self.outcomes[order.lease]
        outcome.granted, outcome.profile = self.now, order.profile
        self.serving[order.lease] = order.profile
        if order.profile in self.peers_up or self.calm:
            self.later(1 + outcome.request.output / 40, lambda: self._served(order.lease, ""))
        else:
            self.later(0.2, lambda: self.over(order.lease))

    # Errors that drivers report

    def report_xid(self) -> None:
        index = self.dice.randrange(len(self.cards))
        if self.dice.random() < 0.7:
            xid = self.dice.choice(PASSING)
            if KNOWN[xid].policy is Policy.APPLICATION:
                self._hurt(index, most=1)
        else:
            xid = self.dice.choice(FATAL)
            self._hurt(index, most=9)
            self.ailing.add(index)
            self.later(self.dice.uniform(30, 900), lambda: self.reset(index))
        for _ in range(self.dice.choice((1, 1, 3))):
            self.tell(events.XidReported(f"GPU-{index}", xid))

    def _hurt(self, index: int, most: int) -> None:
        """Programs on the card end of it, a little later."""
        for tree in [tree for tree in self.trees.values() if f"GPU-{index}" in tree.held][:most]:
            self.later(self.dice.uniform(0.1, 30), lambda tree=tree: self.crash(tree, "error"))  # type: ignore[misc]

    def reset(self, index: int) -> None:
        """It vanishes for a few readings, and is well again."""
        if index in self.ailing:
            self.ailing.discard(index)
            self.lost.add(index)
            self.later(30, lambda: self.lost.discard(index))

    # What they do in the world's turns

    def tell(self, event: Event) -> None:
        if not self.down:
            self.happened[type(event).__name__] += 1
        super().tell(event)

    def carry_out(self, order: orders.Order) -> None:
        self.happened[type(order).__name__] += 1
        if isinstance(order, orders.Grant) and order.profile in self.fleet.peers:
            self.happened["a peer was granted a request"] += 1
            self.serve_abroad(order)
            return
        if isinstance(order, orders.Answer):
            self.answered(order)
        super().carry_out(order)

    def rise(self) -> None:
        super().rise()
        self.meet()

    def go_home(self) -> None:
        """Everyone: loans are given back, peers answer, sick cards are reset."""
        for name in list(self.borrowers):
            self.repay(name)
        for index in list(self.ailing):
            self.reset(index)
        self.later(5, self.meet)
