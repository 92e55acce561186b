"""Implicit state: what one request leaves is what the next gets, of its own sequence only, and who holds the memory."""

from __future__ import annotations

import struct

import pytest

from tests.helpers.models import INT32, counters_at_base, live, numbers
from tests.helpers.sequences import END, SECOND, START, STATE, Recorder, number, out, sequenced
from triton_fast._native.backends.identity import IdentityInstance
from triton_fast._native.sched.inprocess import InferCall
from triton_fast._native.sched.pyinstance import PyInstance
from triton_fast.config import IoSpec
from triton_fast.errors import Internal, InvalidArg
from triton_fast.types import DataType

__all__ = ["counters_at_base"]


def add_up(values):
    """OUT and the state: the sum so far; a negative number fails, and would have changed the state."""
    total = values["IN"] + values["STATE_IN"]
    if values["IN"] < 0:
        return InvalidArg("negative")
    return {"OUT": out(total), "STATE_OUT": out(total)}


class Steps(Recorder):
    """A recorder that answers with functions of whole batches."""

    def __init__(self, work, **options):
        super().__init__(**options)
        self.work = work

    def __call__(self, requests):
        super().__call__(requests)
        return self.work(requests)


@pytest.mark.parametrize("direct", [False, True])
def test_each_request_gets_what_the_one_before_left(direct):
    with sequenced(Recorder(answer=add_up), direct=direct, states=[STATE]) as m:
        assert [m.ask(1, 1, START), m.ask(2, 1), m.ask(10, 2, START), m.ask(3, 1), m.ask(20, 2)] == [1, 3, 10, 6, 30]
        assert m.ask(1, 1, END) == 7
        assert m.ask(1, 1, START | END) == 1
        assert m.ask(0, 2) == 30


def test_interleaved_sequences_in_batches():
    gate = Recorder(held=True, answer=add_up)
    with sequenced(gate, slots=8, max_batch=8, states=[STATE]) as m:
        first = m.send(0, 99, START)
        gate.taken()
        calls = {k: [m.send(k, k, START), *(m.send(k, k) for _ in range(9))] for k in range(1, 8)}
        gate.open()
        number(first)
        assert {k: [number(call) for call in some] for k, some in calls.items()} == {
            k: [k * n for n in range(1, 11)] for k in calls
        }  # fmt: skip
        assert len(gate.batches) < 15


def test_a_failed_request_leaves_the_state_as_it_was():
    with sequenced(Recorder(answer=add_up), states=[STATE]) as m:
        m.ask(5, 1, START)
        with pytest.raises(InvalidArg, match="negative"):
            m.ask(-1, 1)
        assert m.ask(1, 1) == 6
        with pytest.raises(InvalidArg, match="negative"):
            m.ask(-1, 1, START)
        assert m.ask(1, 1) == 1     # it had begun again


def test_a_sequence_that_begins_again_forgets():
    with sequenced(Recorder(answer=add_up), slots=1, states=[STATE]) as m:
        assert [m.ask(5, 1, START), m.ask(5, 1), m.ask(1, 1, START)] == [5, 10, 1]
        m.pass_time(SECOND)
        assert m.ask(2, 1, START) == 2
        m.ask(1, 1, END)
        assert m.ask(3, 2, START) == 3
        call = m.send(1, 2)
        number(call)


def test_clients_see_the_state_only_as_a_declared_output():
    with sequenced(Recorder(answer=add_up), states=[STATE]) as m:
        assert set(m.send(1, 1, START).wait(10)) == {"OUT"}
        assert set(m.send(1, 1, 0, outputs=["OUT"]).wait(10)) == {"OUT"}
        with pytest.raises(InvalidArg, match="unexpected inference output 'STATE_OUT'"):
            m.send(1, 1, 0, outputs=["STATE_OUT"])
        assert m.ask(1, 1) == 3
    shown = (IoSpec("OUT", INT32, (1,)), IoSpec("STATE_OUT", INT32, (1,), kept=True))
    with sequenced(Recorder(answer=add_up), states=[STATE], outputs=shown) as m:
        assert m.send(1, 1, START).wait(10) == {"OUT": (*out(1)[:2], out(1)[2]), "STATE_OUT": out(1)}
        assert set(m.send(1, 1, 0, outputs=["OUT"]).wait(10)) == {"OUT"}
        assert set(m.send(1, 1, 0, outputs=["STATE_OUT"]).wait(10)) == {"STATE_OUT"}
        assert m.ask(1, 1) == 4


