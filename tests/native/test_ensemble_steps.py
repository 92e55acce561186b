"""Ensembles that go well: which steps run, in what order, on whose memory, with what they are told."""

from __future__ import annotations

import struct
import threading

import numpy
import pytest

from tests.helpers.ensemble_models import chain, ints, io, mapped, step, values, zoo
from tests.helpers.models import INT32, LONG_S, Gate, counters_at_base, live
from triton_fast._native.backends.identity import IdentityInstance
from triton_fast._native.sched.ensemble import NativeEnsemble
from triton_fast._native.sched.inprocess import InferCall, infer
from triton_fast._native.sched.model import NativeModel
from triton_fast.errors import InvalidArg
from triton_fast.types import DataType

__all__ = ["counters_at_base"]

AB = (io("A"), io("B"))


def address(view):
    return numpy.frombuffer(view, numpy.uint8).__array_interface__["data"][0]


class Seen:
    """A callable that echoes and remembers the addresses of its inputs."""

    def __init__(self):
        self.addresses = []

    def __call__(self, requests):
        self.addresses += [address(request["IN"][2]) for request in requests]
        return [{"OUT": (dtype, shape, bytes(view))} for dtype, shape, view in (one["IN"] for one in requests)]


def add_one(z, name="inc"):
    return z.add(name, mapped(lambda given: {"OUT": [value + 1 for value in given["IN"]]}))


def run(model, *numbers, outputs=(), **options):
    """Numbers of each output."""
    made = infer(model, [("X", *ints(*numbers))], outputs, timeout_s=LONG_S, **options)
    return {name: values(tensor) for name, tensor in made.items()}


# --- graphs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 17])
def test_a_chain(n):
    with zoo() as z:
        add_one(z)
        model = z.ensemble("e", chain("inc", "X", *(f"t{k}" for k in range(n - 1)), "Y"))
        assert run(model, 1, 10) == {"Y": [1 + n, 10 + n]}
        assert z.models["inc"].snapshot()["success"] == n


def test_a_diamond():
    with zoo() as z:
        add_one(z)
        z.add("double", mapped(lambda given: {"OUT": [2 * value for value in given["IN"]]}))
        z.add("minus", mapped(lambda given: {"OUT": [given["A"][0] - given["B"][0]]}), inputs=AB)
        steps = [
            step("minus", {"A": "left", "B": "right"}, {"OUT": "Y"}),  # the order in the config does not matter
            step("double", {"IN": "top"}, {"OUT": "left"}),
            step("inc", {"IN": "top"}, {"OUT": "right"}),
            step("inc", {"IN": "X"}, {"OUT": "top"}),
        ]
        assert run(z.ensemble("e", steps), 5) == {"Y": [12 - 7]}


def test_one_tensor_for_two_inputs():
    with zoo() as z:
        z.add("plus", mapped(lambda given: {"OUT": [given["A"][0] + given["B"][0]]}), inputs=AB)
        steps = [
            step("plus", {"A": "X", "B": "X"}, {"OUT": "t"}),
            step("plus", {"A": "t", "B": "t"}, {"OUT": "Y"}),
        ]
        assert run(z.ensemble("e", steps), 3) == {"Y": [12]}


def test_branches_run_beside_each_other():
    left, right = Gate(), Gate()
    with zoo() as z:
        z.add("left", left)
        z.add("right", right)
        steps = [step("left", {"IN": "X"}, {"OUT": "Y"}), step("right", {"IN": "X"}, {"OUT": "Z"})]
        call = InferCall(z.ensemble("e", steps, outputs=(io("Y"), io("Z"))), [("X", *ints(4))])
        assert left.taken() == [4]  # both are held at once
        assert right.taken() == [4]
        right.step()
        left.step()
        assert {name: values(tensor) for name, tensor in call.wait(LONG_S).items()} == {"Y": [4], "Z": [4]}


def test_only_what_is_wanted_runs():
    with zoo() as z:
        for name in ("a", "b", "c"):
            z.add(name, IdentityInstance())
        steps = [
            step("a", {"IN": "X"}, {"OUT": "t"}),
            step("b", {"IN": "t"}, {"OUT": "Y"}),
            step("c", {"IN": "t"}, {"OUT": "Z"}),
        ]
        model = z.ensemble("e", steps, outputs=(io("Y"), io("Z")))
        assert run(model, 1, outputs=["Z"]) == {"Z": [1]}
        assert run(model, 2, outputs=["Y"]) == {"Y": [2]}
        assert run(model, 3) == {"Y": [3], "Z": [3]}
        assert [z.models[name].snapshot()["success"] for name in "abc"] == [3, 2, 2]


