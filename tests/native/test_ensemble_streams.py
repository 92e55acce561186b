"""Ensembles with decoupled steps: each response runs what depends on it once, in order, held back where asked for."""

from __future__ import annotations

from queue import SimpleQueue

import pytest

from tests.helpers.ensemble_models import chain, ints, io, mapped, step, values, zoo
from tests.helpers.models import LONG_S, Gate, counters_at_base, in_threads
from triton_fast._native.backends.identity import IdentityInstance
from triton_fast._native.backends.repeat import RepeatInstance
from triton_fast._native.sched.ensemble import NativeEnsemble
from triton_fast._native.sched.inprocess import StreamCall
from triton_fast._native.sched.model import NativeModel
from triton_fast.errors import Cancelled, InvalidArg, ServerError

__all__ = ["counters_at_base"]

AB = (io("A"), io("B"))


def count(requests):
    """The answer to [n, base] is base, base + 1, ..., n of them."""

    def responses(n, base=0):
        for k in range(n):
            yield {"OUT": ints(base + k)}

    return [responses(*values(request["IN"])) for request in requests]


def counts(*streams):
    """Steps of model ``count``: chain("count", ...) whose every step is decoupled."""
    return [step("count", {"IN": one}, {"OUT": other}, decoupled=True) for one, other in streams]


def ask(model, *numbers, **options):
    return StreamCall(model, [("X", *ints(*numbers))], **options)


def drain(call):
    """All responses: the numbers of Y, errors as texts, and at last whether the final one was empty."""
    found = []
    while True:
        try:
            taken = call.take(LONG_S)
        except ServerError as error:
            found.append(str(error))
            continue
        if taken is None:
            return found
        outputs, is_final = taken
        if outputs:
            found.append(values(outputs["Y"]))
        if is_final:
            found.append("empty end" if not outputs else "end")


def numbers_of(call):
    return [one for one in drain(call) if isinstance(one, list)]


@pytest.mark.parametrize("n", [0, 1, 2, 500])
def test_each_response_drives_the_next_step_once(n):
    with zoo() as z:
        z.add("count", count, decoupled=True)
        z.add("double", mapped(lambda given: {"OUT": [2 * value for value in given["IN"]]}))
        model = z.ensemble("e", [*counts(("X", "t")), *chain("double", "t", "u", "Y")])
        assert numbers_of(ask(model, n, 10)) == [[4 * (10 + k)] for k in range(n)]
        taken = z.models["double"].snapshot()
        assert (taken["success"], z.models["count"].snapshot()["success"]) == (2 * n, 1)
        taken = model.snapshot()
        assert (taken["success"], taken["execution_count"], taken["inference_count"]) == (1, 1, 1)


def test_the_last_answer_is_the_final_one_when_the_stream_has_ended():
    gate = Gate()
    with zoo() as z:
        z.add("count", count, decoupled=True)
        z.add("held", gate, dynamic=False)
        model = z.ensemble("e", [*counts(("X", "t")), *chain("held", "t", "Y")])
        call = ask(model, 2)
        after = ask(model, 0)  # when it is over, the first stream has ended
        assert drain(after) == ["empty end"]
        gate.open()
        assert drain(call) == [[0], [1], "end"]


def test_an_empty_end_when_the_answers_were_first():
    steps = SimpleQueue()

    def slow(requests):
        def responses():
            yield {"OUT": ints(1)}
            steps.get(timeout=LONG_S)

        return [responses() for _ in requests]

    with zoo() as z:
        z.add("slow", slow, decoupled=True)
        z.add("id", IdentityInstance())
        model = z.ensemble("e", [step("slow", {"IN": "X"}, {"OUT": "t"}, decoupled=True), *chain("id", "t", "Y")])
        call = ask(model, 1)
        outputs, is_final = call.take(LONG_S)
        assert (values(outputs["Y"]), is_final) == ([1], False)
        steps.put(None)
        assert drain(call) == ["empty end"]


def test_the_decoupled_step_is_the_last():
    with zoo() as z:
        z.add("count", count, decoupled=True)
        z.add("id", IdentityInstance())
        model = z.ensemble("e", [*chain("id", "X", "t"), *counts(("t", "Y"))])
        assert numbers_of(ask(model, 3, 5)) == [[5], [6], [7]]


def test_a_final_response_with_outputs_counts():
    def execute(requests):
        def responses():
            yield {"OUT": ints(1)}
            return {"OUT": ints(2)}

        return [responses() for _ in requests]

    with zoo() as z:
        z.add("m", execute, decoupled=True)
        z.add("id", IdentityInstance())
        model = z.ensemble("e", [step("m", {"IN": "X"}, {"OUT": "t"}, decoupled=True), *chain("id", "t", "Y")])
        assert numbers_of(ask(model, 0)) == [[1], [2]]


