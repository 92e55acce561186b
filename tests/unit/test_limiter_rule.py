"""The rate limiter's rule: the native limiter against a plain model of it, and what the rule promises."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.limiter_model import Seat, Table
from triton_fast._native.sched.limiter import Limiter, LimiterPlace
from triton_fast.errors import InvalidArg

NAMES = ("A", "B", "C")
NEEDS = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 4), min_size=1)
SEATS = st.lists(st.tuples(NEEDS, st.integers(1, 5)), min_size=1, max_size=6)
# index of a place, what it does when it may: ask, release with and without having executed, release and ask again
STEPS = st.lists(st.tuples(st.integers(0, 5), st.sampled_from(("ask", "done", "nothing", "again"))), max_size=120)


class Pair:
    """The same places in both."""

    def __init__(self, seats: list[tuple[dict[str, int], int]], more: int = 0) -> None:
        totals = {name: max(needs.get(name, 0) for needs, _ in seats) + more for name in NAMES}
        self.limiter = Limiter([(name, total, -1) for name, total in totals.items()])
        self.table = Table(totals)
        self.places: list[LimiterPlace] = []
        for number, (needs, priority) in enumerate(seats):
            self.table.seats.append(Seat(str(number), needs, priority))
            wanted = [(name, False, count) for name, count in needs.items()]
            self.places.append(self.limiter.join(wanted, priority=priority))

    def step(self, number: int, what: str) -> None:
        seat, place = self.table.seats[number], self.places[number]
        if what == "ask":
            self.table.ask(seat)
            place.ask()
        elif seat.holding:
            executed, again = what != "nothing", what == "again"
            self.table.release(seat, executed=executed, again=again)
            place.release(executed=executed, again=again)

    def same(self) -> None:
        told = [(place.waiting, place.holding, place.value, place.executions) for place in self.places]
        assert told == [(s.asked_at >= 0, s.holding, s.value, s.executions) for s in self.table.seats]
        for (name, device), (total, used) in self.limiter.amounts.items():
            assert device == 0
            assert used == self.table.used(name) <= total == self.table.totals[name]


@given(SEATS, st.integers(0, 3), STEPS)
@settings(deadline=None)
def test_native_does_what_the_model_does_and_never_gives_more_than_there_is(seats, more, steps):
    pair = Pair(seats, more)
    for number, what in steps:
        if number < len(seats):
            pair.step(number, what)
            pair.same()


@given(SEATS, st.integers(0, 3), STEPS)
@settings(deadline=None)
def test_nothing_free_is_kept_from_the_first_and_nobody_waits_for_nothing(seats, more, steps):
    pair = Pair(seats, more)
    table = pair.table
    for number, what in steps:
        if number >= len(seats):
            continue
        pair.step(number, what)
        waiting = table.waiting()
        if waiting:
            first = waiting[0]
            assert any(table.used(name) + count > table.totals[name] for name, count in first.needs.items())
        if not any(seat.holding for seat in table.seats):
            assert not waiting


def competes(one: dict[str, int], other: dict[str, int]) -> bool:
    """Whether both need some of the same resource; who needs nothing of it takes nothing away."""
    return any(count and other.get(name) for name, count in one.items())


@given(SEATS, st.integers(0, 2), st.lists(st.integers(0, 5), min_size=1, max_size=200))
@settings(deadline=None)
def test_nobody_starves(seats, more, ends):
    """All want to execute always. Nobody is served before one that waits more often than the priorities explain."""
    pair = Pair(seats, more)
    bound = max(priority for _, priority in seats) + 2
    before: Counter[tuple[int, int]] = Counter()
    for place in pair.places:
        place.ask()
    for number in ends:
        values = [place.value for place in pair.places]
        holders = [k for k, place in enumerate(pair.places) if place.holding]
        assert holders, "all wait and nobody executes"
        ended = holders[number % len(holders)]
        pair.places[ended].release(again=True)
        served = {k for k, place in enumerate(pair.places) if place.holding} - (set(holders) - {ended})
        for k, place in enumerate(pair.places):
            if place.holding:
                for j in range(len(seats)):
                    before[k, j] = 0
                continue
            for j in served:
                value = values[j] if j != ended else pair.places[j].value
                if competes(seats[k][0], seats[j][0]) and k != ended and value <= values[k]:
                    before[k, j] += 1
                    assert before[k, j] <= bound


def test_ties_between_resources_carry_the_pace():
    """One that needs both of two resources is not kept waiting until the slower of them has caught up."""
    limiter = Limiter()
    fast, slow = limiter.join([("X", True, 1)]), limiter.join([("Y", True, 1)])
    for _ in range(1000):
        fast.ask()
        fast.release()
    both = limiter.join([("X", True, 1), ("Y", True, 1)])
    slow.ask()
    both.ask()
    slow.release(again=True)
    assert both.holding
    both.leave()
    assert slow.holding
    assert limiter.amounts == {("X", None): (1, 0), ("Y", None): (1, 1)}


@given(st.lists(st.integers(1, 6), min_size=2, max_size=5), st.integers(1, 300))
@settings(deadline=None)
def test_shares_are_as_the_priorities_say(priorities, rounds):
    """One at a time, all always waiting: the lowest executions x priority goes, so nobody is a whole turn ahead."""
    limiter = Limiter()
    places = [limiter.join([("R", True, 1)], priority=priority) for priority in priorities]
    for place in places:
        place.ask()
    done: Counter[int] = Counter()
    for _ in range(rounds):
        (now,) = [k for k, place in enumerate(places) if place.holding]
        # Exactly the rule: of all that asked, none has a lower product.
        assert done[now] * priorities[now] == min(done[k] * priorities[k] for k in range(len(places)))
        done[now] += 1
        places[now].release(again=True)
    products = [done[k] * priorities[k] for k in range(len(places))]
    assert max(products) - min(products) <= max(priorities)


def test_priority_zero_counts_as_one():
    limiter = Limiter()
    zero, one = limiter.join([("R", False, 1)]), limiter.join([("R", False, 1)], priority=1)
    zero.ask()
    one.ask()
    for _ in range(10):
        zero.release(again=True)
        assert (zero.waiting, one.holding) == (True, True)
        one.release(again=True)
    assert (zero.executions, one.executions) == (10, 10)


def test_who_was_idle_does_not_make_up_for_it():
    limiter = Limiter()
    old, other = limiter.join([("R", False, 1)]), limiter.join([("R", False, 1)])
    for _ in range(1000):
        old.ask()
        old.release()
    new = limiter.join([("R", False, 1)])
    old.ask()
    for place in (other, new):
        place.ask()
    taken = []
    for _ in range(9):
        (now,) = [place for place in (old, other, new) if place.holding]
        taken.append(now)
        now.release(again=True)
    assert [taken.count(place) for place in (old, other, new)] == [3, 3, 3]


def test_a_device_has_its_own_amount_and_a_global_one_is_shared():
    limiter = Limiter()
    near, far = (limiter.join([("R", False, 2)], device=device) for device in (0, 1))
    near.ask()
    far.ask()
    assert near.holding
    assert far.holding
    one, two = (limiter.join([("G", True, 2)], device=device) for device in (0, 1))
    one.ask()
    two.ask()
    assert one.holding
    assert two.waiting
    assert limiter.amounts == {("R", 0): (2, 2), ("R", 1): (2, 2), ("G", None): (2, 2)}


def test_amounts_follow_those_who_come_and_leave():
    limiter = Limiter()
    small = [limiter.join([("R", False, 1)]) for _ in range(3)]
    for place in small:
        place.ask()
    assert [place.holding for place in small] == [True, False, False]
    large = limiter.join([("R", False, 2), ("S", True, 7)])
    # There is more of it now: who waits is served at once.
    assert [place.holding for place in small] == [True, True, False]
    large.ask()
    small[0].release()
    small[1].release()
    assert limiter.amounts == {("R", 0): (2, 1), ("S", None): (7, 0)}
    assert large.waiting
    small[2].release()
    assert large.holding
    large.leave()
    large.leave()
    assert limiter.amounts == {("R", 0): (1, 0)}
    with pytest.raises(ValueError, match="the place was left"):
        large.ask()
    for place in small:
        place.leave()
    assert limiter.amounts == {}


def test_a_place_that_is_dropped_is_given_back():
    limiter = Limiter()
    holder, waiter = limiter.join([("R", False, 1)]), limiter.join([("R", False, 1)])
    holder.ask()
    waiter.ask()
    assert waiter.waiting
    del holder
    assert waiter.holding
    limiter.join([("S", False, 1)]).leave()
    assert limiter.amounts == {("R", 0): (1, 1)}


BOTH = 'Resource "R" is present as both global and device-specific resource in the model configuration.'
FEW = (
    'Resource count for "{}" is limited to {} which will prevent scheduling of one or more model instances, '
    "the minimum required count is {}"
)


@pytest.mark.parametrize(
    ("explicit", "wanted", "text"),
    [
        ([], [("R", False, 1), ("R", True, 1)], BOTH),
        ([("R", 1, -1)], [("R", False, 2)], FEW.format("R", 1, 2)),
        ([("R", 1, 0), ("R", 2, 1)], [("R", False, 2)], FEW.format("R", 1, 2)),
        ([("R", 9, 1)], [("R", False, 2)], FEW.format("R", 0, 2)),
        ([("R", 9, -1), ("R", 1, -1)], [("R", False, 2)], FEW.format("R", 1, 2)),
        # What is not named at all is not there, once anything is.
        ([("R", 9, -1)], [("Q", True, 4)], FEW.format("Q", 0, 4)),
        ([("R", 1, 3)], [("R", True, 2)], FEW.format("R", 1, 2)),
    ],
)
def test_who_can_never_execute_may_not_join(explicit, wanted, text):
    limiter = Limiter(explicit)
    with pytest.raises(InvalidArg) as caught:
        limiter.join(wanted)
    assert str(caught.value) == text
    assert limiter.amounts == {}


@pytest.mark.parametrize(
    ("explicit", "wanted", "amounts"),
    [
        ([("R", 3, -1)], [("R", False, 2)], {("R", 0): (3, 0)}),
        ([("R", 3, 0), ("R", 2, -1)], [("R", False, 2)], {("R", 0): (3, 0)}),
        # A global one is as large as any entry says, whatever its device.
        ([("R", 3, 7)], [("R", True, 2)], {("R", None): (3, 0)}),
        ([], [("R", False, 0)], {("R", 0): (0, 0)}),
        ([], [("R", False, 1), ("R", False, 3)], {("R", 0): (3, 0)}),
        ([], [], {}),
    ],
)
def test_amounts_that_are_enough(explicit, wanted, amounts):
    limiter = Limiter(explicit)
    place = limiter.join(wanted)
    assert limiter.amounts == amounts
    place.ask()
    assert place.holding


def test_a_conflict_between_models_ends_with_the_first():
    limiter = Limiter()
    first = limiter.join([("R", False, 1)])
    with pytest.raises(InvalidArg, match="both global and device-specific"):
        limiter.join([("R", True, 1)])
    assert limiter.amounts == {("R", 0): (1, 0)}
    first.leave()
    assert limiter.join([("R", True, 1)]) is not None


def test_an_interrupt_ends_one_wait_and_makes_way():
    limiter = Limiter([("R", 2, -1)])
    holder = limiter.join([("R", False, 1)])
    holder.ask()
    large, small = limiter.join([("R", False, 2)]), limiter.join([("R", False, 1)])
    large.ask()
    small.ask()
    assert small.waiting
    large.interrupt()
    assert not large.acquire()
    assert small.holding
    holder.release()
    small.release()
    assert large.acquire()