def test_an_output_may_be_an_inner_tensor_too():
    with zoo() as z:
        add_one(z)
        model = z.ensemble("e", chain("inc", "X", "Y", "Z"), outputs=(io("Y"), io("Z")))
        assert run(model, 1) == {"Y": [2], "Z": [3]}
        assert run(model, 1, outputs=["Y"]) == {"Y": [2]}
        assert z.models["inc"].snapshot()["success"] == 3


def test_ensembles_of_ensembles():
    with zoo() as z:
        add_one(z)
        z.ensemble("two", chain("inc", "X", "t", "Y"))
        z.ensemble("four", chain("two", "X", "t", "Y", taken="X", given="Y"))
        model = z.ensemble("eight", chain("four", "X", "t", "Y", taken="X", given="Y"))
        assert run(model, 0) == {"Y": [8]}
        assert [z.models[name].snapshot()["success"] for name in ("inc", "two", "four", "eight")] == [8, 4, 2, 1]


def test_a_thousand_steps():
    with zoo() as z:
        z.add("id", IdentityInstance())
        model = z.ensemble("e", chain("id", "X", *(f"t{k}" for k in range(999)), "Y"))
        assert run(model, 7) == {"Y": [7]}
        assert z.models["id"].snapshot()["success"] == 1000


def test_steps_that_end_within_their_submit():
    with zoo() as z:
        z.inline("id")
        long = z.ensemble("long", chain("id", "X", *(f"t{k}" for k in range(49_999)), "Y"))
        assert run(long, 7) == {"Y": [7]}
        wide = [step("id", {"IN": "X"}, {"OUT": f"t{k}"}) for k in range(500)]
        model = z.ensemble("wide", wide, outputs=[io(f"t{k}") for k in range(500)])
        assert run(model, 8) == {f"t{k}": [8] for k in range(500)}
        inner = z.ensemble("inner", chain("id", "X", "t", "Y"), max_inflight=1)
        outer = chain("inner", "X", *(f"t{k}" for k in range(2000)), "Y", taken="X", given="Y")
        assert run(z.ensemble("outer", outer, max_inflight=1), 9) == {"Y": [9]}
        assert inner.snapshot()["success"] == 2001


def test_places_that_go_from_run_to_run_within_a_submit():
    gate = Gate()
    with zoo() as z:
        z.inline("id")
        z.add("held", gate)
        model = z.ensemble("e", [*chain("held", "X", "t"), *chain("id", "t", "u", "Y")], max_inflight=1)
        calls = [InferCall(model, [("X", *ints(k))]) for k in range(3000)]
        gate.open()
        assert [values(call.wait(LONG_S)["Y"]) for call in calls] == [[k] for k in range(3000)]


def test_a_thousand_ensembles_in_each_other():
    with zoo() as z:
        z.add("id", IdentityInstance())
        name = "id"
        for depth in range(1000):
            ends = {"IN": "X"} if depth == 0 else {"X": "X"}
            made = {"OUT": "Y"} if depth == 0 else {"Y": "Y"}
            z.ensemble(f"e{depth}", [step(name, ends, made)])
            name = f"e{depth}"
        assert run(z.models[name], 7) == {"Y": [7]}


@pytest.mark.parametrize(
    "steps, reason",
    [
        ([("m", {"IN": "t"}, {"OUT": "u"}), ("m", {"IN": "u"}, {"OUT": "t"})], "circle"),
        ([("m", {"IN": "nothing"}, {"OUT": "Y"})], "nothing makes tensor 'nothing'"),
        ([("m", {"IN": "X"}, {"OUT": "t"})], "nothing makes output 'Y'"),
        ([("m", {"IN": "X"}, {"OUT": "Y"}), ("m", {"IN": "X"}, {"OUT": "Y"})], "'Y' is made twice"),
        ([("m", {"IN": "X"}, {"OUT": "X"})], "'X' is made twice"),
        ([], "needs a step"),
    ],
)
def test_what_is_no_ensemble(steps, reason):
    model = NativeModel("e", 1, 8, (io("X"),), (io("Y"),))
    with pytest.raises(ValueError, match=reason):
        NativeEnsemble(model, [step(*one) for one in steps], lambda name, version: None)


# --- memory -----------------------------------------------------------------------------------------------------------


def test_steps_share_memory():
    first, second, third = Seen(), Seen(), Seen()
    with zoo() as z:
        z.add("id", IdentityInstance())
        for name, seen in (("first", first), ("second", second), ("third", third)):
            z.add(name, seen)
        steps = [
            step("first", {"IN": "X"}, {"OUT": "made"}),
            step("id", {"IN": "X"}, {"OUT": "same"}),
            step("second", {"IN": "same"}, {"OUT": "Y"}),  # the client's memory, through a step
            step("third", {"IN": "made"}, {"OUT": "Z"}),
            step("id", {"IN": "made"}, {"OUT": "same_made"}),
            step("third", {"IN": "same_made"}, {"OUT": "Z2"}),  # a step's memory, twice
        ]
        model = z.ensemble("e", steps, outputs=(io("Y"), io("Z"), io("Z2")))
        assert run(model, *range(100))["Y"] == list(range(100))
    assert first.addresses == second.addresses
    assert len(third.addresses) == 2
    assert third.addresses[0] == third.addresses[1]
    assert third.addresses[0] != first.addresses[0]