def test_streams_of_streams():
    with zoo() as z:
        z.add("count", count, count, decoupled=True)
        z.add("pair", mapped(lambda given: {"OUT": [2, given["IN"][0] * 10]}))
        model = z.ensemble("e", [*counts(("X", "t")), *chain("pair", "t", "u"), *counts(("u", "Y"))])
        assert sorted(numbers_of(ask(model, 3, 1))) == [[10], [11], [20], [21], [30], [31]]
        assert z.models["count"].snapshot()["success"] == 4


def test_what_came_before_the_stream_is_used_each_time():
    with zoo() as z:
        z.add("count", count, decoupled=True)
        z.add("plus", mapped(lambda given: {"OUT": [given["A"][0] + given["B"][0]]}), inputs=AB)
        z.add("last", mapped(lambda given: {"OUT": [given["IN"][-1]]}))
        steps = [
            *counts(("X", "t")),
            *chain("last", "X", "base"),
            step("plus", {"A": "t", "B": "base"}, {"OUT": "Y"}),
        ]
        assert numbers_of(ask(z.ensemble("e", steps), 3, 100)) == [[200], [201], [202]]


def test_a_step_that_comes_late_joins_the_stream():
    gate = Gate(answer=lambda requests: [{"OUT": ints(1000)} for _ in requests])
    with zoo() as z:
        z.add("count", count, decoupled=True)
        z.add("late", gate)
        z.add("plus", mapped(lambda given: {"OUT": [given["A"][0] + given["B"][0]]}), inputs=AB)
        steps = [
            *counts(("X", "t")),
            *chain("late", "X", "base"),
            step("plus", {"A": "t", "B": "base"}, {"OUT": "Y"}),
        ]
        model = z.ensemble("e", steps)
        call = ask(model, 3)
        gate.taken()
        drain_of_count(z)  # by now all of the stream is there
        assert z.models["plus"].snapshot()["success"] == 0
        gate.open()
        assert numbers_of(call) == [[1000], [1001], [1002]]


def drain_of_count(z):
    call = StreamCall(z.models["count"], [("IN", *ints(0))])
    while call.take(LONG_S) is not None:
        pass


def test_outputs_of_several_depths():
    with zoo() as z:
        z.add("count", count, decoupled=True)
        z.add("id", IdentityInstance())
        steps = [*counts(("X", "t")), *chain("id", "t", "Y"), *chain("id", "X", "Z")]
        model = z.ensemble("e", steps, outputs=(io("Y"), io("Z"), io("t")))
        call = ask(model, 2, 5)
        made = [{name: values(tensor) for name, tensor in outputs.items()} for outputs, _ in call if outputs]
        assert made == [{"Y": [5], "Z": [2, 5], "t": [5]}, {"Y": [6], "Z": [2, 5], "t": [6]}]
        call = ask(model, 2, 5, outputs=["Z"])
        assert [values(outputs["Z"]) for outputs, _ in call if outputs] == [[2, 5]]
        assert z.models["count"].snapshot()["success"] == 1  # which the second did not need


def test_answers_keep_the_order_of_the_stream():
    slow, quick = Gate(), Gate()
    with zoo() as z:
        z.add("count", count, decoupled=True)
        z.add("m", slow, quick, dynamic=False)
        model = z.ensemble("e", [*counts(("X", "t")), *chain("m", "t", "Y")])
        call = ask(model, 20)
        [held] = slow.taken()
        quick.taken()
        quick.open()
        for _ in range(18):
            quick.taken()
        slow.open()
        assert numbers_of(call) == [[k] for k in range(20)]
        assert held < 2


def test_two_streams_that_do_not_depend_on_each_other_do_not_meet():
    model = NativeModel("e", 1, 8, (io("X"),), (io("Y"),), True)
    steps = [*counts(("X", "t"), ("X", "u")), step("plus", {"A": "t", "B": "u"}, {"OUT": "Y"})]
    with pytest.raises(ValueError, match="two decoupled steps"):
        NativeEnsemble(model, steps, lambda name, version: None)


# --- errors and cancels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [False, True])
def test_an_error_ends_the_stream(last):
    def execute(requests):
        def responses():
            yield {"OUT": ints(1)}
            yield {"OUT": ints(2)}
            if last:
                raise InvalidArg("no more")
            yield InvalidArg("not this")
            yield {"OUT": ints(3)}

        return [responses() for _ in requests]

    with zoo() as z:
        z.add("m", execute, decoupled=True)
        z.add("id", IdentityInstance())
        model = z.ensemble("e", [step("m", {"IN": "X"}, {"OUT": "t"}, decoupled=True), *chain("id", "t", "Y")])
        found = drain(ask(model, 0))
        assert found[-1] == ("in ensemble 'e', no more" if last else "in ensemble 'e', not this")
        assert found[:-1] == [[1], [2]][: len(found) - 1]
        assert model.snapshot()["failures"]["OTHER"] == 1


