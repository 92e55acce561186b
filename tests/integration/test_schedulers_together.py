"""Schedulers, layers and limits of one server at the same time: what each does alone it does beside the others."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np

from tests.helpers import onnx_models
from tests.helpers.h2raw import Http2
from tests.helpers.raw import ask, get, infer_json, values_of
from tests.helpers.server import LocalServer, Model, repository
from triton_fast import protos

CONTROLS = """control_input [
  { name: "START" control [ { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } ] } ]"""
RESOURCE = 'instance_group [ { kind: KIND_CPU count: 2 rate_limiter { resources [ { name: "R" count: 1 } ] } } ]'
RECURRENT = f"""backend: "onnxruntime" max_batch_size: 8
input [ {{ name: "INPUT0" data_type: TYPE_FP32 dims: [ 4 ] }} ]
output [ {{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [ 4 ] }} ]
sequence_batching {{ oldest {{ max_candidate_sequences: 16 }} {CONTROLS}
  state [
    {{ input_name: "HIDDEN_IN" output_name: "HIDDEN_OUT" data_type: TYPE_FP32 dims: [ 4 ] }},
    {{ input_name: "COUNT_IN" output_name: "COUNT_OUT" data_type: TYPE_INT64 dims: [ 1 ] }} ] }}
model_warmup [ {{ name: "once" batch_size: 2 inputs {{ key: "INPUT0" value {{
  data_type: TYPE_FP32 dims: [ 4 ] random_data: true }} }} }} ]
{RESOURCE}
"""
ENSEMBLE = """platform: "ensemble" max_batch_size: 2 response_cache { enable: true }
parameters { key: "batch_splitting" value { string_value: "true" } }
input [ { name: "INPUT0" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ -1 ] } ]
ensemble_scheduling { step [
  { model_name: "first" model_version: -1 input_map { key: "INPUT0" value: "INPUT0" }
    output_map { key: "OUTPUT0" value: "middle" } },
  { model_name: "second" model_version: -1 input_map { key: "INPUT0" value: "middle" }
    output_map { key: "OUTPUT0" value: "OUTPUT0" } } ] }
"""


def write(root: Path) -> Path:
    repository(root, Model("first", extra=RESOURCE), Model("second"))
    for name, config in (("ensemble", ENSEMBLE), ("recurrent", RECURRENT)):
        (root / name / "1").mkdir(parents=True)
        (root / name / "config.pbtxt").write_text(config)
    (root / "recurrent" / "1" / "model.onnx").write_bytes(onnx_models.recurrent())
    return root


def step(sequence: int, row: np.ndarray, start: bool, end: bool) -> bytes:
    made = protos.ModelInferRequest(model_name="recurrent")
    made.inputs.add(name="INPUT0", datatype="FP32", shape=[1, 4])
    made.raw_input_contents.append(row.astype(np.float32).tobytes())
    made.parameters["sequence_id"].int64_param = sequence
    made.parameters["sequence_start"].bool_param = start
    made.parameters["sequence_end"].bool_param = end
    return bytes(made.SerializeToString())


def offline(rows: np.ndarray) -> list[np.ndarray]:
    weights = onnx_models.recurrent_weights()
    hidden, found = np.zeros(4, np.float32), []
    for row in rows:
        hidden = np.tanh(row @ weights["W"] + hidden @ weights["U"] + weights["b"])
        found.append(hidden)
    return found


def run_sequence(server: LocalServer, sequence: int, errors: list[BaseException]) -> None:
    rows = np.random.default_rng(sequence).standard_normal((6, 4)).astype(np.float32)
    try:
        with Http2(server.grpc) as client:
            for k, (row, expected) in enumerate(zip(rows, offline(rows), strict=True)):
                answer = client.ask(step(sequence, row, k == 0, k == len(rows) - 1))
                np.testing.assert_allclose(answer.values(), expected, atol=1e-5)
    except BaseException as error:
        errors.append(error)


def test_all_at_once(tmp_path: Path) -> None:
    """Sequences and an ensemble share a resource; the ensemble has a cache, and what it misses is split."""
    flags = ("--rate-limit=execution_count", "--rate-limit-resource=R:1", "--cache-config=local,size=1048576")
    with LocalServer(write(tmp_path), *flags) as server:
        assert ask(server.http, get("/v2/health/ready")).status == 200
        errors: list[BaseException] = []
        threads = [threading.Thread(target=run_sequence, args=(server, k, errors)) for k in range(1, 9)]
        for thread in threads:
            thread.start()
        values = [float(k) for k in range(5)]
        for _ in range(3):
            answer = ask(server.http, infer_json("ensemble", values, shape=[5, 1]))
            assert values_of(answer) == values
        for thread in threads:
            thread.join()
        assert not errors, errors[0]
        ensemble, first, second, recurrent = map(server.snapshot, ("ensemble", "first", "second", "recurrent"))
        assert ensemble["cache"][0] == 2  # type: ignore[index]
        assert ensemble["success"] == 3
        for member in (first, second):
            assert (member["execution_count"], member["inference_count"]) == (3, 5)
        # Two rows of warm-up for each instance, then six steps of eight sequences.
        assert recurrent["inference_count"] == 4 + 48
