"""Sequences on a real server, over HTTP and gRPC: Python models that say what they were told, ONNX models with states.

What the reference answers to the same dialogues is compared by test_differential_sequences.py.
"""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

from tests.conformance import sequence_models
from tests.conformance.sequence_models import DIALOGUES, MODELS, OWN_DIALOGUES, OWN_MODELS, Step
from tests.helpers import onnx_models, onnx_repository, raw
from tests.helpers.grpc_channel import Channel, infer_request, unpacked, value_of
from tests.helpers.server import ServerProcess

NO_START = (
    "inference request for sequence {} to model '{}' must specify the START flag on the first request of the sequence"
)
STATES = """
  state [
    { input_name: "HIDDEN_IN" output_name: "HIDDEN_OUT" data_type: TYPE_FP32 dims: [ 4 ]
      use_same_buffer_for_input_output: true },
    { input_name: "COUNT_IN" output_name: "COUNT_OUT" data_type: TYPE_INT64 dims: [ 1 ] }
  ]
  control_input [ { name: "START" control [ { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } ] } ]
"""
PYTHON_SUM = """
class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            value, before = (
                pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("INPUT0", "SUM_IN")
            )
            total = value + before
            answers.append(pb_utils.InferenceResponse(
                [pb_utils.Tensor("OUTPUT0", total), pb_utils.Tensor("SUM_OUT", total)]
            ))
        return answers
"""
SUM = """
backend: "python" max_batch_size: 4
input [ { name: "INPUT0" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ 1 ] } ]
sequence_batching { direct { }
  state [ { input_name: "SUM_IN" output_name: "SUM_OUT" data_type: TYPE_FP32 dims: [ 1 ]
            initial_state [ { name: "first" data_type: TYPE_FP32 dims: [ 1 ] data_file: "first" } ] } ] }
"""
# A step of a generation: the state counts the steps, one response each, until there are as many as the input says.
GENERATE = """
class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            wanted, before = (
                pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("INPUT0", "STEP_IN")
            )
            step = before + 1
            sender = request.get_response_sender()
            answer = pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", step), pb_utils.Tensor("STEP_OUT", step)])
            if step[0][0] < wanted[0][0]:
                sender.send(answer)
                request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
            else:
                sender.send(answer, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        return None
"""
GENERATE_CONFIG = """
backend: "python" max_batch_size: 4
input [ { name: "INPUT0" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ 1 ] } ]
model_transaction_policy { decoupled: true }
sequence_batching { oldest { max_candidate_sequences: 4 } iterative_sequence: true
  state [ { input_name: "STEP_IN" output_name: "STEP_OUT" data_type: TYPE_FP32 dims: [ 1 ] } ] }
"""
NOT_ITERATIVE = "Request is released with TRITONSERVER_REQUEST_RELEASE_RESCHEDULE, while the model is not configured"
CONTROLS = (("INT32", "UINT64"), ("FP32", "INT64"), ("BOOL", "UINT32"), ("INT32", "INT32"), ("BOOL", "STRING"))
IDS = itertools.count(1)


def onnx(root: Path, name: str, blob: bytes, config: str) -> None:
    onnx_repository.write(root, blob, f'backend: "onnxruntime"\n{config}', name=name)


