"""Models that wait for each other by way of ensembles: told, with workers and in the server's process."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.helpers import raw
from tests.helpers.python_models import model_of
from tests.helpers.server import LocalServer

IN_PROCESS = 'parameters { key: "EXECUTION_MODE" value { string_value: "in_process" } }\n'
IO = """
input [{ name: "INPUT0" data_type: TYPE_INT32 dims: [ 1 ] }]
output [{ name: "OUTPUT0" data_type: TYPE_INT32 dims: [ 1 ] }]
"""
# One call deeper for each of its number, then back.
CALLS = """
class TritonPythonModel:
    def execute(self, requests):
        return [self.one(request) for request in requests]

    def one(self, request):
        tensor = pb_utils.get_input_tensor_by_name(request, "INPUT0")
        depth = int(tensor.as_numpy()[0])
        if depth > 0:
            less = pb_utils.Tensor("INPUT0", np.array([depth - 1], np.int32))
            answer = pb_utils.InferenceRequest(
                model_name="TARGET", requested_output_names=["OUTPUT0"], inputs=[less]
            ).exec()
            if answer.has_error():
                return pb_utils.InferenceResponse(error=answer.error())
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", tensor.as_numpy())])
"""
TOLD = "Deadlock: model 'a' waits for itself: {}, and no instance of 'a' is free."


# Both instances of a model in this process have begun.
BEGUN = threading.Barrier(2)
WAITS_FIRST = f"""
        if depth > 0:
            import sys
            sys.modules[{__name__!r}].BEGUN.wait(60)
"""


def add_model(root: Path, name: str, target: str, more: str = "", code: str = CALLS) -> None:
    model_of(root, name, code.replace("TARGET", target), 'backend: "python"\n' + IO + more)


def add_ensemble(root: Path, name: str, *steps: str, more: str = "") -> None:
    wires = [f"t{i}" for i in range(1, len(steps))]
    rows = zip(steps, ["INPUT0", *wires], [*wires, "OUTPUT0"], strict=True)
    text = " ".join(
        f'step {{ model_name: "{step}" model_version: -1 input_map {{ key: "INPUT0" value: "{a}" }} '
        f'output_map {{ key: "OUTPUT0" value: "{b}" }} }}' for step, a, b in rows
    )  # fmt: skip
    (root / name / "1").mkdir(parents=True)
    (root / name / "config.pbtxt").write_text(f'platform: "ensemble"\n{IO} ensemble_scheduling {{ {more} {text} }}\n')


def asked(server: LocalServer, model: str, depth: int) -> tuple[int, Sequence[int] | str]:
    tensor = {"name": "INPUT0", "datatype": "INT32", "shape": [1], "data": [depth]}
    answer = raw.ask(server.http, raw.post(raw.infer_path(model), json.dumps({"inputs": [tensor]}).encode()))
    told = json.loads(answer.body)
    return answer.status, told["outputs"][0]["data"] if answer.status == 200 else told["error"]


@pytest.mark.parametrize("mode", ["", IN_PROCESS], ids=["worker", "in_process"])
def test_a_model_whose_ensemble_leads_back_to_it(tmp_path: Path, mode: str) -> None:
    add_model(tmp_path, "a", "outer", mode)
    add_ensemble(tmp_path, "inner", "a")
    add_ensemble(tmp_path, "outer", "inner", more="max_inflight_requests: 1")
    with LocalServer(tmp_path) as server:
        assert asked(server, "a", 0) == (200, [0])
        status, text = asked(server, "a", 1)
        assert status == 500
        assert "in ensemble 'outer', in ensemble 'inner', " + TOLD.format("a -> a") in text
        # Nothing of it is left.
        assert asked(server, "outer", 0) == (200, [0])
        assert server.snapshot("a")["pending"] == 0


@pytest.mark.parametrize("mode", ["", IN_PROCESS], ids=["worker", "in_process"])
def test_a_step_whose_model_calls_the_caller(tmp_path: Path, mode: str) -> None:
    add_model(tmp_path, "a", "both", mode)
    add_model(tmp_path, "b", "a", mode)
    add_ensemble(tmp_path, "both", "b")
    with LocalServer(tmp_path) as server:
        assert asked(server, "a", 1) == (200, [1])
        status, text = asked(server, "a", 2)
        assert status == 500
        assert "in ensemble 'both', " in text
        assert TOLD.format("a -> b -> a") in text
        assert asked(server, "a", 1) == (200, [1])


def test_a_second_instance_is_enough(tmp_path: Path) -> None:
    add_model(tmp_path, "a", "outer", "instance_group [{ count: 2 kind: KIND_CPU }]")
    add_ensemble(tmp_path, "outer", "a")
    with LocalServer(tmp_path) as server:
        assert asked(server, "a", 1) == (200, [1])
        status, text = asked(server, "a", 2)
        assert (status, TOLD.format("a -> a") in text) == (500, True)


def test_a_call_that_waits_for_a_place_of_the_step(tmp_path: Path) -> None:
    """Both instances call: one's step is queued, the other's waits for the place that this one has."""
    first = "        if depth > 0:\n"
    code = CALLS.replace(first, WAITS_FIRST.lstrip("\n") + first, 1)
    add_model(tmp_path, "a", "outer", IN_PROCESS + "instance_group [{ count: 2 kind: KIND_CPU }]", code)
    add_ensemble(tmp_path, "outer", "a", more="max_inflight_requests: 1")
    with LocalServer(tmp_path) as server:
        answers: list[tuple[int, Sequence[int] | str]] = []
        threads = [threading.Thread(target=lambda: answers.append(asked(server, "a", 1))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # One is broken; with its instance the other goes on.
        (ok, text) = sorted(answers, key=lambda answer: answer[0])
        assert ok == (200, [1])
        assert TOLD.format("a -> a") in text[1]


def test_a_resource_that_the_caller_holds(tmp_path: Path) -> None:
    group = 'instance_group [{ kind: KIND_CPU rate_limiter { resources [{ name: "R" count: 1 }] } }]'
    add_model(tmp_path, "a", "outer", group)
    add_model(tmp_path, "b", "none", group)
    add_ensemble(tmp_path, "outer", "b")
    with LocalServer(tmp_path, "--rate-limit=execution_count", "--rate-limit-resource=R:1") as server:
        assert asked(server, "a", 0) == (200, [0])
        status, text = asked(server, "a", 1)
        assert status == 500
        assert (
            "in ensemble 'outer', Deadlock: model 'a' waits for 'b', which waits for the rate limiter's resource"
            in text
        )
        assert asked(server, "b", 0) == (200, [0])
