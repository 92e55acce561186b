"""Ensembles that end early: errors at each place, full queues, members that stop, cancels, their own stop."""

from __future__ import annotations

import threading

import pytest

from tests.helpers.ensemble_models import chain, ints, io, mapped, step, values, zoo
from tests.helpers.models import INT32, LONG_S, STOPPED, Gate, counters_at_base, in_threads
from triton_fast._native.backends.identity import IdentityInstance
from triton_fast._native.sched.ensemble import NativeEnsemble
from triton_fast._native.sched.ensemble_plan import wait_unheld
from triton_fast._native.sched.inprocess import InferCall, infer
from triton_fast._native.sched.model import NativeModel
from triton_fast.errors import Cancelled, Internal, InvalidArg, NotFound, Unavailable, Unsupported
from triton_fast.types import DataType

__all__ = ["counters_at_base"]

YZ = (io("Y"), io("Z"))


def ask(model, *numbers, **options):
    return InferCall(model, [("X", *ints(*(numbers or (1,))))], **options)


def failing(error):
    def execute(requests):
        return [error for _ in requests]

    return execute


def left_and_right():
    return [step("left", {"IN": "X"}, {"OUT": "Y"}), step("right", {"IN": "X"}, {"OUT": "Z"})]


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("error", [InvalidArg("no such colour"), Unsupported("not here"), Internal("x" * 5000)])
def test_the_error_of_a_step(place, error):
    with zoo() as z:
        z.add("good", IdentityInstance())
        z.add("bad", failing(error))
        names = ["good", "good", "good"]
        names[place] = "bad"
        tensors = ["X", "t", "u", "Y"]
        model = z.ensemble("e", [chain(name, *tensors[k : k + 2])[0] for k, name in enumerate(names)])
        with pytest.raises(type(error)) as caught:
            ask(model).wait(LONG_S)
        assert str(caught.value) == f"in ensemble 'e', {error}"
        assert z.models["good"].snapshot()["success"] == place
        taken = model.snapshot()
        assert (taken["failures"]["OTHER"], taken["success"], taken["execution_count"]) == (1, 0, 0)


def test_errors_of_ensembles_in_each_other():
    with zoo() as z:
        z.add("bad", failing(InvalidArg("no")))
        z.ensemble("inner", chain("bad", "X", "Y"))
        model = z.ensemble("outer", chain("inner", "X", "Y", taken="X", given="Y"))
        with pytest.raises(InvalidArg, match=r"^in ensemble 'outer', in ensemble 'inner', no$"):
            ask(model).wait(LONG_S)
        assert z.models["inner"].snapshot()["failures"]["OTHER"] == 1


def test_a_step_that_gets_what_it_does_not_take():
    with zoo() as z:
        z.add("other", lambda requests: [{"OUT": (DataType.FP32, (1, 1), bytes(4))} for _ in requests])
        z.add("id", IdentityInstance())
        model = z.ensemble("e", [*chain("other", "X", "t"), *chain("id", "t", "Y")])
        with pytest.raises(InvalidArg) as caught:
            ask(model, id="17").wait(LONG_S)
        assert str(caught.value) == (
            "in ensemble 'e', [request id: 17] inference input 'IN' data-type is 'FP32', but model 'id' expects 'INT32'"
        )


def test_an_output_that_the_step_left_out_and_the_next_needs():
    with zoo() as z:
        z.add("less", mapped(lambda given: {}))
        z.add("id", IdentityInstance())
        model = z.ensemble("e", [*chain("less", "X", "t"), *chain("id", "t", "Y")])
        with pytest.raises(InvalidArg, match=r"in ensemble 'e', .*expected 1 inputs but got 0 inputs for model 'id'"):
            ask(model).wait(LONG_S)