def test_the_answer_refers_to_what_a_step_made():
    with zoo() as z:
        z.add("id", IdentityInstance())
        model = z.ensemble("e", chain("id", "X", "t", "Y"))
        data = bytes(1 << 20)
        before = live()
        call = InferCall(model, [("X", INT32, (1, 1 << 18), data)])
        assert call.wait(LONG_S)["Y"] == (INT32, (1, 1 << 18), data)
        assert live()["blocks"] == before["blocks"] + 1  # the client's own; nothing else is held
        del call


def test_what_nobody_needs_any_more_is_let_go():
    gate = Gate()
    with zoo() as z:
        z.add("make", mapped(lambda given: {"OUT": given["IN"] * 1000}))
        z.add("last", gate)
        model = z.ensemble("e", [*chain("make", "X", "t"), *chain("make", "t", "u"), *chain("last", "u", "Y")])
        before = live()
        call = InferCall(model, [("X", *ints(1))])
        gate.taken()
        now = live()
        assert now["blocks"] - before["blocks"] == 2  # X and u; t has gone
        assert now["requests"] - before["requests"] == 3  # the client's, the last step's, and the one that made u
        gate.step()
        assert len(values(call.wait(LONG_S)["Y"])) == 1_000_000


# --- optional ---------------------------------------------------------------------------------------------------------


def test_optional_inputs_pass_through():
    def execute(given):
        return {"OUT": [*given["A"], *given.get("B", [-1])]}

    with zoo() as z:
        z.add("join", mapped(execute), inputs=(io("A"), io("B", optional=True)))
        z.add("late", mapped(execute), inputs=(io("A"), io("B", optional=True)))
        steps = [
            step("join", {"A": "X", "B": "MORE"}, {"OUT": "t"}),
            step("late", {"A": "t", "B": "MORE"}, {"OUT": "Y"}),
        ]
        model = z.ensemble("e", steps, inputs=(io("X"), io("MORE", optional=True)))
        given = [("X", *ints(1)), ("MORE", *ints(2))]
        assert values(infer(model, given)["Y"]) == [1, 2, 2]
        assert values(infer(model, given[:1])["Y"]) == [1, -1, -1]


def test_an_output_that_a_step_leaves_out_counts_as_an_input_not_given():
    with zoo() as z:
        z.add("maybe", mapped(lambda given: {"OUT": given["IN"]}), outputs=(io("OUT"), io("EXTRA")))
        z.add("join", mapped(lambda given: {"OUT": [len(given)]}), inputs=(io("A"), io("B", optional=True)))
        steps = [
            step("maybe", {"IN": "X"}, {"OUT": "t", "EXTRA": "u"}),
            step("join", {"A": "t", "B": "u"}, {"OUT": "Y"}),
        ]
        model = z.ensemble("e", steps, outputs=(io("Y"), io("u")))
        assert run(model, 1) == {"Y": [1]}


# --- the batch dimension ----------------------------------------------------------------------------------------------


def shapes(z, name, max_batch, *dims):
    """A member that echoes, and the shapes it saw."""
    seen = []

    def execute(requests):
        seen.extend(request["IN"][1] for request in requests)
        return [{"OUT": (dtype, shape, bytes(view))} for dtype, shape, view in (one["IN"] for one in requests)]

    z.add(name, execute, max_batch=max_batch, inputs=(io("IN", *dims),), outputs=(io("OUT", *dims),))
    return seen


def test_the_batch_dimension_goes_and_comes():
    with zoo() as z:
        batched, plain, again = shapes(z, "b", 8, 3), shapes(z, "p", 0, 3), shapes(z, "b2", 8, 3)
        steps = [*chain("b", "X", "t"), *chain("p", "t", "u"), *chain("b2", "u", "Y")]
        model = z.ensemble("e", steps, inputs=(io("X", 3),), outputs=(io("Y", 3),))
        assert infer(model, [("X", *ints(1, 2, 3))])["Y"] == ints(1, 2, 3)
        assert (batched, plain, again) == ([(1, 3)], [(3,)], [(1, 3)])
        with pytest.raises(InvalidArg, match=r"in ensemble 'e', .*unexpected shape for input 'IN' for model 'p'"):
            infer(model, [("X", INT32, (2, 3), bytes(24))])


