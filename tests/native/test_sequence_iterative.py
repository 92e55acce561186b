"""Requests that an iterative model executes again: what they look like, who goes between, their ends."""

from __future__ import annotations

import struct
import threading

import pytest

from tests.helpers.models import LONG_S, STOPPED, counters_at_base
from tests.helpers.sequences import (
    CONTROLS,
    CORRID,
    END,
    START,
    STATE,
    Recorder,
    number,
    out,
    sequenced,
)  # fmt: skip
from triton_fast.errors import Cancelled, Internal, InvalidArg, Unavailable

__all__ = ["counters_at_base"]


class Counter:
    """Answers a request with IN = n at its n-th execution. Requests are told apart by their generated id."""

    def __init__(self):
        self.done = {}

    def __call__(self, values):
        key = values["CORRID"]
        self.done[key] = self.done.get(key, 0) + 1
        if self.done[key] < values["IN"]:
            return ...
        return {"OUT": out(self.done.pop(key))}


ITERATIVE = {"iterative": True, "controls": (*CONTROLS, CORRID)}


@pytest.mark.parametrize("direct", [False, True])
def test_a_request_comes_again_until_its_model_has_done(direct):
    gate = Recorder(answer=Counter())
    with sequenced(gate, direct=direct, **ITERATIVE) as m:
        assert m.ask(3, 0) == 3
        assert m.ask(1, 0) == 1
        taken = m.model.snapshot()
        assert (taken["success"], taken["execution_count"], m.model.pending) == (2, 4, 0)
        assert m.batcher.counts()["seated"] == m.batcher.counts()["named"] == 0
    rows = [row for (row,) in gate.batches]
    assert [(row["IN"], row["START"], row["END"], row["READY"]) for row in rows] == [
        (3, 1, 0, 1), (3, 0, 0, 1), (3, 0, 0, 1), (1, 1, 0, 1)
    ]  # fmt: skip
    assert len({row["CORRID"] for row in rows[:3]}) == 1
    assert rows[3]["CORRID"] != rows[0]["CORRID"] != 0


def test_others_join_between_its_steps():
    gate = Recorder(held=True, answer=Counter())
    with sequenced(gate, slots=4, **ITERATIVE) as m:
        long = m.send(5, 0)
        gate.taken()
        gate.step()
        gate.taken()
        short = m.send(2, 0)
        gate.open()
        assert number(short) == 2
        assert number(long) == 5
        assert [[row["IN"] for row in batch] for batch in gate.batches] == [[5], [5], [2, 5], [2, 5], [5]]


def test_a_request_that_comes_again_needs_no_room():
    gate = Recorder(answer=Counter())
    with sequenced(gate, max_bytes=4, max_requests=1, **ITERATIVE) as m:
        assert m.ask(3, 1, START | END) == 3
        assert m.batcher.bytes == 0


def test_its_own_id_keeps_to_the_rules_of_sequences():
    gate = Recorder(answer=Counter())
    with sequenced(gate, **ITERATIVE) as m:
        with pytest.raises(InvalidArg, match="must specify the START flag"):
            m.ask(1, 12)
        assert m.ask(3, 12, START) == 3
        assert m.ask(2, 12) == 2
        assert m.ask(2, 12, END) == 2  # its end is its own, not that of its first step
        assert m.batcher.counts()["named"] == 0
        assert m.ask(3, 13, START | END) == 3
    assert [(row["START"], row["END"]) for (row,) in gate.batches] == [
        (1, 0), (0, 0), (0, 0), (0, 0), (0, 0), (0, 1), (0, 0), (1, 1), (0, 0), (0, 0)
    ]  # fmt: skip


def test_states_pass_from_step_to_step():
    def answer(values):
        def stream():
            yield {"OUT": out(values["STATE_IN"]), "STATE_OUT": out(values["STATE_IN"] + 1)}
            return ... if values["STATE_IN"] + 1 < values["IN"] else None

        return stream()

    with sequenced(Recorder(answer=answer), iterative=True, states=[STATE], decoupled=True) as m:
        assert take_all(m.send(4, 0)) == [0, 1, 2, 3, None]
        assert take_all(m.send(2, 0)) == [0, 1, None]


def take_all(call):
    found = []
    while True:
        outputs, is_final = call.take(LONG_S)
        found.append(struct.unpack("<i", outputs["OUT"][2])[0] if outputs else None)
        if is_final:
            return found


def test_an_error_ends_it():
    counter = Counter()

    def answer(values):
        made = counter(values)
        return InvalidArg("no") if counter.done.get(values["CORRID"]) == 3 else made

    with sequenced(Recorder(answer=answer), **ITERATIVE) as m:
        with pytest.raises(InvalidArg, match="no"):
            m.ask(5, 0)
        assert m.batcher.counts()["seated"] == 0


def test_cancelled_between_its_steps():
    gate = Recorder(held=True, answer=Counter())
    with sequenced(gate, slots=4, max_batch=1, **ITERATIVE) as m:
        one, other = m.send(9, 0), m.send(9, 0)
        gate.taken()
        gate.step()
        gate.taken()
        assert one.cancel()  # the other is executed, it waits for its second step
        with pytest.raises(Cancelled):
            one.wait(LONG_S)
        assert not other.cancel()
        gate.open()
        with pytest.raises(Cancelled, match="the request was cancelled"):
            other.wait(LONG_S)
        assert m.model.snapshot()["failures"]["CANCELED"] == 2
        assert m.batcher.counts()["seated"] == 0


def test_a_stopping_model_finishes_what_it_began():
    gate = Recorder(held=True, answer=Counter())
    with sequenced(gate, slots=1, **ITERATIVE) as m:
        calls = [m.send(3, 0), m.send(3, 0)]
        gate.taken()
        stopper = threading.Thread(target=m.model.stop)
        stopper.start()
        gate.open()
        assert [number(call) for call in calls] == [3, 3]
        stopper.join()


def test_abort_ends_it_after_its_step():
    gate = Recorder(held=True, answer=Counter())
    with sequenced(gate, **ITERATIVE) as m:
        call = m.send(3, 0)
        gate.taken()
        m.model.abort()
        gate.open()
        with pytest.raises(Unavailable, match=STOPPED):
            call.wait(LONG_S)


def test_other_models_can_not_ask_for_it():
    with sequenced(Recorder(answer=lambda _: ...)) as m, pytest.raises(Internal):
        m.ask(1, 1, START)
