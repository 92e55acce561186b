"""Ensembles of real servers over HTTP and gRPC: what they answer, count and tell their steps; the same as Triton.

What needs the reference is skipped without TRITON_REFERENCE (see reference.py).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests.conformance import ensemble_models, reference
from tests.conformance.ensemble_models import BOUNDED, CASES, CHANGED, SEQUENCES, STREAMS, Case, ensemble, io, step
from tests.helpers import raw
from tests.helpers.grpc_channel import Channel, Talk, value_of
from tests.helpers.server import ServerProcess
from triton_fast import protos

STATUS = {3: 400, 12: 501}  # gRPC's of the cases


class Side(NamedTuple):
    http: tuple[str, int]
    channel: Channel


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Side]:
    root = ensemble_models.write_more(ensemble_models.write(tmp_path_factory.mktemp("ensembles") / "models"))
    ensemble(
        root, "mixed",
        [
            step("double", {"IN": "A"}, {"OUT": "twice"}),
            step("sums", {"INPUT0": "twice", "INPUT1": "B"}, {"OUTPUT0": "SUM", "OUTPUT1": "less"}),
            step("picky", {"IN": "less"}, {"OUT": "LESS"}),
        ],
        io("input", "A", dims="4"), io("input", "B", dims="4"), io("output", "SUM", dims="4"),
        io("output", "LESS", dims="4"),
    )  # fmt: skip
    with ServerProcess(root) as process, Channel(process.grpc) as channel:
        yield Side(process.http, channel)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Side]:
    if reference.VARIABLE not in os.environ:
        pytest.skip(f"{reference.VARIABLE} is not set: the path of the reference server")
    base = tmp_path_factory.mktemp("reference")
    root = ensemble_models.write(base / "models")
    with reference.Reference(root, base / "log") as server, Channel(server.grpc) as channel:
        yield Side(server.http, channel)


def over_http(side: Side, case: Case) -> tuple[int, dict[str, Any]]:
    answer = raw.ask(side.http, case.http())
    found: dict[str, Any] = answer.json()
    if "outputs" in found:
        found["outputs"] = sorted(found["outputs"], key=lambda output: str(output["name"]))
    return answer.status, found


def result(status: int, found: dict[str, Any]) -> Any:
    if status != 200:
        return status, found["error"]
    return {output["name"]: output["data"] for output in found["outputs"]}


def over_grpc(side: Side, case: Case) -> Any:
    reply = side.channel.infer(case.grpc())
    if reply.outcome[0]:
        return STATUS[reply.outcome[0]], reply.outcome[1]
    [message] = reply.messages
    return {output.name: value_of(message, output.name) for output in message.outputs}


def streamed(side: Side, case: Case) -> list[Any]:
    request = case.grpc()
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    found: list[Any] = []
    with side.channel.talk() as talk:
        talk.send(request)
        while True:
            message = talk.next()
            if message.error_message:
                return [*found, message.error_message]
            answer = message.infer_response
            if answer.outputs:
                found.append({output.name: value_of(answer, output.name) for output in answer.outputs})
            if answer.parameters["triton_final_response"].bool_param:
                return found


@pytest.mark.parametrize("name", CASES)
def test_case(ours: Side, name: str) -> None:
    case = CASES[name]
    assert result(*over_http(ours, case)) == case.expected
    assert over_grpc(ours, case) == case.expected


def test_a_bounded_stream(ours: Side) -> None:
    assert streamed(ours, BOUNDED) == BOUNDED.expected


@pytest.mark.parametrize("name", STREAMS)
def test_stream(ours: Side, name: str) -> None:
    assert streamed(ours, STREAMS[name]) == STREAMS[name].expected


def test_python_and_onnx_models_in_one_ensemble(ours: Side) -> None:
    tensors = [
        {"name": "A", "datatype": "INT32", "shape": [2, 4], "data": list(range(8))},
        {"name": "B", "datatype": "INT32", "shape": [2, 4], "data": [1] * 8},
    ]
    answer = raw.ask(ours.http, raw.post(raw.infer_path("mixed"), json.dumps({"inputs": tensors}).encode()))
    assert answer.status == 501
    # 2 * 0 - 1 is below zero, which the last step refuses.
    assert answer.json()["error"] == "in ensemble 'mixed', below zero"
    tensors[0]["data"] = [9] * 8
    answer = raw.ask(ours.http, raw.post(raw.infer_path("mixed"), json.dumps({"inputs": tensors}).encode()))
    assert result(answer.status, answer.json()) == {"SUM": [19] * 8, "LESS": [17] * 8}


def test_a_step_may_say_that_later_ones_belong_to_another_sequence(ours: Side) -> None:
    status, found = over_http(ours, CHANGED)
    assert status == 200
    assert found["parameters"] == {"sequence_id": 77, "sequence_start": True, "sequence_end": False}
    first, second = (json.loads(output["data"][0]) for output in found["outputs"])
    assert (first["sequence"], first["flags"]) == (5, 2)
    assert (second["sequence"], second["flags"]) == (77, 1)


def test_statistics(ours: Side) -> None:
    before = counted(ours, "chain"), counted(ours, "double")
    for _ in range(3):
        assert over_http(ours, CASES["batch"])[0] == 200
    after = counted(ours, "chain"), counted(ours, "double")
    assert [[b - a for a, b in zip(*pair, strict=True)] for pair in zip(before, after, strict=True)] == [
        [6, 3, 3, 0], [18, 9, 9, 0],
    ]  # fmt: skip


def counted(side: Side, name: str) -> list[int]:
    """inference_count, execution_count, success, fail."""
    row = raw.ask(side.http, raw.get(f"/v2/models/{name}/stats")).json()["model_stats"][0]
    stats = row["inference_stats"]
    return [row["inference_count"], row["execution_count"], stats["success"]["count"], stats["fail"]["count"]]


def test_cancelled_stream(ours: Side) -> None:
    """A client that goes away in the middle leaves nothing that runs: the only instance serves the next."""
    talk: Talk
    with ours.channel.talk() as talk:
        request = protos.ModelInferRequest(model_name="streams_bounded")
        ensemble_models.add_input(request, "X", [7], "INT32", [1, 1])
        talk.send(request)
        assert talk.next().infer_response.outputs
    assert streamed(ours, BOUNDED) == BOUNDED.expected


# --- against the reference --------------------------------------------------------------------------------------------


# The reference does not find what makes an output that only a step takes that nobody asked for.
@pytest.mark.parametrize("name", [name for name in CASES if name != "one_output"])
def test_same_case(ours: Side, theirs: Side, name: str) -> None:
    assert over_http(ours, CASES[name]) == over_http(theirs, CASES[name])
    assert over_grpc(ours, CASES[name]) == over_grpc(theirs, CASES[name])


@pytest.mark.parametrize("name", STREAMS)
def test_same_stream(ours: Side, theirs: Side, name: str) -> None:
    assert streamed(ours, STREAMS[name]) == streamed(theirs, STREAMS[name])


@pytest.mark.parametrize("name", SEQUENCES)
def test_steps_are_told_the_same(ours: Side, theirs: Side, name: str) -> None:
    assert over_http(ours, SEQUENCES[name]) == over_http(theirs, SEQUENCES[name])


def test_same_statistics(ours: Side, theirs: Side) -> None:
    changes = []
    # The reference counts a failed ensemble twice: itself and its step.
    for side, failed in ((ours, 1), (theirs, 2)):
        names = ("chain", "fails", "streams", "double", "stream")
        before = [counted(side, name) for name in names]
        for case in ("batch", "chain", "error"):
            over_http(side, CASES[case])
        streamed(side, STREAMS["stream"])
        after = [counted(side, name) for name in names]
        changes.append([[b - a for a, b in zip(*pair, strict=True)] for pair in zip(before, after, strict=True)])
        assert changes[-1][1].pop() == failed
    assert changes[0] == changes[1]