def test_a_model_without_batching_takes_a_whole_batch_that_fits():
    with zoo() as z:
        plain = shapes(z, "p", 0, -1, 3)
        model = z.ensemble("e", chain("p", "X", "Y"), inputs=(io("X", 3),), outputs=(io("Y", 3),))
        assert infer(model, [("X", INT32, (2, 3), bytes(24))])["Y"][1] == (2, 3)
        assert plain == [(2, 3)]


def test_an_ensemble_without_batching_over_one_with():
    with zoo() as z:
        batched = shapes(z, "b", 8, 3)
        model = z.ensemble("e", chain("b", "X", "Y"), inputs=(io("X", 3),), outputs=(io("Y", 3),), max_batch=0)
        assert infer(model, [("X", INT32, (3,), bytes(12))])["Y"][1] == (3,)
        assert batched == [(1, 3)]


def test_strings():
    data = b"".join(struct.pack("<I", len(text)) + text for text in (b"", b"one", b"\xff" * 70000))
    with zoo() as z:
        z.add("id", IdentityInstance(), inputs=(io("IN", dtype=DataType.STRING),),
              outputs=(io("OUT", dtype=DataType.STRING),))  # fmt: skip
        model = z.ensemble("e", chain("id", "X", "t", "Y"), inputs=(io("X", dtype=DataType.STRING),),
                           outputs=(io("Y", dtype=DataType.STRING),))  # fmt: skip
        given = (DataType.STRING, (1, 3), data)
        assert infer(model, [("X", *given)]) == {"Y": given}


# --- what steps are told ----------------------------------------------------------------------------------------------


def test_members_batch_requests_of_several_runs():
    gate = Gate()
    with zoo() as z:
        z.add("gate", gate)
        model = z.ensemble("e", chain("gate", "X", "t", "Y"))
        first = InferCall(model, [("X", *ints(0))])
        gate.taken()
        calls = [InferCall(model, [("X", *ints(k))]) for k in range(1, 5)]
        gate.step()
        # The thread that ends a step begins the next before it looks for work.
        assert gate.taken() == [1, 2, 3, 4, 0]
        gate.step()
        assert gate.taken() == [1, 2, 3, 4]
        gate.step()
        assert [values(call.wait(LONG_S)["Y"]) for call in (first, *calls)] == [[k] for k in range(5)]


def test_sequence_parameters_of_the_answer():
    with zoo() as z:
        z.add("id", IdentityInstance())
        model = z.ensemble("e", chain("id", "X", "t", "Y"))
        told = []
        for options in ({}, {"correlation": 7, "flags": 1}, {"correlation": "seven", "flags": 2}):
            call = InferCall(model, [("X", *ints(1))], **options)
            call.wait(LONG_S)
            told.append(call.parameters)
    assert told == [
        {"sequence_id": 0, "sequence_start": False, "sequence_end": False},
        {"sequence_id": 7, "sequence_start": True, "sequence_end": False},
        {"sequence_id": "seven", "sequence_start": False, "sequence_end": True},
    ]


# --- counters and other threads ---------------------------------------------------------------------------------------


def test_an_ensemble_counts_its_own_requests():
    with zoo() as z:
        z.add("id", IdentityInstance())
        model = z.ensemble("e", chain("id", "X", "t", "Y"))
        for rows in (1, 2, 2):
            infer(model, [("X", INT32, (rows, 1), bytes(4 * rows))])
        taken = model.snapshot()
        assert (taken["inference_count"], taken["execution_count"], taken["success"]) == (5, 3, 3)
        assert [(size, count) for size, count, *_ in taken["batches"]] == [(1, 1), (2, 2)]
        assert sum(taken["failures"].values()) == 0
        assert taken["pending"] == 0
        inner = z.models["id"].snapshot()
        assert (inner["inference_count"], inner["success"]) == (10, 6)
        assert taken["ns"]["compute_infer"] == inner["ns"]["compute_infer"]
        assert taken["ns"]["request"] >= inner["ns"]["compute_infer"]


def test_many_threads():
    with zoo() as z:
        for name in ("a", "b", "c"):
            z.add(name, IdentityInstance(), IdentityInstance())
        steps = [
            step("a", {"IN": "X"}, {"OUT": "t"}),
            step("b", {"IN": "t"}, {"OUT": "Y"}),
            step("c", {"IN": "t"}, {"OUT": "Z"}),
        ]
        model = z.ensemble("e", steps, outputs=(io("Y"), io("Z")))
        wrong = []

        def body(seed):
            for k in range(200):
                if run(model, seed, k) != {"Y": [seed, k], "Z": [seed, k]}:
                    wrong.append((seed, k))

        threads = [threading.Thread(target=body, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert model.snapshot()["success"] == 1200
