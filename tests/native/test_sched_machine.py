"""A state machine over one model at a time: submit, cancel, let a batch through, stop, abort, load a new one.

A plain Python model says beforehand what each step must do: which requests the next batch holds, who is refused, and
how each request ends. The instance stands at a gate whenever it has work, so every step has one outcome.
"""

from __future__ import annotations

import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.helpers.models import (
    ANY,
    ANY_OUT,
    LONG_S,
    STOPPED,
    Gate,
    counters_at_base,
    make_model,
    submit,
    value_of,
)
from triton_fast._native.sched.inprocess import InferCall
from triton_fast.errors import Cancelled, Unavailable

__all__ = ["counters_at_base"]

MAX_BATCH = 4
MAX_QUEUE = 6


class Ticket:
    """A request as the plain model sees it."""

    def __init__(self, call: InferCall, value: int, rows: int, dim: int) -> None:
        self.call, self.value, self.rows, self.dim = call, value, rows, dim

    def ends_well(self) -> None:
        assert value_of(self.call) == self.value
        assert not self.call.cancel()

    def ends_with(self, error: type[Exception], text: str) -> None:
        with pytest.raises(error, match=text):
            self.call.wait(LONG_S)
        assert not self.call.cancel()


class Engine(RuleBasedStateMachine):
    @initialize(preferred=st.sampled_from([(), (2,), (3, 2)]))
    def load(self, preferred):
        self.preferred = preferred
        self.new_model()
        self.number = 0

    def new_model(self):
        self.gate = Gate()
        self.model = make_model(
            self.gate, max_batch=MAX_BATCH, max_queue_size=MAX_QUEUE, preferred=self.preferred,
            inputs=ANY, outputs=ANY_OUT,
        )  # fmt: skip
        self.queue: list[Ticket] = []
        self.running: list[Ticket] = []
        self.stopped = False
        self.count = dict.fromkeys(("success", "rows", "batches", "CANCELED", "REJECTED"), 0)

    def next_batch(self) -> list[Ticket]:
        """The plain policy: requests of the oldest one's shape, in order, up to max_batch rows or a preferred size."""
        alike = [ticket for ticket in self.queue if ticket.dim == self.queue[0].dim]
        largest = max(self.preferred, default=MAX_BATCH)
        reach, rows, met = 0, 0, 0
        for ticket in alike:
            if reach and rows + ticket.rows > MAX_BATCH:
                break
            reach, rows = reach + 1, rows + ticket.rows
            met = reach if rows in self.preferred else met
            if rows >= largest:
                break
        return alike[: met or reach]

    def expect_batch(self):
        """The idle instance takes the next batch, and it is the one foretold."""
        if self.queue:
            self.running = self.next_batch()
            assert self.gate.taken() == [ticket.value for ticket in self.running]
            self.queue = [ticket for ticket in self.queue if ticket not in self.running]

    def batch_ends(self):
        for ticket in self.running:
            ticket.ends_well()
        self.count["success"] += len(self.running)
        self.count["rows"] += sum(ticket.rows for ticket in self.running)
        self.count["batches"] += 1
        self.running = []

    @rule(rows=st.integers(1, MAX_BATCH), dim=st.integers(1, 2))
    def submit(self, rows, dim):
        self.number += 1
        if self.stopped or len(self.queue) == MAX_QUEUE:
            with pytest.raises(Unavailable, match=STOPPED if self.stopped else "Exceeds maximum queue size"):
                submit(self.model, self.number, rows, dim)
            self.count["REJECTED"] += not self.stopped
            return
        self.queue.append(Ticket(submit(self.model, self.number, rows, dim), self.number, rows, dim))
        if not self.running:
            self.expect_batch()

    @precondition(lambda self: self.queue)
    @rule(data=st.data())
    def cancel_queued(self, data):
        ticket = self.queue.pop(data.draw(st.integers(0, len(self.queue) - 1)))
        assert ticket.call.cancel()
        ticket.ends_with(Cancelled, "the request was cancelled")
        self.count["CANCELED"] += 1

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def cancel_running(self, data):
        assert not data.draw(st.sampled_from(self.running)).call.cancel()

    @precondition(lambda self: self.running)
    @rule()
    def let_one_batch_through(self):
        self.gate.step()
        self.batch_ends()
        self.expect_batch()

    @precondition(lambda self: not self.stopped)
    @rule()
    def abort(self):
        self.model.abort()
        for ticket in self.queue:
            ticket.ends_with(Unavailable, STOPPED)
        self.count["REJECTED"] += len(self.queue)
        self.queue = []
        self.stopped = True

    @rule()
    def stop_and_load_again(self):
        stopper = threading.Thread(target=self.model.stop)
        stopper.start()
        while self.running:
            self.let_one_batch_through()
        stopper.join()
        self.stopped = True
        self.counts_agree()
        assert self.model.n_instances == 0
        self.submit(1, 1)
        self.new_model()

    @invariant()
    def counts_agree(self):
        if not hasattr(self, "model"):
            return
        taken = self.model.snapshot()
        assert taken["pending"] == self.model.pending == len(self.queue)
        assert taken["success"] == self.count["success"]
        assert taken["inference_count"] == self.count["rows"]
        assert taken["execution_count"] == self.count["batches"]
        assert taken["failures"] == {
            "REJECTED": self.count["REJECTED"], "CANCELED": self.count["CANCELED"], "BACKEND": 0, "OTHER": 0,
        }  # fmt: skip

    def teardown(self):
        if hasattr(self, "model"):
            self.gate.open()
            self.model.stop()


def test_engine():
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        Engine, settings=settings(max_examples=120, stateful_step_count=40, deadline=None, database=None)
    )