def write(root: Path) -> Path:
    sequence_models.write(root, {**MODELS, **OWN_MODELS})
    for strategy in ("direct", "oldest"):
        options = "max_candidate_sequences: 16 max_queue_delay_microseconds: 2000" if strategy == "oldest" else ""
        onnx(root, f"recurrent_{strategy}", onnx_models.recurrent(), f"""
            max_batch_size: 8 instance_group [ {{ count: 2 }} ]
            input [ {{ name: "INPUT0" data_type: TYPE_FP32 dims: [ 4 ] }} ]
            output [ {{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [ 4 ] }},
                     {{ name: "COUNT_OUT" data_type: TYPE_INT64 dims: [ 1 ] }} ]
            sequence_batching {{ {strategy} {{ {options} }} {STATES} }}
        """)  # fmt: skip
    # The clients' tensors are completed from the model: states and controls are none of them.
    onnx(root, "completed", onnx_models.recurrent(), f"max_batch_size: 8 sequence_batching {{ {STATES} }}")
    for kind, corrid in CONTROLS:
        values = {"INT32": "int32_false_true: [ 5, 6 ]", "FP32": "fp32_false_true: [ 0.5, -1 ]"}.get(
            kind, "bool_false_true: [ false, true ]"
        )
        controls = ", ".join(
            f'{{ name: "{name}" control [ {{ kind: CONTROL_SEQUENCE_{name} {values} }} ] }}'
            for name in ("START", "END", "READY")
        )
        outputs = ", ".join(
            f'{{ name: "SEEN_{name}" data_type: TYPE_{of} dims: [ 1 ] }}'
            for name, of in (("START", kind), ("END", kind), ("READY", kind), ("CORRID", corrid))
        )
        onnx(root, f"controls_{kind}_{corrid}".lower(), onnx_models.controls(kind, corrid), f"""
            max_batch_size: 4
            input [ {{ name: "INPUT0" data_type: TYPE_INT32 dims: [ 1 ] }} ]
            output [ {outputs} ]
            sequence_batching {{ direct {{ }} control_input [ {controls},
              {{ name: "CORRID" control [ {{ kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_{corrid} }} ] }} ] }}
        """)  # fmt: skip
    onnx(root, "appended", onnx_models.appended(), """
        max_batch_size: 0
        input [ { name: "INPUT0" data_type: TYPE_FP32 dims: [ 1 ] } ]
        output [ { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ -1 ] } ]
        sequence_batching { oldest { max_candidate_sequences: 4 } state [
          { input_name: "LIST_IN" output_name: "LIST_OUT" data_type: TYPE_FP32 dims: [ -1 ] use_growable_memory: true
            initial_state [ { name: "start" data_type: TYPE_FP32 dims: [ 2 ] data_file: "start" } ] } ] }
    """)  # fmt: skip
    (root / "appended" / "initial_state").mkdir()
    (root / "appended" / "initial_state" / "start").write_bytes(struct.pack("<ff", -1, -2))
    python_models(root)
    return root


def python_models(root: Path) -> Path:
    for name, extra in (("python_generate", ""), ("local_generate", sequence_models.IN_PROCESS)):
        sequence_models.model_of(root, name, GENERATE, GENERATE_CONFIG + extra)
        plain = GENERATE_CONFIG.replace("iterative_sequence: true", "")
        sequence_models.model_of(root, f"{name}_not", GENERATE, plain + extra)
    for name, extra in (("python_sum", ""), ("local_sum", sequence_models.IN_PROCESS)):
        sequence_models.model_of(root, name, PYTHON_SUM, SUM + extra)
        (root / name / "initial_state").mkdir()
        (root / name / "initial_state" / "first").write_bytes(struct.pack("<f", 100))
    sequence_models.model_of(root, "local_iterative", sequence_models.CODE,
                             MODELS["iterative"].config() + sequence_models.IN_PROCESS)  # fmt: skip
    return root


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(write(tmp_path_factory.mktemp("sequences"))) as process:
        yield process


@pytest.fixture(scope="module")
def pure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Channel]:
    """A server whose workers do without compiled code."""
    root = tmp_path_factory.mktemp("pure")
    flag = "--backend-config=python,native-client=no"
    with ServerProcess(python_models(root), flag) as process, Channel(process.grpc) as made:
        yield made


@pytest.fixture(scope="module")
def channel(server: ServerProcess) -> Iterator[Channel]:
    with Channel(server.grpc) as made:
        yield made


def http(server: ServerProcess, model: str, steps: list[Step]) -> list[Any]:
    ask = partial(sequence_models.over_http, server.http)
    return sequence_models.talk(ask, partial(sequence_models.pending_of, server.metrics), model, steps)


def grpc(server: ServerProcess, channel: Channel, model: str, steps: list[Step]) -> list[Any]:
    ask = partial(sequence_models.over_grpc, channel)
    return sequence_models.talk(ask, partial(sequence_models.pending_of, server.metrics), model, steps)


# --- Python models that say what they were told ----------------------------------------------------------------------


@pytest.mark.parametrize("name", [*DIALOGUES, *OWN_DIALOGUES])
def test_http_and_grpc_agree(server: ServerProcess, channel: Channel, name: str) -> None:
    model, steps = {**DIALOGUES, **OWN_DIALOGUES}[name]
    one, other = http(server, model, list(steps)), grpc(server, channel, model, list(steps))
    assert [anonymous(model, text) for status, text in one] == [anonymous(model, text) for status, text in other]
    assert [status == 200 for status, _ in one] == [status == 0 for status, _ in other]