def test_a_model_that_says_nothing_of_a_state_leaves_it():
    def answer(values):
        made = {"OUT": out(values["STATE_IN"])}
        return {**made, "STATE_OUT": out(values["IN"])} if values["IN"] else made

    with sequenced(Recorder(answer=answer), states=[STATE]) as m:
        assert [m.ask(7, 1, START), m.ask(0, 1), m.ask(0, 1), m.ask(8, 1), m.ask(0, 1)] == [0, 7, 7, 7, 8]


NAMES = ("a", "ab", "a_", "abc", "b", "B")


def test_states_are_paired_by_their_configured_names():
    """Inputs and outputs whose sorted names would pair otherwise, and names that begin alike."""
    states = [
        (f"IN_{name}", f"OUT_{other}", int(INT32), (1,), (1,), struct.pack("<i", 100 * k))
        for k, (name, other) in enumerate(zip(NAMES, reversed(NAMES), strict=True))
    ]

    def answer(values):
        pairs = zip(NAMES, reversed(NAMES), strict=True)
        return {"OUT": out(0), **{f"OUT_{other}": out(values[f"IN_{name}"] + 1) for name, other in pairs}}

    gate = Recorder(answer=answer)
    with sequenced(gate, states=states) as m:
        for k in range(3):
            m.ask(k, 1, START if k == 0 else 0)
            (row,) = gate.batches[-1]
            assert [row[f"IN_{name}"] for name in NAMES] == [100 * n + k for n in range(len(NAMES))]


def test_variable_dimensions_grow():
    state = ("STATE_IN", "STATE_OUT", int(INT32), (-1, 2), (1, 2), bytes(8))

    def work(requests):
        answers = []
        for inputs in requests:
            _, shape, data = inputs["STATE_IN"]
            grown = (1, shape[1] + 1, 2)
            answers.append({"OUT": out(shape[1]), "STATE_OUT": (INT32, grown, bytes(data) + struct.pack("<ii", 1, 2))})
        return answers

    with sequenced(Steps(work), states=[state]) as m:
        assert [m.ask(1, 1, START if k == 0 else 0) for k in range(50)] == list(range(1, 51))
        assert m.ask(1, 2, START) == 1


@pytest.mark.parametrize("direct", [False, True])
def test_states_of_different_dims_share_no_batch(direct):
    state = ("STATE_IN", "STATE_OUT", int(INT32), (-1,), (1,), bytes(4))

    def work(requests):
        shapes = [inputs["STATE_IN"][1] for inputs in requests]
        assert len(set(shapes)) == 1
        return [
            {"OUT": out(shape[1]), "STATE_OUT": (INT32, (1, shape[1] + 1), bytes(4 * shape[1] + 4))} for shape in shapes
        ]

    gate = Steps(work, held=True)
    with sequenced(gate, direct=direct, slots=8, max_batch=8, states=[state]) as m:
        first = m.send(0, 9, START)
        gate.taken()
        # Sequence k has k requests more; all of them at once.
        calls = [m.send(1, k, START) for k in range(1, 6)]
        more = {k: [m.send(1, k, 0) for _ in range(k)] for k in range(1, 6)}
        again = m.send(1, 5, START)
        gate.open()
        assert [number(call) for call in (first, *calls, again)] == [1] * 7
        for k, some in more.items():
            assert [number(call) for call in some] == list(range(2, k + 2))


def test_states_of_strings():
    state = ("STATE_IN", "STATE_OUT", int(DataType.STRING), (-1,), (2,), bytes(8))
    found = []

    def work(requests):
        found.append([(inputs["STATE_IN"][1], bytes(inputs["STATE_IN"][2])) for inputs in requests])
        text = struct.pack("<I", 3) + b"abc"
        return [{"OUT": out(0), "STATE_OUT": (DataType.STRING, (1, 1), text)} for _ in requests]

    with sequenced(Steps(work), states=[state]) as m:
        m.ask(1, 1, START)
        m.ask(1, 1)
    assert found == [[((1, 2), bytes(8))], [((1, 1), struct.pack("<I", 3) + b"abc")]]


@pytest.mark.parametrize(
    "wrong",
    [(INT32, (1, 2), bytes(8)), (INT32, (1,), bytes(4)), (DataType.FP32, (1, 1), bytes(4)), (INT32, (1, 1), bytes(8))],
)
def test_what_is_no_such_state_fails_the_request(wrong):
    def answer(values):
        return {"OUT": out(values["STATE_IN"]), "STATE_OUT": wrong if values["IN"] == 2 else out(values["IN"])}

    with sequenced(Recorder(answer=answer), states=[STATE]) as m:
        m.ask(7, 1, START)
        with pytest.raises(Internal, match=r"^state output 'STATE_OUT' .* does not have the data type and shape"):
            m.ask(2, 1)
        assert m.ask(1, 1) == 7


