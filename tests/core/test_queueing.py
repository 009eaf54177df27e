"""Lines of waiters: who is next, how long all of them have waited, and what a failure leaves."""

from __future__ import annotations

import pytest

from supervisor.core.queueing import Queues, Waiter
from supervisor.core.routing import Ask, Candidate, Route


def waiter(
    lease: str, *profiles: str, source: str = "a", person: str = "", at: float = 0.0, **fields: float
) -> Waiter:
    route = Route(tuple(Candidate(name, "") for name in profiles or ("llama_0",)))
    deadline = fields.pop("deadline", at + 290)
    return Waiter(lease, Ask("llama", source, person=person), route, route.profiles, at, deadline, **fields)


def filled(*waiters: Waiter) -> Queues:
    queues = Queues()
    for found in waiters:
        queues.add(found)
    return queues


def test_each_source_has_its_own_line_and_only_heads_compete():
    queues = filled(waiter("1"), waiter("2"), waiter("3", source="b"))
    assert [head.lease for head in queues.heads({"llama_0"})] == ["1", "3"]
    first = queues.remove("1")
    assert first is not None
    following = queues.following(first)
    assert following is not None
    assert following.lease == "2"


def order(queues: Queues) -> list[str]:
    """Who goes, one after the other."""
    found = []
    while queues.heads({"llama_0"}):
        (head,) = queues.heads({"llama_0"})
        found.append(head.lease)
        queues.remove(head.lease)
    return found


def test_people_who_share_a_source_take_turns():
    flood = [waiter(f"a{number}", person="ann") for number in range(4)]
    queues = filled(*flood, waiter("b0", person="bob"), waiter("n0"), waiter("b1", person="bob"))
    assert order(queues) == ["a0", "b0", "n0", "a1", "b1", "a2", "a3"]


def test_who_leaves_from_behind_has_had_no_turn():
    queues = filled(waiter("a0", person="ann"), waiter("a1", person="ann"), waiter("b0", person="bob"))
    queues.remove("a1")
    assert order(queues) == ["a0", "b0"]


def test_the_longest_wait_is_told_though_another_has_the_turn():
    queues = filled(
        waiter("a0", person="ann", at=1.0),
        waiter("a1", person="ann", at=2.0),
        waiter("b0", person="bob", at=9.0),
    )
    queues.remove("a0")
    (head,) = queues.heads({"llama_0"})
    pressure = queues.pressure("llama_0")
    assert pressure is not None
    assert (head.lease, pressure.oldest, pressure.patience_ends) == ("b0", 2.0, 62.0)
    assert [found.lease for found in queues] == ["b0", "a1"]
    assert (len(queues), queues.ahead_of({"llama_0"})) == (2, 2)


def test_counts_follow_every_change():
    queues = filled(waiter("1", "llama_0", "llama_1"), waiter("2", "llama_1"))
    assert (queues.for_profile("llama_0"), queues.for_profile("llama_1")) == (1, 2)
    assert (queues.hopes_for("llama_0"), queues.hopes_for("llama_1")) == (1, 1)
    assert [queues.ahead_of({name}) for name in ("llama_0", "llama_1", "coder_1")] == [1, 2, 0]
    queues.remove("1")
    assert (queues.for_profile("llama_0"), queues.hopes_for("llama_0"), len(queues)) == (0, 0, 1)
    assert queues.remove("1") is None


def test_a_failed_profile_is_given_up_and_the_last_one_ends_the_waiting():
    queues = filled(waiter("1", "llama_0", "llama_1"))
    (found,) = queues
    queues.give_up(found, "llama_0")
    assert (found.profiles, queues.hopes_for("llama_1"), "1" in queues) == (("llama_1",), 1, True)
    queues.give_up(found, "llama_1")
    assert "1" not in queues
    assert queues.pressure("llama_1") is None


def test_pressure_sums_the_waiting_of_all_and_tells_when_it_is_worth_a_swap():
    queues = filled(waiter("1", at=0.0), waiter("2", at=10.0), waiter("3", at=20.0, source="b", weight=0.5))
    pressure = queues.pressure("llama_0")
    assert pressure is not None
    assert (pressure.oldest, pressure.patience_ends, pressure.weight) == (0.0, 60.0, 2.5)
    at = pressure.worth(100.0)
    assert 1.0 * (at - 0) + 1.0 * (at - 10) + 0.5 * (at - 20) == pytest.approx(100.0)


def test_deadlines_come_once_each_and_skip_who_has_left():
    queues = filled(waiter("1", deadline=5.0), waiter("2", deadline=9.0), waiter("3", deadline=7.0))
    queues.remove("1")
    assert queues.next_deadline() == 7.0
    assert [found.lease for found in queues.overdue(8.0)] == ["3"]
    assert queues.next_deadline() == 9.0


def test_who_changes_lines_while_waiting_is_overdue_once():
    queues = filled(waiter("1", "llama_0", "llama_1", deadline=5.0))
    (found,) = queues
    queues.give_up(found, "llama_0")
    assert [late.lease for late in queues.overdue(6.0)] == ["1"]


def test_who_changes_lines_stands_where_it_came():
    queues = filled(waiter("1", "llama_0", "llama_1", at=1.0), waiter("2", "llama_1", at=2.0))
    first = next(found for found in queues if found.lease == "1")
    queues.give_up(first, "llama_0")
    assert [found.lease for found in queues] == ["1", "2"]