def anonymous(model: str, answer: Any) -> Any:
    """Without the ids that the server made up."""
    if not model.startswith("iterative") or isinstance(answer, str):
        return answer
    return [{name: value for name, value in told.items() if name not in ("id", "CORRID")} for told in answer]


def test_refusals(server: ServerProcess, channel: Channel) -> None:
    no_id = "inference request to model 'direct_int32' must specify a non-zero or non-empty correlation ID"
    rows = "inference request to model 'direct_int32' must specify batch-size 1 due to requirements of sequence batcher"
    steps = [Step(), Step(rows=2), Step(start=True), Step(77), Step("abc", end=True), Step(77, start=True, rows=2)]
    texts = [no_id, rows, no_id, NO_START.format(77, "direct_int32"), NO_START.format("abc", "direct_int32"), rows]
    assert http(server, "direct_int32", steps) == [[400, text] for text in texts]
    assert grpc(server, channel, "direct_int32", steps) == [[3, text] for text in texts]


def test_what_a_model_is_told(server: ServerProcess) -> None:
    large = 5_000_000_000
    steps = [Step(1, start=True), Step(large, start=True), Step(1, end=True), Step(large, end=True)]
    (_, [start]), (_, [other]), (_, [end]), _ = http(server, "direct_turned", steps)
    assert start == {
        "place": [0, 1], "flags": 1, "id": 1, "START": ["int32", [1, 1], [-3]], "END": ["int32", [1, 1], [7]],
        "READY": ["int32", [1, 1], [-3]], "CORRID": ["int32", [1, 1], [1]], "ready": [[-3]],
    }  # fmt: skip
    assert (other["place"], other["ready"], other["CORRID"][2]) == ([1, 2], [[7], [-3]], [705032704])
    assert (end["START"][2], end["END"][2], end["flags"]) == ([7], [-3], 2)


def test_text_ids_reach_the_model(server: ServerProcess, channel: Channel) -> None:
    steps = [Step("abc", start=True), Step(77, start=True), Step("abc", end=True), Step(77, end=True)]
    for answers in (http(server, "direct_string", steps), grpc(server, channel, "direct_string", steps)):
        assert [told["CORRID"] for _, [told] in answers] == [["object", [1, 1], [text]] for text in ("abc", "77") * 2]


def test_an_idle_sequence_and_a_timeout(server: ServerProcess) -> None:
    answers = http(server, *DIALOGUES["idle"])  # type: ignore[arg-type]
    assert [status for status, _ in answers] == [200, 200, 400]
    assert answers[2][1] == NO_START.format(1, "one_short")
    answers = http(server, *DIALOGUES["backlog timeout"])  # type: ignore[arg-type]
    assert answers[1] == [503, "timeout of the corresponding sequence has been expired"]


@pytest.mark.parametrize("model", ["iterative", "iterative_direct", "local_iterative"])
def test_a_request_is_executed_again(server: ServerProcess, model: str) -> None:
    body = json.dumps(raw.infer_object([1.0])).encode()
    answer = raw.ask(server.http, raw.post(f"/v2/models/{model}/infer", body))
    passes = json.loads(answer.json()["outputs"][0]["data"][0])
    found = [(told["START"][2], told["END"][2], told["flags"]) for told in passes]
    assert found == [([1], [0], 1), ([0], [0], 0), ([0], [0], 0)]
    assert len({told["id"] for told in passes}) == 1
    assert passes[0]["id"] > 0


# --- states ----------------------------------------------------------------------------------------------------------


def offline(values: np.ndarray) -> np.ndarray:
    """The recurrent layer over a whole sequence."""
    weights = onnx_models.recurrent_weights()
    hidden, found = np.zeros(4, np.float32), []
    for row in values:
        hidden = np.tanh(row @ weights["W"] + weights["b"] + hidden @ weights["U"])
        found.append(hidden)
    return np.stack(found)


@pytest.mark.parametrize("model", ["recurrent_direct", "recurrent_oldest", "completed"])
def test_interleaved_streams_of_a_recurrent_model(server: ServerProcess, model: str) -> None:
    """Many at a time, over gRPC streams and HTTP: each is what it would be alone."""
    rng = np.random.default_rng(3)
    data = {next(IDS): rng.standard_normal((12, 4)).astype(np.float32) for _ in range(24)}

    def run(item: tuple[int, np.ndarray]) -> np.ndarray:
        key, values = item
        if key % 2:
            return over_a_stream(server, model, key, values)
        return over_plain_http(server, model, key, values)

    with ThreadPoolExecutor(12) as pool:
        for found, values in zip(pool.map(run, data.items()), data.values(), strict=True):
            np.testing.assert_allclose(found, offline(values), rtol=1e-4, atol=1e-5)