def test_a_queued_step_is_taken_back_when_another_fails():
    gate, bad = Gate(), Gate(answer=failing(InvalidArg("no")))
    with zoo() as z:
        z.add("left", bad)
        z.add("right", gate)
        busy = infer_in_thread(z.models["right"])
        gate.taken()
        model = z.ensemble("e", left_and_right(), outputs=YZ)
        call = ask(model)
        bad.taken()
        assert z.models["right"].pending == 1
        bad.step()
        with pytest.raises(InvalidArg, match="in ensemble 'e', no"):
            call.wait(LONG_S)  # the gate is still shut
        assert z.models["right"].pending == 0
        gate.step()
        busy.join()
        assert gate.batches == [[0]]


def infer_in_thread(model, value=0):
    thread = threading.Thread(target=lambda: infer(model, [("IN", *ints(value))], timeout_s=LONG_S))
    thread.start()
    return thread


def test_a_running_step_is_waited_for_when_another_fails():
    gate, bad = Gate(), Gate(answer=failing(InvalidArg("no")))
    with zoo() as z:
        z.add("left", bad)
        z.add("right", gate)
        model = z.ensemble("e", left_and_right(), outputs=YZ)
        call = ask(model)
        bad.taken()
        gate.taken()
        bad.step()
        infer_after(z, bad)
        with pytest.raises(TimeoutError):
            call.wait(0)  # the right step reads the request's memory
        gate.step()
        with pytest.raises(InvalidArg, match="in ensemble 'e', no"):
            call.wait(LONG_S)


def infer_after(z, bad):
    """Return once the left model has dealt with what it had."""
    call = InferCall(z.models["left"], [("IN", *ints(9))])
    bad.taken()
    bad.step()
    with pytest.raises(InvalidArg):
        call.wait(LONG_S)


def test_the_first_error_is_the_answer():
    left, right = (Gate(answer=failing(InvalidArg(text))) for text in ("first", "second"))
    with zoo() as z:
        z.add("left", left)
        z.add("right", right)
        call = ask(z.ensemble("e", left_and_right(), outputs=YZ))
        left.taken()
        right.taken()
        left.step()
        infer_after(z, left)
        right.step()
        with pytest.raises(InvalidArg, match="in ensemble 'e', first"):
            call.wait(LONG_S)


# --- full queues ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 1])
def test_a_full_step_is_an_error_at_once(place):
    gate = Gate()
    with zoo() as z:
        z.add("full", gate, max_queue_size=1)
        z.add("id", IdentityInstance())
        holders = [infer_in_thread(z.models["full"])]
        gate.taken()
        holders.append(InferCall(z.models["full"], [("IN", *ints(2))]))
        names = ["full", "id"] if place == 0 else ["id", "full"]
        model = z.ensemble("e", [*chain(names[0], "X", "t"), *chain(names[1], "t", "Y")])
        calls = [ask(model, k) for k in range(1000)]
        for call in calls:
            with pytest.raises(Unavailable, match=r"^in ensemble 'e', Exceeds maximum queue size$"):
                call.wait(LONG_S)
        assert model.snapshot()["failures"]["OTHER"] == 1000
        assert z.models["full"].snapshot()["failures"]["REJECTED"] == 1000
        gate.open()
        holders[0].join()
        assert values(holders[1].wait(LONG_S)["OUT"]) == [2]


def test_a_full_step_takes_its_sibling_back():
    gate, other = Gate(), Gate()
    with zoo() as z:
        z.add("left", other)
        z.add("right", gate, max_queue_size=1)
        threads = [infer_in_thread(z.models["left"]), infer_in_thread(z.models["right"])]
        other.taken()
        gate.taken()
        waits = InferCall(z.models["right"], [("IN", *ints(2))])
        model = z.ensemble("e", left_and_right(), outputs=YZ)
        with pytest.raises(Unavailable, match="Exceeds maximum queue size"):
            ask(model).wait(LONG_S)
        assert z.models["left"].pending == 0
        gate.open()
        other.open()
        for thread in threads:
            thread.join()
        waits.wait(LONG_S)


# --- places (max_inflight_requests) -----------------------------------------------------------------------------------


