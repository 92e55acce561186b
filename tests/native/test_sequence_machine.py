"""A state machine over one model with sequences and a state: start, continue, end, time, cancels, failures, stopping.

A plain Python model says beforehand what each step must do: which batch each of two instances takes next, who gets a
slot, who is refused, and what state each request finds. Whatever must not be seen again is NaN: the state that a
sequence leaves at its end, and the one that padding makes.
"""

from __future__ import annotations

import math
import os
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.helpers.models import INT32, LONG_S, STOPPED, counters_at_base
from tests.helpers.sequences import CONTROLS, END, SECOND, START, Recorder, make
from triton_fast.errors import Cancelled, InvalidArg, ServerError, Unavailable
from triton_fast.types import DataType

__all__ = ["counters_at_base"]

MAX_BATCH, SEATS = 3, 2
IDS = (1, 2, 3, "1", "two", "x" * 128, 4, 5, 6, 7)
IDLE = 4        # ticks
DELAY = 2
TICK = SECOND // 1000
FP32 = DataType.FP32
FIRST = 0.5
STATE = ("STATE_IN", "STATE_OUT", int(FP32), (1,), (1,), struct.pack("<f", FIRST))
NAN = struct.pack("<f", math.nan)


class Instance(Recorder):
    """Answers IN; its state is IN too, NaN where nobody may see it."""

    def __init__(self) -> None:
        super().__init__(held=True)
        self.found: list[float] = []

    def __call__(self, requests: list[Any]) -> Any:
        self.found = [struct.unpack("<f", inputs["STATE_IN"][2])[0] for inputs in requests]
        super().__call__([
            {name: value for name, value in inputs.items() if name != "STATE_IN"} for inputs in requests
        ])  # fmt: skip
        return [self.one(row) for row in self.batches[-1]]

    @staticmethod
    def one(row: dict[str, Any]) -> Any:
        if row["IN"] % 7 == 0 and row["READY"]:
            return InvalidArg("seven")
        over = row["END"] or not row["READY"]
        state = NAN if over else struct.pack("<f", float(row["IN"]))
        return {"OUT": (INT32, (1, 1), struct.pack("<i", row["IN"])), "STATE_OUT": (FP32, (1, 1), state)}


class Ticket:
    def __init__(self, call: Any, value: int, flags: int) -> None:
        self.call, self.value, self.flags = call, value, flags

    def ends_well(self) -> None:
        if self.value % 7 == 0:
            self.ends_with(InvalidArg, "seven")
            return
        assert struct.unpack("<i", self.call.wait(LONG_S)["OUT"][2])[0] == self.value

    def ends_with(self, error: type[ServerError], text: str) -> None:
        with pytest.raises(error, match=text):
            self.call.wait(LONG_S)


class Sequence:
    """As the plain model sees it. ``seat`` None: it waits."""

    def __init__(self, key: Any) -> None:
        self.key = key
        self.queue: list[Ticket] = []
        self.seat: int | None = None
        self.slot = -1
        self.busy: Ticket | None = None
        self.closed = False
        self.since = 0
        self.deadline: int | None = None
        self.state = FIRST