def over_a_stream(server: ServerProcess, model: str, key: int, values: np.ndarray) -> np.ndarray:
    last = len(values) - 1
    requests = [
        infer_request(model, row, parameters={"sequence_id": key, "sequence_start": k == 0, "sequence_end": k == last})
        for k, row in enumerate(values)
    ]
    for request in requests:
        request.outputs.add(name="OUTPUT0")
    with Channel(server.grpc) as channel:
        reply = channel.stream(requests)
    assert reply.outcome == (0, "")
    assert [message.error_message for message in reply.messages] == [""] * len(values)
    return np.array([value_of(message, "OUTPUT0", "FP32") for message in reply.messages])


def over_plain_http(server: ServerProcess, model: str, key: int, values: np.ndarray) -> np.ndarray:
    found = []
    with raw.Client(server.http) as client:
        for k, row in enumerate(values):
            parameters = {"sequence_id": key, "sequence_start": k == 0, "sequence_end": k == len(values) - 1}
            wanted = {"outputs": [{"name": "OUTPUT0"}]} if k % 3 else {}
            body = json.dumps(raw.infer_object(row.tolist(), parameters=parameters, **wanted)).encode()
            answer = client.ask(raw.post(raw.infer_path(model), body))
            assert answer.status == 200, answer.error
            outputs = {one["name"]: one["data"] for one in answer.json()["outputs"]}
            # A state that is declared as an output is one; the other is nobody's business.
            assert set(outputs) == ({"OUTPUT0"} if wanted or model == "completed" else {"OUTPUT0", "COUNT_OUT"})
            if "COUNT_OUT" in outputs:
                assert outputs["COUNT_OUT"] == [k + 1]
            found.append(outputs["OUTPUT0"])
    return np.array(found)


def test_states_and_controls_are_not_listed(server: ServerProcess) -> None:
    listed = raw.ask(server.http, raw.get("/v2/models/completed")).json()
    assert [one["name"] for one in listed["inputs"]] == ["INPUT0"]
    assert [one["name"] for one in listed["outputs"]] == ["OUTPUT0"]
    body = json.dumps(raw.infer_object([0.0] * 4, parameters={"sequence_id": 1, "sequence_start": True})).encode()
    more = json.dumps(raw.infer_object([1.0] * 4)["inputs"][0] | {"name": "HIDDEN_IN"}).encode()
    body = body.replace(b'"inputs": [', b'"inputs": [' + more + b", ")
    answer = raw.ask(server.http, raw.post(raw.infer_path("completed"), body))
    assert answer.status == 400
    assert "HIDDEN_IN" in answer.error or "expected 1 inputs" in answer.error


@pytest.mark.parametrize(
    ("model", "values", "id_", "seen"),
    [
        ("controls_int32_uint64", (5, 6), (1 << 53) + 1, (1 << 53) + 1), ("controls_fp32_int64", (0.5, -1.0), 9, 9),
        ("controls_bool_uint32", (False, True), 70000, 70000), ("controls_int32_int32", (5, 6), 3, 3),
        ("controls_bool_string", (False, True), "seq", "seq"), ("controls_bool_string", (False, True), 42, "42"),
    ],
)  # fmt: skip
def test_controls_of_every_type_reach_an_onnx_model(
    server: ServerProcess, model: str, values: Any, id_: Any, seen: Any
) -> None:
    off, on = values
    found = []
    for k in range(3):
        parameters = {"sequence_id": id_, "sequence_start": k == 0, "sequence_end": k == 2}
        body = json.dumps(raw.infer_object([k], datatype="INT32", parameters=parameters)).encode()
        answer = raw.ask(server.http, raw.post(raw.infer_path(model), body))
        assert answer.status == 200, answer.error
        found.append({one["name"]: one["data"][0] for one in answer.json()["outputs"]})
    assert found == [
        {"SEEN_START": on if k == 0 else off, "SEEN_END": on if k == 2 else off, "SEEN_READY": on, "SEEN_CORRID": seen}
        for k in range(3)
    ]