def test_padding_has_no_state():
    gate = Recorder(answer=add_up)
    with sequenced(gate, direct=True, states=[STATE]) as m:
        m.ask(1000, 1, START)
        assert m.ask(2, 2, START) == 2
        assert gate.batches[1][0] == {"IN": 0, "STATE_IN": 0, "START": 0, "READY": 0, "END": 0}
        assert m.ask(1, 1) == 1001


def test_a_block_changes_hands_and_small_parts_of_large_ones_do_not_keep_them():
    """The identity backend hands its input back: a state's block is the one it came in."""
    big = IoSpec("IN", INT32, (-1,)), IoSpec("OUT", INT32, (-1,))
    state = ("S", "T", int(INT32), (-1,), (100_000,), bytes(400_000))
    with sequenced(IdentityInstance("i"), states=[state], controls=(), inputs=big[:1], outputs=big[1:]) as m:
        before = live()
        m.send(1, 1, START).wait(10)
        for _ in range(10):
            m.send(1, 1).wait(10)
        assert live()["bytes"] == before["bytes"]      # the initial state's block, of which there is one
        m.ask(1, 1, END)


def test_who_holds_a_batchs_block_gets_it_copied():
    """A state that is a small slice of a large block is copied out of it."""
    rows = IoSpec("IN", INT32, (-1,)), IoSpec("OUT", INT32, (-1,))
    state = ("S", "T", int(INT32), (16,), (16,), bytes(64))

    def work(requests):
        return [{"OUT": (INT32, (1, 1), bytes(4)), "T": (INT32, (1, 16), struct.pack("<i", 7) * 16)} for _ in requests]

    with sequenced(Steps(work), states=[state], inputs=rows[:1], outputs=rows[1:], slots=100) as m:
        before = live()["bytes"]
        for k in range(50):
            m.ask(1, k + 1, START)
        # One small block each, whatever they came in.
        assert live()["bytes"] - before <= 50 * 4096
        for k in range(50):
            m.ask(1, k + 1, END)


def test_kept_beyond_the_models_end():
    """A response that is still in somebody's hand holds what it needs, the batcher is gone."""
    with sequenced(Recorder(answer=add_up), states=[STATE]) as m:
        call = m.send(3, 1, START)
        number(call)
    assert number(call) == 3


def test_the_first_state_is_the_configured_one():
    state = ("STATE_IN", "STATE_OUT", int(INT32), (1,), (1,), struct.pack("<i", 42))
    with sequenced(Recorder(answer=add_up), states=[state]) as m:
        assert [m.ask(1, 1, START), m.ask(1, 1), m.ask(1, 1, START), m.ask(2, 2, START)] == [43, 44, 43, 44]


def test_partial_responses_bring_states_and_the_final_one_seals_them():
    def answer(values):
        def stream():
            yield {"OUT": out(values["STATE_IN"]), "STATE_OUT": out(values["IN"])}
            yield {"OUT": out(-1)}
            if values["IN"] == 13:
                raise InvalidArg("unlucky")

        return stream()

    with sequenced(Recorder(answer=answer), states=[STATE], decoupled=True) as m:
        found = []
        for value, flags in ((5, START), (13, 0), (6, 0), (1, END)):
            call = m.send(value, 1, flags)
            found.append(take_all(call))
    assert found == [[0, -1, None], [5, -1, "unlucky"], [5, -1, None], [6, -1, None]]


def take_all(call):
    found = []
    while True:
        try:
            taken = call.take(10)
        except InvalidArg as error:
            found.append(str(error))
            return found
        outputs, is_final = taken
        assert "STATE_OUT" not in outputs
        found.append(struct.unpack("<i", outputs["OUT"][2])[0] if outputs else None)
        if is_final:
            return found


def test_two_instances_keep_states_apart():
    with sequenced(Recorder(answer=add_up), Recorder(answer=add_up), slots=2, states=[STATE]) as m:
        for n in range(1, 20):
            for k in range(1, 5):
                assert m.ask(k, k, START if n == 1 else 0) == n * k


def test_plain_instances_get_states_too():
    """Through PyInstance by hand: the names and shapes that an instance sees."""
    names = []

    def function(requests):
        names.extend(list(inputs) for inputs in requests)
        return [{"OUT": out(1), "STATE_OUT": out(1)} for _ in requests]

    with sequenced(PyInstance(function, "p"), states=[STATE]) as m:
        number(InferCall(m.model, [numbers(1, 1, 1)], flags=START | END, correlation=1))
    assert names == [["IN", "STATE_IN", "START", "READY", "END"]]