def test_no_more_requests_of_a_step_than_allowed():
    first, second = Gate(), Gate()
    with zoo() as z:
        z.add("first", first, first, first, dynamic=False)
        z.add("second", second, second, second, dynamic=False)
        model = z.ensemble("e", [*chain("first", "X", "t"), *chain("second", "t", "Y")], max_inflight=2)
        calls = [ask(model, k) for k in range(5)]
        assert sorted(first.taken() + first.taken()) == [0, 1]
        assert first.entered.empty()
        assert z.models["first"].pending == 0  # they wait in the ensemble
        first.open()
        second.taken()
        second.taken()
        for _ in range(3):  # the first step goes on to its end, the second has its two
            first.taken()
        assert second.entered.empty()
        assert z.models["second"].pending == 0
        second.open()
        assert [values(call.wait(LONG_S)["Y"]) for call in calls] == [[k] for k in range(5)]


def test_who_waits_for_a_place_can_be_cancelled():
    gate = Gate()
    with zoo() as z:
        z.add("m", gate, gate, dynamic=False)
        model = z.ensemble("e", chain("m", "X", "Y"), max_inflight=1)
        calls = [ask(model, k) for k in range(4)]
        assert gate.taken() == [0]
        assert calls[1].cancel()
        assert calls[2].cancel()
        with pytest.raises(Cancelled):
            calls[1].wait(LONG_S)
        gate.open()
        assert values(calls[0].wait(LONG_S)["Y"]) == [0]
        assert values(calls[3].wait(LONG_S)["Y"]) == [3]
        assert gate.batches == [[0], [3]]


def test_a_place_is_free_again_after_an_error():
    with zoo() as z:
        z.add("bad", failing(InvalidArg("no")))
        model = z.ensemble("e", chain("bad", "X", "Y"), max_inflight=1)
        for call in [ask(model, k) for k in range(50)]:
            with pytest.raises(InvalidArg, match="in ensemble 'e', no"):
                call.wait(LONG_S)


# --- cancel -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 1, 2])
def test_cancel_while_a_step_is_queued(place):
    gate = Gate()
    with zoo() as z:
        z.add("id", IdentityInstance())
        z.add("held", gate)
        busy = infer_in_thread(z.models["held"])
        gate.taken()
        names = ["id"] * 3
        names[place] = "held"
        tensors = ["X", "t", "u", "Y"]
        model = z.ensemble("e", [chain(name, *tensors[k : k + 2])[0] for k, name in enumerate(names)])
        call = ask(model)
        until(lambda: z.models["held"].pending == 1)
        assert call.cancel()
        with pytest.raises(Cancelled):
            call.wait(LONG_S)
        assert z.models["held"].pending == 0
        assert model.snapshot()["failures"]["OTHER"] == 1
        gate.open()
        busy.join()
        assert gate.batches == [[0]]


def until(condition):
    """Wait for what no event tells: another thread is about to do it."""
    pause = threading.Event()
    for _ in range(60_000):
        if condition():
            return
        pause.wait(0.001)
    raise AssertionError("it did not happen")


def test_cancel_while_a_step_runs():
    gate = Gate()
    with zoo() as z:
        z.add("held", gate)
        z.add("id", IdentityInstance())
        model = z.ensemble("e", [*chain("held", "X", "t"), *chain("id", "t", "Y")])
        call = ask(model)
        gate.taken()
        assert not call.cancel()
        gate.step()
        with pytest.raises(Cancelled, match="in ensemble 'e', the request was cancelled"):
            call.wait(LONG_S)
        assert z.models["id"].snapshot()["success"] == 0


def test_cancel_of_an_ensemble_in_an_ensemble():
    gate = Gate()
    with zoo() as z:
        z.add("held", gate)
        busy = infer_in_thread(z.models["held"])
        gate.taken()
        z.ensemble("inner", chain("held", "X", "Y"))
        model = z.ensemble("outer", chain("inner", "X", "t", "Y", taken="X", given="Y"))
        call = ask(model)
        assert z.models["held"].pending == 1
        assert call.cancel()
        assert z.models["held"].pending == 0
        gate.open()
        busy.join()