def test_a_state_that_grows_from_a_file(server: ServerProcess, channel: Channel) -> None:
    expected = [-1.0, -2.0]
    for k in range(20):
        parameters = {"sequence_id": 1, "sequence_start": k == 0, "sequence_end": k == 19}
        reply = channel.infer(infer_request("appended", [float(k)], shape=[1], parameters=parameters))
        expected.append(float(k))
        assert unpacked(reply.message.raw_output_contents[0], "FP32") == expected
        assert len(reply.message.outputs) == 1


@pytest.mark.parametrize("model", ["python_generate", "local_generate"])
def test_a_generation_step_by_step(channel: Channel, pure: Channel, model: str) -> None:
    """Each step is an execution of its own, its response goes at once, and others go between."""
    for way in (channel, pure):
        with ThreadPoolExecutor(6) as pool:
            wanted = [1, 2, 50, 7, 300, 3]
            replies = pool.map(way.stream, [[infer_request(model, [float(n)])] for n in wanted])
            for n, reply in zip(wanted, replies, strict=True):
                assert reply.outcome == (0, "")
                answers = [message for message in reply.messages if message.infer_response.outputs]
                assert [value_of(message, "OUTPUT0", "FP32") for message in answers] == [[k + 1.0] for k in range(n)]


@pytest.mark.parametrize("model", ["python_generate_not", "local_generate_not"])
def test_only_iterative_models_may_come_again(channel: Channel, pure: Channel, model: str) -> None:
    for way in (channel, pure):
        request = infer_request(model, [3.0], parameters={"sequence_id": 5, "sequence_start": True})
        reply = way.stream([request])
        assert value_of(reply.messages[0], "OUTPUT0", "FP32") == [1.0]
        assert reply.messages[1].error_message.startswith(NOT_ITERATIVE)
        assert len(reply.messages) == 2


@pytest.mark.parametrize("model", ["python_sum", "local_sum"])
def test_python_models_have_states_too(channel: Channel, pure: Channel, model: str) -> None:
    for way in (channel, pure):
        sums(way, model)


def sums(channel: Channel, model: str) -> None:
    for start in range(2):
        for key in (1, 2, 3):
            for k in range(3):
                parameters = {"sequence_id": key, "sequence_start": k == 0, "sequence_end": start == 1 and k == 2}
                reply = channel.infer(infer_request(model, [float(key)], parameters=parameters))
                assert [one.name for one in reply.message.outputs] == ["OUTPUT0"]
                assert value_of(reply.message, "OUTPUT0", "FP32") == [100.0 + key * (k + 1)]


# --- tritonclient ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [tritonclient.http, tritonclient.grpc])
@pytest.mark.parametrize("id_", [1001, "text"])
def test_tritonclient(server: ServerProcess, module: Any, id_: Any) -> None:
    host, port = server.http if module is tritonclient.http else server.grpc
    values = np.random.default_rng(1).standard_normal((6, 4)).astype(np.float32)
    with module.InferenceServerClient(f"{host}:{port}") as client:
        found = []
        for k, row in enumerate(values):
            given = module.InferInput("INPUT0", [1, 4], "FP32")
            given.set_data_from_numpy(row.reshape(1, 4))
            options = {"sequence_id": id_, "sequence_start": k == 0, "sequence_end": k == 5}
            found.append(client.infer("recurrent_direct", [given], **options).as_numpy("OUTPUT0")[0])
    np.testing.assert_allclose(found, offline(values), rtol=1e-4, atol=1e-5)


def test_a_cancelled_call_ends_its_sequence(server: ServerProcess, channel: Channel) -> None:
    """Cancelled while it waits for a slot: the id is free for another start, and the slot's owner goes on."""

    def ask(id_: int, start: bool = False, end: bool = False) -> Any:
        parameters = {"sequence_id": id_, "sequence_start": start, "sequence_end": end}
        return infer_request("one", [1.0], parameters=parameters)

    assert channel.infer(ask(1, True)).status == 0
    waits = [channel.infer_later(ask(2, True)), channel.infer_later(ask(2, False))]
    while sequence_models.pending_of(server.metrics, "one") < 2:
        pass
    waits[0].cancel()
    assert waits[1].code().name == "CANCELLED"
    assert channel.infer(ask(2)).outcome == (3, NO_START.format(2, "one"))
    assert channel.infer(ask(1, False, True)).status == 0
    assert channel.infer(ask(2, True, True)).status == 0
