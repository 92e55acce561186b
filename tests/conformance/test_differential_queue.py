"""Queue policies, priorities and preferred sizes of this server and of the reference, with a model that waits.

Each case queues requests, one after the other, behind one that a file holds; what comes is each one's error, or the
number of the execution that it was part of. Needs TRITON_REFERENCE (see reference.py); this server alone must give what
is written here.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conformance import reference
from tests.helpers import raw
from tests.helpers.server import ServerProcess, until

MODEL = """
import os
import time

import numpy
import triton_python_backend_utils as utils


class TritonPythonModel:
    def initialize(self, args):
        self.number = 0
        self.gate = os.path.join(args["model_repository"], "open")

    def execute(self, requests):
        number, self.number = self.number, self.number + 1
        open(self.gate + ".wanted", "w").close()
        while not os.path.exists(self.gate):
            time.sleep(0.005)
        made = []
        for request in requests:
            rows = utils.get_input_tensor_by_name(request, "IN").as_numpy().shape[0]
            made.append(utils.InferenceResponse([utils.Tensor("OUT", numpy.full((rows, 1), number, numpy.int32))]))
        return made
"""
IO = """
input { name: "IN" data_type: TYPE_INT32 dims: 1 } output { name: "OUT" data_type: TYPE_INT32 dims: 1 }
instance_group { kind: KIND_CPU count: 1 }
"""
FULL = (503, "Exceeds maximum queue size")
EXPIRED = (503, "Request timeout expired")
Outcome = tuple[int, Any]


class Queued(NamedTuple):
    rows: int = 1
    priority: int = 0
    timeout_us: int = 0


class Case(NamedTuple):
    config: str
    requests: list[Queued]
    expected: list[Outcome]


def executed(*numbers: int) -> list[Outcome]:
    return [(200, number) for number in numbers]


def policy(text: str) -> str:
    return f"dynamic_batching {{ default_queue_policy {{ {text} }} }}"


# The reference prepares a batch while the instance is busy, except for queues with a policy.
ROOM = "max_queue_size: 100"
LONG = "default_timeout_microseconds: 100000000"
CASES = {
    "no block": Case("", [Queued()] * 3, executed(1, 2, 3)),
    "whole batches": Case(policy(ROOM), [Queued()] * 10, executed(*[1] * 4, *[2] * 4, *[3] * 2)),
    "rows": Case(policy(ROOM), [Queued(n) for n in (3, 2, 2, 4, 1)], executed(1, 2, 2, 3, 4)),
    "preferred": Case(
        f"dynamic_batching {{ preferred_batch_size: [ 3 ] default_queue_policy {{ {ROOM} }} }}",
        [Queued()] * 5,
        executed(1, 1, 1, 2, 2),
    ),
    "priorities": Case(
        "dynamic_batching { priority_levels: 3 default_priority_level: 2 }",
        [Queued(priority=p) for p in (3, 2, 0, 1, 9, 3, 1)],
        executed(2, 1, 1, 1, 2, 2, 1),
    ),
    "size": Case(policy("max_queue_size: 2"), [Queued()] * 4, [*executed(1, 1), FULL, FULL]),
    "size of each level": Case(
        "dynamic_batching { priority_levels: 2 default_priority_level: 2 default_queue_policy { max_queue_size: 1 } "
        "priority_queue_policy { key: 1 value { max_queue_size: 2 } } }",
        [Queued(priority=p) for p in (1, 2, 2, 1, 1)],
        [*executed(1, 1), FULL, *executed(1), FULL],
    ),
    "own timeouts": Case(
        policy(LONG + " allow_timeout_override: true"),
        [Queued(timeout_us=us) for us in (1, 0, 2, 200_000_000)],
        [EXPIRED, *executed(1), EXPIRED, *executed(1)],
    ),
    "own timeouts that are not allowed": Case(policy(LONG), [Queued(timeout_us=1)] * 2, executed(1, 1)),
    "own timeouts without a default": Case(
        policy("allow_timeout_override: true"), [Queued(timeout_us=1)] * 2, executed(1, 1)
    ),
    "delayed": Case(
        policy(LONG + " allow_timeout_override: true timeout_action: DELAY"),
        [Queued(2, timeout_us=us) for us in (1, 0, 1, 0, 0)],
        executed(2, 1, 3, 1, 2),
    ),
}  # fmt: skip


class Side:
    def __init__(self, root: Path, http: tuple[str, int], metrics: tuple[str, int]) -> None:
        self.root, self.http, self.metrics = root, http, metrics

    def pending(self, model: str) -> int:
        text = raw.ask(self.metrics, raw.get("/metrics")).body.decode()
        for family in text_string_to_metric_families(text):
            if family.name == "nv_inference_pending_request_count":
                return sum(int(each.value) for each in family.samples if each.labels["model"] == model)
        return 0

    def outcomes(self, name: str) -> list[Outcome]:
        model = name.replace(" ", "_")
        case = CASES[name]
        gate = self.root / model / "open"
        answers: dict[int, raw.Answer] = {}
        with contextlib.ExitStack() as stack:
            sockets = []
            waiting = 0
            for n, queued in enumerate([Queued(), *case.requests]):
                sockets.append(stack.enter_context(raw.Client(self.http)))
                sockets[n].send(infer(model, queued))
                end = case.expected[n - 1] if n else None
                if end is None:
                    assert until(gate.with_name("open.wanted").exists)
                elif end == FULL:
                    answers[n] = sockets[n].answer()
                elif end != EXPIRED:  # which may be gone already
                    waiting += 1
                    assert until(lambda least=waiting: self.pending(model) >= least)
            gate.touch()
            for n, socket in enumerate(sockets):
                if n not in answers:
                    answers[n] = socket.answer()
        assert answers.pop(0).status == 200
        return [outcome(answers[n]) for n in sorted(answers)]


def infer(model: str, queued: Queued) -> bytes:
    parameters = {"priority": queued.priority, "timeout": queued.timeout_us}
    tensor = {"name": "IN", "datatype": "INT32", "shape": [queued.rows, 1], "data": [0] * queued.rows}
    body = {"inputs": [tensor], "parameters": {key: value for key, value in parameters.items() if value}}
    return raw.post(raw.infer_path(model), json.dumps(body).encode())


def outcome(answer: raw.Answer) -> Outcome:
    if answer.status == 200:
        return 200, answer.json()["outputs"][0]["data"][0]
    # Some versions put the request's id before some texts.
    return answer.status, answer.error.removeprefix("[request id: <id_unknown>] ")


def repository(root: Path) -> Path:
    for name, case in CASES.items():
        version = root / name.replace(" ", "_") / "1"
        version.mkdir(parents=True)
        (version / "model.py").write_text(MODEL)
        text = f'backend: "python" max_batch_size: 4 {IO} {case.config}'
        (version.parent / "config.pbtxt").write_text(text)
    return root


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Side]:
    root = repository(tmp_path_factory.mktemp("ours"))
    with ServerProcess(root) as process:
        yield Side(root, process.http, process.metrics)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Side]:
    if reference.VARIABLE not in os.environ:
        pytest.skip(f"{reference.VARIABLE} is not set: the path of the reference server")
    base = tmp_path_factory.mktemp("theirs")
    root = repository(base / "models")
    with reference.Reference(root, base / "log") as process:
        yield Side(root, process.http, process.metrics)


@pytest.mark.parametrize("name", CASES)
def test_this_server(ours: Side, name: str) -> None:
    assert ours.outcomes(name) == CASES[name].expected


@pytest.mark.parametrize("name", CASES)
def test_the_reference(theirs: Side, name: str) -> None:
    assert theirs.outcomes(name) == CASES[name].expected