def test_cancel_after_the_end():
    with zoo() as z:
        z.add("id", IdentityInstance())
        model = z.ensemble("e", chain("id", "X", "Y"))
        call = ask(model, 5)
        assert values(call.wait(LONG_S)["Y"]) == [5]
        assert not call.cancel()
        assert values(call.wait(LONG_S)["Y"]) == [5]


# --- members that change ----------------------------------------------------------------------------------------------


def test_members_are_asked_for_once():
    with zoo() as z:
        z.add("id", IdentityInstance())
        model = z.ensemble("e", chain("id", "X", "t", "Y"))
        for _ in range(5):
            ask(model).wait(LONG_S)
        assert z.asked == ["id", "id"]
        z.epoch.advance()
        ask(model).wait(LONG_S)
        assert len(z.asked) == 4


def test_a_new_version_of_a_member_is_used():
    with zoo() as z:
        old = z.add("m", mapped(lambda given: {"OUT": [1]}))
        model = z.ensemble("e", chain("m", "X", "Y"))
        assert values(ask(model).wait(LONG_S)["Y"]) == [1]
        z.add("m", mapped(lambda given: {"OUT": [2]}), inputs=(io("MORE", optional=True), io("IN")))
        assert values(ask(model).wait(LONG_S)["Y"]) == [2]
        old.stop()


def test_a_member_that_stops_between_is_looked_up_again():
    gate = Gate()
    with zoo() as z:
        z.add("held", gate)
        old = z.add("m", mapped(lambda given: {"OUT": [1]}))
        model = z.ensemble("e", [*chain("held", "X", "t"), *chain("m", "t", "u", "Y")])
        call = ask(model)
        gate.taken()
        old.stop()
        z.add("m", mapped(lambda given: {"OUT": [*given["IN"], 2]}))
        gate.step()
        assert values(call.wait(LONG_S)["Y"]) == [1, 2, 2]


def test_a_member_that_has_stopped():
    gate = Gate()
    with zoo() as z:
        z.add("held", gate)
        z.add("m", IdentityInstance())
        model = z.ensemble("e", [*chain("held", "X", "t"), *chain("m", "t", "Y")])
        call = ask(model)
        gate.taken()
        z.models["m"].stop()
        gate.step()
        with pytest.raises(Unavailable, match=f"^in ensemble 'e', {STOPPED}$"):
            call.wait(LONG_S)


def test_a_member_that_is_gone():
    with zoo() as z:
        z.add("id", IdentityInstance())
        steps = [*chain("id", "X", "Y"), *chain("nobody", "X", "Z")]
        model = z.ensemble("e", steps, outputs=YZ)
        with pytest.raises(NotFound, match="in ensemble 'e', Request for unknown model: 'nobody' is not found"):
            ask(model).wait(LONG_S)
        assert values(ask(model, 3, outputs=["Y"]).wait(LONG_S)["Y"]) == [3]  # which needs no such step


def test_a_resolver_that_breaks():
    def resolve(name, version):
        raise ValueError("it broke")

    model = NativeModel("e", 1, 8, (io("X"),), (io("Y"),))
    model.use(NativeEnsemble(model, chain("m", "X", "Y"), resolve))
    with pytest.raises(Internal, match=r"^in ensemble 'e', it broke$"):
        ask(model).wait(LONG_S)
    model.stop()