def test_an_error_after_the_stream():
    with zoo() as z:
        z.add("count", count, decoupled=True)
        z.add("picky", lambda requests: [
            InvalidArg("three") if values(one["IN"]) == [3] else {"OUT": ints(*values(one["IN"]))} for one in requests
        ], dynamic=False)  # fmt: skip
        model = z.ensemble("e", [*counts(("X", "t")), *chain("picky", "t", "Y")])
        found = drain(ask(model, 10_000))
        assert found == [[0], [1], [2], "in ensemble 'e', three"]


def endless(requests):
    def responses():
        k = 0
        while True:
            yield {"OUT": ints(k)}
            k += 1

    return [responses() for _ in requests]


@pytest.mark.parametrize("options", [{}, {"max_inflight": 2}])
def test_cancel_of_an_endless_stream(options):
    with zoo() as z:
        z.add("endless", endless, decoupled=True)
        z.add("id", IdentityInstance())
        steps = [step("endless", {"IN": "X"}, {"OUT": "t"}, decoupled=True), *chain("id", "t", "Y")]
        model = z.ensemble("e", steps, **options)
        call = ask(model, 0, max_responses=4)
        for k in range(20):
            outputs, is_final = call.take(LONG_S)
            assert (values(outputs["Y"]), is_final) == ([k], False)
            del outputs
        call.cancel()
        with pytest.raises(Cancelled):
            while call.take(LONG_S) is not None:
                pass


# --- holding back -----------------------------------------------------------------------------------------------------


def test_a_producer_waits_for_the_client():
    sent = []

    def execute(requests):
        def responses():
            for k in range(100):
                sent.append(k)
                yield {"OUT": ints(k)}

        return [responses() for _ in requests]

    with zoo() as z:
        z.add("m", execute, decoupled=True)
        z.add("id", IdentityInstance())
        model = z.ensemble("e", [step("m", {"IN": "X"}, {"OUT": "t"}, decoupled=True), *chain("id", "t", "Y")])
        call = ask(model, 0, max_responses=3)
        for k in range(100):
            assert values(call.take(LONG_S)[0]["Y"]) == [k]
            assert len(sent) <= k + 6  # three on their way, one being made, one just taken
        assert drain(call) in (["empty end"], [])


def test_a_producer_waits_for_the_steps_behind_it():
    gate, sent = Gate(), []

    def execute(requests):
        def responses():
            for k in range(50):
                sent.append(k)
                yield {"OUT": ints(k)}

        return [responses() for _ in requests]

    with zoo() as z:
        z.add("m", execute, decoupled=True)
        z.add("held", gate, dynamic=False)
        steps = [step("m", {"IN": "X"}, {"OUT": "t"}, decoupled=True), *chain("held", "t", "Y")]
        model = z.ensemble("e", steps, max_inflight=2)
        call = ask(model, 0)
        for k in range(10):
            assert gate.taken() == [k]
            assert len(sent) <= k + 4
            gate.step()
        gate.open()
        assert numbers_of(call) == [[k] for k in range(50)]


def test_a_producer_whose_model_comes_again_is_not_held_back():
    """Its only instance would wait for itself."""
    with zoo() as z:
        z.add("count", count, decoupled=True)
        z.add("one", mapped(lambda given: {"OUT": [1, given["IN"][0]]}))
        z.ensemble("inner", counts(("X", "Y")))
        steps = [
            *counts(("X", "t")),
            *chain("one", "t", "u"),
            step("inner", {"X": "u"}, {"Y": "Y"}, decoupled=True),
        ]
        model = z.ensemble("e", steps, max_inflight=2)
        assert numbers_of(ask(model, 30, max_responses=2)) == [[k] for k in range(30)]


def test_native_streams_and_many_of_them():
    from triton_fast.types import DataType

    with zoo() as z:
        z.add("repeat", RepeatInstance(), RepeatInstance(), decoupled=True, max_batch=0,
              inputs=(io("IN"), io("DELAY", dtype=DataType.UINT32, optional=True),
                      io("WAIT", dtype=DataType.UINT32, optional=True)),
              outputs=(io("OUT"), io("IDX", dtype=DataType.UINT32)))  # fmt: skip
        z.add("id", IdentityInstance(), IdentityInstance(), max_batch=0)
        steps = [step("repeat", {"IN": "X"}, {"OUT": "t"}, decoupled=True), *chain("id", "t", "u", "Y")]
        model = z.ensemble("e", steps, max_batch=0)
        wrong = []

        def body(seed):
            for k in range(30):
                given = [seed, k, *range(20)]
                call = StreamCall(model, [("X", ints()[0], (len(given),), ints(*given)[2])], max_responses=k % 4)
                if k % 5 == 4:
                    call.take(LONG_S)
                    call.cancel()
                elif numbers_of(call) != [[one] for one in given]:
                    wrong.append((seed, k))

        in_threads(4, body)
        assert wrong == []