class Batcher(RuleBasedStateMachine):
    @initialize(direct=st.booleans(), delayed=st.booleans(), slots=st.integers(1, 3))
    def load(self, direct: bool, delayed: bool, slots: int) -> None:
        self.direct, self.delayed, self.slots = direct, delayed, slots
        # As many of the slots as are enough for a batch before its delay is over.
        self.enough = math.ceil(0.6 * slots) if direct else MAX_BATCH
        self.value = 0
        self.new_model()

    def new_model(self) -> None:
        self.gates = [Instance() for _ in range(SEATS)]
        delay = {"delay_us": DELAY * 1000} if self.delayed else {}
        if self.delayed and self.direct:
            delay["utilization"] = 0.6
        self.now = 1000
        self.m = make(
            *self.gates, direct=self.direct, slots=self.slots, max_batch=MAX_BATCH, states=[STATE], controls=CONTROLS,
            idle_us=IDLE * 1000, clock=self.now * TICK, **delay,
        )  # fmt: skip
        self.named: dict[Any, Sequence] = {}
        self.backlog: list[Sequence] = []
        self.idle: list[Sequence] = []
        self.ready: list[list[Sequence]] = [[] for _ in range(SEATS)]
        self.taken: list[list[Sequence | None]] = [[] for _ in range(SEATS)]
        self.used: list[list[Sequence | None]] = [[None] * self.slots for _ in range(SEATS)]

    # ---- the plain model

    def seat_for(self) -> tuple[int, int] | None:
        free = [
            (self.used[seat].index(None) if self.direct else self.slots - self.used[seat].count(None), seat)
            for seat in range(SEATS) if None in self.used[seat]
        ]  # fmt: skip
        if not free:
            return None
        _, seat = min(free)
        return seat, self.used[seat].index(None)

    def sit(self, sequence: Sequence, seat: int, slot: int) -> None:
        sequence.seat, sequence.slot, sequence.deadline = seat, slot, None
        self.used[seat][slot] = sequence
        if sequence.queue:
            self.becomes_ready(sequence)

    def becomes_ready(self, sequence: Sequence) -> None:
        assert sequence.seat is not None
        sequence.since = self.now
        self.ready[sequence.seat].append(sequence)

    def leave(self, sequence: Sequence) -> None:
        """Its slot is free, for who waits longest."""
        if sequence.seat is None:
            self.backlog.remove(sequence)
            return
        self.used[sequence.seat][sequence.slot] = None
        if sequence in self.ready[sequence.seat]:
            self.ready[sequence.seat].remove(sequence)
        if self.backlog:
            self.sit(self.backlog.pop(0), sequence.seat, sequence.slot)

    def gives_up(self, sequence: Sequence, error: type[ServerError], text: str, but: Ticket | None = None) -> None:
        refused, sequence.queue = sequence.queue, []
        if self.named.get(sequence.key) is sequence:
            del self.named[sequence.key]
        sequence.closed = True
        if sequence in self.idle:
            self.idle.remove(sequence)
        if sequence.busy is None:
            self.leave(sequence)
        for ticket in refused:
            if ticket is not but:
                ticket.ends_with(error, text)

    def next_batch(self, seat: int) -> list[Sequence | None]:
        ready = self.ready[seat]
        if not ready:
            return []
        late = self.now - ready[0].since >= DELAY
        if self.direct:
            if self.delayed and len(ready) < self.enough and not late:
                return []
            top = max(sequence.slot for sequence in ready)
            return [one if one in ready else None for one in self.used[seat][: top + 1]]
        if self.delayed and len(ready) < self.enough and not late:
            return []
        return list(ready[:MAX_BATCH])

    def instances_take(self) -> None:
        """Each instance that is free takes the batch that was foretold, and finds the right states."""
        for seat, gate in enumerate(self.gates):
            batch = [] if self.taken[seat] else self.next_batch(seat)
            if not batch:
                continue
            rows = gate.taken()
            assert len(rows) == len(batch)
            for row, state, sequence in zip(rows, gate.found, batch, strict=True):
                if sequence is None:
                    assert (row, state) == ({"IN": 0, "START": 0, "READY": 0, "END": 0}, 0.0)
                    continue
                ticket = sequence.queue.pop(0)
                flags = ticket.flags
                assert row == {"IN": ticket.value, "START": flags & 1, "READY": 1, "END": flags >> 1}
                if flags & START:
                    sequence.state = FIRST
                assert state == sequence.state, (sequence.key, ticket.value)
                sequence.busy = ticket
                self.ready[seat].remove(sequence)
            self.taken[seat] = batch

    # ---- what happens

    @rule(key=st.sampled_from(IDS), flags=st.sampled_from([0, 1, 1, 2, 3]), timeout=st.sampled_from([0, 0, 0, 1, 3, 6]))
    def submit(self, key: Any, flags: int, timeout: int) -> None:
        self.value += 1
        sequence = self.named.get(key)
        options = {"timeout_us": timeout * 1000}
        if sequence is None and not flags & START:
            with pytest.raises(InvalidArg, match="must specify the START flag on the first request of the sequence"):
                self.m.send(self.value, key, flags, **options)
            return
        ticket = Ticket(self.m.send(self.value, key, flags, **options), self.value, flags)
        if sequence is None:
            sequence = self.named[key] = Sequence(key)
            place = self.seat_for()
            if place is None:
                self.backlog.append(sequence)
            else:
                self.sit(sequence, *place)
        if sequence in self.idle:
            self.idle.remove(sequence)
        sequence.queue.append(ticket)
        if flags & END:
            sequence.closed = True
            del self.named[key]
        if sequence.seat is None:
            if timeout:
                sequence.deadline = min(sequence.deadline or math.inf, self.now + timeout)  # type: ignore[assignment]
        elif sequence.busy is None and len(sequence.queue) == 1:
            self.becomes_ready(sequence)
        self.instances_take()

    @precondition(lambda self: any(self.taken))
    @rule(data=st.data())
    def batch_ends(self, data: Any) -> None:
        seat = data.draw(st.sampled_from([seat for seat in range(SEATS) if self.taken[seat]]))
        self.end_batch(seat)
        self.instances_take()

    def end_batch(self, seat: int) -> None:
        batch, self.taken[seat] = self.taken[seat], []
        self.gates[seat].step()
        for sequence in batch:
            if sequence is None:
                continue
            ticket, sequence.busy = sequence.busy, None
            assert ticket is not None
            ticket.ends_well()
            if ticket.value % 7:
                sequence.state = math.nan if ticket.flags & END else float(ticket.value)
            if sequence.queue:
                self.becomes_ready(sequence)
            elif sequence.closed:
                self.leave(sequence)
            else:
                sequence.since = self.now
                self.idle.append(sequence)

    @rule(ticks=st.sampled_from([1, 1, 2, 3, 12]))
    def time_passes(self, ticks: int) -> None:
        self.now += ticks
        self.m.pass_time(ticks * TICK)
        late = [one for one in self.backlog if one.deadline is not None and one.deadline <= self.now]
        for sequence in sorted(late, key=lambda one: one.deadline):     # type: ignore[arg-type,return-value]
            self.gives_up(sequence, Unavailable, "timeout of the corresponding sequence has been expired")
        for sequence in list(self.idle):
            if self.now - sequence.since >= IDLE:
                self.gives_up(sequence, Unavailable, "never")
        self.instances_take()

    def sequences(self) -> Iterator[Sequence]:
        yield from self.backlog
        for seat in self.used:
            yield from (sequence for sequence in seat if sequence is not None)

    @precondition(lambda self: any(sequence.queue for sequence in self.sequences()))
    @rule(data=st.data())
    def cancel_queued(self, data: Any) -> None:
        some = [(sequence, ticket) for sequence in self.sequences() for ticket in sequence.queue]
        sequence, ticket = some[data.draw(st.integers(0, len(some) - 1))]
        assert ticket.call.cancel()
        self.gives_up(sequence, Cancelled, "a request of the same sequence was cancelled", but=ticket)
        ticket.ends_with(Cancelled, "the request was cancelled")
        self.instances_take()

    @precondition(lambda self: any(self.taken))
    @rule(data=st.data())
    def cancel_running(self, data: Any) -> None:
        running = [one.busy for batch in self.taken for one in batch if one is not None and one.busy is not None]
        if running:
            assert not data.draw(st.sampled_from(running)).call.cancel()

    @rule(abort=st.booleans())
    @precondition(lambda self: self.value % 5 == 0)
    def stop_and_load_again(self, abort: bool) -> None:
        if abort:
            self.m.model.abort()
            for sequence in list(self.sequences()):
                queue, sequence.queue = sequence.queue, []
                for ticket in queue:
                    ticket.ends_with(Unavailable, STOPPED)
            for seat, batch in enumerate(self.taken):
                if batch:
                    self.gates[seat].step()
                    for one in batch:
                        if one is not None and one.busy is not None:
                            one.busy.ends_well()
        else:
            while any(self.taken) or any(self.ready) or self.backlog:
                for seat in range(SEATS):
                    if self.taken[seat]:
                        self.end_batch(seat)
                        self.instances_take()
                if not any(self.taken):
                    self.time_passes(IDLE)
        stopper = threading.Thread(target=self.m.model.stop)
        stopper.start()
        stopper.join()
        with pytest.raises(Unavailable, match=STOPPED):
            self.m.send(1, 1, START)
        self.new_model()

    # ---- always

    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, "m"):
            return
        counts = self.m.batcher.counts()
        assert counts["seated"] == sum(1 for one in self.sequences() if one.seat is not None)
        assert counts["waiting"] == len(self.backlog)
        assert counts["idle"] == len(self.idle)
        assert counts["named"] == len(self.named)
        assert counts["deadlines"] == sum(1 for one in self.backlog if one.deadline is not None)
        assert counts["known"] - counts["spare"] == counts["seated"] + counts["waiting"]
        assert self.m.model.pending == sum(len(one.queue) for one in self.sequences())

    def teardown(self) -> None:
        if hasattr(self, "m"):
            for gate in self.gates:
                gate.open()
            self.m.model.stop(abort=True)


STEPS = 50


def run(steps: int) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        Batcher,
        settings=settings(max_examples=max(1, steps // STEPS), stateful_step_count=STEPS, deadline=None, database=None),
    )


@pytest.mark.soak
def test_batcher() -> None:
    run(int(os.environ.get("TF_SOAK_REQUESTS", "4000")))