def test_members_looked_up_before_a_change_do_not_take_the_place_of_those_after_it():
    """What they name would be held until somebody asks the ensemble again."""
    changes = []

    def resolve(name, version):
        found = z.resolve(name, version)
        if changes:
            changes.pop()()
        return found

    def change():
        z.add("m", IdentityInstance())
        ensemble.renew()

    with zoo() as z:
        old = z.add("m", IdentityInstance())
        model = z.models["e"] = NativeModel("e", 1, 8, (io("X"),), (io("Y"),))
        ensemble = NativeEnsemble(model, chain("m", "X", "Y"), resolve, epoch=z.epoch)
        model.use(ensemble)
        assert values(ask(model, 3).wait(LONG_S)["Y"]) == [3]
        z.epoch.advance()
        changes.append(change)
        assert values(ask(model, 4).wait(LONG_S)["Y"]) == [4]
        thread = threading.Thread(target=wait_unheld, args=(old,), daemon=True)
        thread.start()
        thread.join(LONG_S)
        assert not thread.is_alive()
        old.stop()


# --- stopping ---------------------------------------------------------------------------------------------------------


def test_stop_waits_for_what_is_under_way():
    gate = Gate()
    with zoo() as z:
        z.add("held", gate)
        z.add("id", IdentityInstance())
        model = z.ensemble("e", [*chain("held", "X", "t"), *chain("id", "t", "Y")])
        call = ask(model, 8)
        gate.taken()
        thread = threading.Thread(target=model.stop)
        thread.start()
        until(lambda: refused(model))
        assert thread.is_alive()
        gate.step()
        thread.join()
        assert values(call.wait(LONG_S)["Y"]) == [8]


def refused(model):
    try:
        call = ask(model)
    except Unavailable as error:
        assert str(error) == STOPPED
        return True
    call.cancel()
    return False


def test_abort_ends_what_is_queued_and_lets_run_what_runs():
    held, queued = Gate(), Gate()
    with zoo() as z:
        z.add("held", held)
        z.add("queued", queued)
        z.add("id", IdentityInstance())
        busy = infer_in_thread(z.models["queued"])
        queued.taken()
        one = z.ensemble("one", [*chain("held", "X", "t"), *chain("id", "t", "Y")])
        other = z.ensemble("other", chain("queued", "X", "Y"))
        running, waiting = ask(one), ask(other)
        held.taken()
        one.abort()
        other.abort()
        with pytest.raises(Unavailable, match=f"^in ensemble 'other', {STOPPED}$"):
            waiting.wait(LONG_S)
        assert z.models["queued"].pending == 0
        held.step()
        with pytest.raises(Unavailable, match=f"^in ensemble 'one', {STOPPED}$"):
            running.wait(LONG_S)
        assert z.models["id"].snapshot()["success"] == 0
        queued.open()
        busy.join()


def test_cancels_stops_and_errors_at_once():
    """Each request is answered exactly once, whatever happens when; the counters say that nothing is left."""
    with zoo() as z:
        z.add("id", IdentityInstance(), IdentityInstance())
        z.add("odd", mapped_or_error(), mapped_or_error())
        z.ensemble("inner", chain("id", "X", "t", "Y"))
        steps = [
            step("inner", {"X": "X"}, {"Y": "t"}),
            step("odd", {"IN": "X"}, {"OUT": "u"}),
            step("id", {"IN": "t"}, {"OUT": "Y"}),
            step("id", {"IN": "u"}, {"OUT": "Z"}),
        ]
        model = z.ensemble("e", steps, outputs=YZ, max_inflight=3)
        outcomes = []

        def body(seed):
            for k in range(150):
                call = ask(model, seed * 1000 + k)
                if k % 3 == 0:
                    call.cancel()
                try:
                    outcomes.append(values(call.wait(LONG_S)["Y"]) == [seed * 1000 + k])
                except (Cancelled, InvalidArg):
                    outcomes.append(True)

        in_threads(5, body)
        assert outcomes == [True] * 750
        taken = model.snapshot()
        assert taken["success"] + taken["failures"]["OTHER"] == 750


def mapped_or_error():
    def execute(requests):
        made = []
        for request in requests:
            numbers = values(request["IN"])
            made.append(InvalidArg("odd") if numbers[0] % 5 == 1 else {"OUT": (INT32, *request["IN"][1:])})
        return made

    return execute
