"""A state machine over the queue with a clock of its own, against a plain Python model of the dynamic batcher.

Priorities, timeouts that refuse or delay, sizes, bytes, shapes, preferred sizes, delay, volume, order of responses. No
threads: the driver submits, takes as several instances would, finishes, cancels, and lets time pass.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from triton_fast._native.sched.queue_driver import QueueDriver

FULL = "Exceeds maximum queue size"
EXPIRED = "Request timeout expired"
STOPPED = "Server is stopping, scheduler for model has stopped accepting new inference requests"
US = 1000


class Policy(NamedTuple):
    max_size: int
    timeout_us: int
    override: bool
    delay: bool


class Ticket:
    def __init__(self, number: int, now: int, level: int, policy: Policy, options: dict[str, int]) -> None:
        self.number, self.queued, self.level = number, now, level
        self.rows, self.shape = options["rows"], options["shape"]
        self.elements, self.nbytes = options["elements"], options["nbytes"]
        timeout = policy.timeout_us
        own = options["timeout_us"]
        if timeout and policy.override and own:
            timeout = min(timeout, own)
        self.deadline = now + timeout * US if timeout else 0
        self.late = False
        self.cancelled = False

    @property
    def lane(self) -> tuple[int, bool]:
        return self.level, self.late


class Batcher:
    """What the queue must do, written for clarity."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.levels: tuple[Policy, ...] = config["levels"]
        self.waiting: list[Ticket] = []  # in order of arrival; those delayed behind the others, as they were moved
        self.stopped = False

    def level_of(self, priority: int) -> int:
        return priority if 1 <= priority <= len(self.levels) else self.config["default_level"]

    def refusal(self, ticket: Ticket) -> str | None:
        """The beginning of the text."""
        policy = self.levels[ticket.level - 1]
        if self.stopped:
            return STOPPED
        if policy.max_size and sum(each.level == ticket.level for each in self.waiting) >= policy.max_size:
            return FULL
        limit = self.config["max_bytes"]
        if limit and ticket.nbytes > limit:
            return "the request has"
        if limit and sum(each.nbytes for each in self.waiting) + ticket.nbytes > limit:
            return FULL
        return None

    def expire(self, now: int) -> list[Ticket]:
        """Move or refuse those whose time is over; return the refused."""
        due = [each for each in self.waiting if not each.late and each.deadline and each.deadline <= now]
        due.sort(key=lambda each: (each.deadline, each.number))
        refused = []
        for ticket in due:
            self.waiting.remove(ticket)
            if self.levels[ticket.level - 1].delay:
                ticket.late = True
                self.waiting.append(ticket)
            else:
                refused.append(ticket)
        return refused

    def ordered(self) -> list[Ticket]:
        return sorted(self.waiting, key=lambda each: each.lane)  # stable: arrival within a lane

    def form(self, first: Ticket, now: int, *, hurry: bool = False) -> list[Ticket] | int:
        """The batch that begins with ``first``, or when to ask again."""
        config = self.config
        alike = [each for each in self.ordered() if each.shape == first.shape and each.lane >= first.lane]
        assert alike[0] is first
        if config["single"]:
            return [first]
        preferred, delay = config["preferred"], config["delay_ns"]
        batch: list[Ticket] = []
        met = 0
        full = False
        for ticket in alike:
            rows = sum(each.rows for each in batch) + ticket.rows
            volume = sum(each.elements for each in batch) + ticket.elements
            if batch and (rows > config["max_batch"] or (config["max_volume"] and volume > config["max_volume"])):
                full = True
                break
            batch.append(ticket)
            if rows in preferred:
                met = len(batch)
            overdue = delay and now - min(each.queued for each in batch) >= delay
            if rows >= config["max_batch"] or (preferred and rows >= max(preferred) and not overdue):
                full = True
                break
        oldest = min(each.queued for each in batch)
        overdue = delay and now - oldest >= delay
        if met and not overdue:
            return batch[:met]
        if full or not delay or overdue or hurry:
            return batch
        return int(oldest + delay)

    def outcomes(self, now: int) -> list[list[Ticket]]:
        """The batches of which one must go now; none: all have to wait."""
        order = self.ordered()
        if not order:
            return []
        first = order[0]
        batch = self.form(first, now, hurry=self.stopped)
        if isinstance(batch, list):
            return [batch]
        heads: dict[tuple[Any, int], Ticket] = {}
        lanes: dict[Any, Ticket] = {}
        for ticket in order:
            heads.setdefault((ticket.lane, ticket.shape), ticket)
            lanes.setdefault(ticket.lane, ticket)
        mine = [head for head in heads.values() if head.lane == first.lane and head is not first and self.large(head)]
        whole = [formed for head in mine if isinstance(formed := self.form(head, now), list)]
        if whole:
            return whole
        lower = [
            head for head in heads.values()
            if head.lane != first.lane and (head is lanes[head.lane] or self.large(head))
        ]  # fmt: skip
        if any(isinstance(self.form(head, now), list) for head in lower):
            batch = self.form(first, now, hurry=True)
            assert isinstance(batch, list)
            return [batch]
        return []

    def large(self, head: Ticket) -> bool:
        """Whether those of its lane and shape may be a whole batch."""
        rows = sum(each.rows for each in self.waiting if each.lane == head.lane and each.shape == head.shape)
        return rows >= min((*self.config["preferred"], self.config["max_batch"]))


policies = st.builds(
    Policy, st.sampled_from([0, 0, 2, 5]), st.sampled_from([0, 0, 5, 20, 1000]), st.booleans(), st.booleans()
)


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    max_batch = draw(st.integers(1, 6))
    ordered = draw(st.integers(0, 3)) == 0
    levels = tuple(draw(st.lists(policies, min_size=1, max_size=1 if ordered else 3)))
    if ordered:
        levels = tuple(policy._replace(delay=False) for policy in levels)
    return {
        "max_batch": max_batch, "ordered": ordered, "levels": levels,
        "delay_ns": draw(st.sampled_from([0, 10 * US, 30 * US])),
        "preferred": tuple(draw(st.lists(st.integers(1, max_batch), max_size=2))),
        "max_volume": draw(st.sampled_from([0, 0, 6])),
        "single": draw(st.integers(0, 9)) == 0,
        "default_level": draw(st.integers(1, len(levels))),
        "max_bytes": draw(st.sampled_from([0, 0, 10])),
    }  # fmt: skip


requests = st.fixed_dictionaries({
    "rows": st.integers(1, 6), "shape": st.integers(0, 2), "priority": st.integers(0, 4),
    "timeout_us": st.sampled_from([0, 1, 4, 7, 30, 10_000]),
    "elements": st.integers(0, 4), "nbytes": st.integers(0, 11),
})  # fmt: skip


class Dynamic(RuleBasedStateMachine):
    @initialize(config=configs())
    def begin(self, config: dict[str, Any]) -> None:
        self.queue = QueueDriver(**config)
        self.model = Batcher(config)
        self.ordered = config["ordered"]
        self.now = 1_000_000_000
        self.number = 0
        self.running: list[Ticket] = []
        self.taken: list[int] = []
        self.places: list[Ticket] = []  # of the order: what was accepted and has not left
        self.held: dict[int, list[tuple[int, str | None, bool]]] = {}
        self.expected: list[tuple[int, str | None, bool]] = []
        self.history: list[Ticket] = []
        self.batches = 0
        self.rejected = self.canceled = 0

    # ---- what must be delivered

    def respond(self, ticket: Ticket, final: bool) -> None:
        if not self.ordered:
            self.expected.append((ticket.number, None, final))
            return
        self.held.setdefault(ticket.number, []).append((ticket.number, None, final))
        self.release()

    def release(self) -> None:
        while self.places:
            waiting = self.held.pop(self.places[0].number, [])
            self.expected += waiting
            if not waiting or not waiting[-1][2]:
                return
            self.places.pop(0)

    def leave(self, ticket: Ticket, text: str | None) -> None:
        self.places.remove(ticket)
        self.release()
        if text is not None:
            self.expected.append((ticket.number, text, True))

    def expire(self) -> None:
        refused = self.model.expire(self.now)
        for ticket in refused:
            self.leave(ticket, EXPIRED)
        self.rejected += len(refused)

    def heard(self, *, by_level: bool = False) -> None:
        """What came is what was expected, in this order; of several levels that expire, in each one's order."""
        came = list(self.queue.delivered)
        self.queue.delivered.clear()
        if by_level:
            assert sorted(came) == sorted(self.expected)
            levels = {ticket.number: ticket.level for ticket in self.history}
            came.sort(key=lambda each: levels[each[0]])
            self.expected.sort(key=lambda each: levels[each[0]])
        assert came == self.expected
        self.expected = []

    # ---- steps

    @rule(several=st.lists(requests, min_size=1, max_size=4))
    def submit(self, several: list[dict[str, int]]) -> None:
        for options in several:
            self.submit_one(**options)

    def submit_one(self, priority: int, **options: int) -> None:
        self.number += 1
        options["rows"] = min(options["rows"], self.model.config["max_batch"])
        level = self.model.level_of(priority)
        ticket = Ticket(self.number, self.now, level, self.model.levels[level - 1], options)
        self.history.append(ticket)
        refusal = self.model.refusal(ticket)
        text = self.queue.submit(self.number, self.now, priority=priority, **options)
        if refusal is not None:
            assert text is not None and text.startswith(refusal)
            self.rejected += refusal != STOPPED
        else:
            assert text is None
            self.model.waiting.append(ticket)
            self.model.waiting.sort(key=lambda each: each.late)  # stable
            self.places.append(ticket)
        self.heard()

    @rule(look=st.booleans())
    def take(self, look: bool) -> None:
        self.expire()
        options = self.model.outcomes(self.now)
        got = self.queue.take(self.now, look)
        self.heard(by_level=True)
        if not options:
            assert isinstance(got, int)
            if self.model.waiting:
                oldest = self.model.ordered()[0].queued
                assert self.now < got <= oldest + self.model.config["delay_ns"]
            else:
                assert got == 0
            return
        assert got in [[ticket.number for ticket in batch] for batch in options]
        if look:
            return
        batch = next(batch for batch in options if [ticket.number for ticket in batch] == got)
        assert len(batch) == 1 or sum(ticket.rows for ticket in batch) <= self.model.config["max_batch"]
        for ticket in batch:
            self.model.waiting.remove(ticket)
        self.running += batch
        self.taken += got
        self.batches += not self.model.config["single"]

    @precondition(lambda self: self.running)
    @rule(data=st.data(), final=st.booleans())
    def answer(self, data: st.DataObject, final: bool) -> None:
        ticket = data.draw(st.sampled_from(self.running))
        if final:
            self.running.remove(ticket)
            self.queue.finish(ticket.number)
            self.respond(ticket, True)
        else:
            assert self.queue.send(ticket.number) is not ticket.cancelled
            if not ticket.cancelled:
                self.respond(ticket, False)
        self.heard()

    @precondition(lambda self: self.model.waiting)
    @rule(data=st.data())
    def cancel_waiting(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.model.waiting))
        assert self.queue.cancel(ticket.number)
        self.model.waiting.remove(ticket)
        self.leave(ticket, None)
        self.canceled += 1
        self.heard()

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def cancel_running(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.running))
        assert not self.queue.cancel(ticket.number)
        ticket.cancelled = True
        self.heard()

    @rule(us=st.sampled_from([0, 1, 3, 10, 25]), watched=st.booleans())
    def time_goes_on(self, us: int, watched: bool) -> None:
        self.now += us * US
        if watched:
            self.expire()
            self.queue.expire(self.now)
            self.heard(by_level=True)

    @precondition(lambda self: self.number > 30)
    @rule(abort=st.booleans())
    def stop(self, abort: bool) -> None:
        self.model.stopped = True
        self.queue.stop(abort)
        if abort:
            for ticket in self.model.ordered():
                self.leave(ticket, STOPPED)
                self.rejected += 1
            self.model.waiting.clear()
        self.heard()

    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, "queue"):
            return
        assert self.queue.pending == len(self.model.waiting)
        assert sum(self.queue.breaks.values()) == self.batches
        assert len(set(self.taken)) == len(self.taken)
        rejected, canceled, *_ = self.queue.failures
        assert (rejected, canceled) == (self.rejected, self.canceled)
        if self.model.config["max_bytes"]:
            assert self.queue.bytes == sum(ticket.nbytes for ticket in self.model.waiting)
        for ticket in self.model.waiting:
            assert ticket.late or not ticket.deadline or self.queue.next_deadline <= ticket.deadline

    def teardown(self) -> None:
        """Let all out: nothing is lost."""
        if not hasattr(self, "queue"):
            return
        while self.model.waiting:
            self.now += 50 * US
            self.take(look=False)
        for ticket in [*self.running]:
            self.running.remove(ticket)
            self.queue.finish(ticket.number)
            self.respond(ticket, True)
        self.heard()
        assert not self.queue.requests
        assert not self.held


def test_dynamic_batcher() -> None:
    run_state_machine_as_test(
        Dynamic, settings=settings(max_examples=300, stateful_step_count=60, deadline=None, database=None)
    )
