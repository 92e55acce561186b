"""Models whose traces are looked at: every datatype, an ensemble, BLS, sequences, decoupled, one that waits."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

IDENTITY = '''
import json
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.pairs = [(one["name"], other["name"]) for one, other in zip(config["input"], config["output"])]

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        if request.request_id() == "fail":
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("told to fail"))
        given = [(name, pb_utils.get_input_tensor_by_name(request, given)) for given, name in self.pairs]
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, one.as_numpy()) for name, one in given if one])
'''
BLS = '''
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        array = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
        told = {} if request.request_id() == "apart" else {"trace": request.trace()}
        for model, given, made in (("plain", "IN", "OUT"), ("ens", "X", "Y")):
            response = pb_utils.InferenceRequest(
                model_name=model, requested_output_names=[made], inputs=[pb_utils.Tensor(given, array)], **told
            ).exec()
            assert not response.has_error(), response.error().message()
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUT", array)])
'''
REPEAT = '''
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            array = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
            for n in range(3):
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", array + n)]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
'''
# Waits until a file is there, so that a test decides when its requests end.
WAIT = IDENTITY.replace(
    "        return [self", "        import os, time\n        while not os.path.exists(os.environ['TRACE_GATE']):\n"
    "            time.sleep(0.005)\n        return [self", 1,
)  # fmt: skip
ENSEMBLE = '''platform: "ensemble"
max_batch_size: 8
input [{ name: "X" data_type: TYPE_FP32 dims: [-1] }]
output [{ name: "Y" data_type: TYPE_FP32 dims: [-1] }]
ensemble_scheduling { step [
  { model_name: "plain" model_version: -1 input_map { key: "IN" value: "X" } output_map { key: "OUT" value: "t" } },
  { model_name: "plain" model_version: -1 input_map { key: "IN" value: "t" } output_map { key: "OUT" value: "Y" } }
] }
'''
START = "control [{ kind: CONTROL_SEQUENCE_START fp32_false_true: [0, 1] }]"
# As JSON and, for those that have none there, as bytes.
VALUES: dict[str, Any] = {
    "BOOL": [True, False], "UINT8": [1, 100], "UINT16": [1, 65535], "UINT32": [1, 4294967295],
    "UINT64": [1, 18446744073709551615], "INT8": [1, -100], "INT16": [1, -32768], "INT32": [1, -2147483648],
    "INT64": [1, -9223372036854775808], "FP32": [1.5, 1e30, 0.1, 16777217.0, 1234567.8], "FP64": [1.5, 1e300, 0.1],
    "BYTES": ["plain", "", "two words"], "FP16": struct.pack("<2e", 1.5, -2.0),
}  # fmt: skip


def _config(datatype: str = "FP32", batch: int = 8, more: str = "") -> str:
    kind = "STRING" if datatype == "BYTES" else datatype
    return (
        f'backend: "python"\nmax_batch_size: {batch}\ninput [{{ name: "IN" data_type: TYPE_{kind} dims: [-1] }}]\n'
        f'output [{{ name: "OUT" data_type: TYPE_{kind} dims: [-1] }}]\n{more}\n'
    )


def write(root: Path, *, only: Sequence[str] = ()) -> Path:
    """Write the models, or those named ``only``, and return ``root``."""
    models = {
        "plain": (IDENTITY, _config()),
        "ens": ("", ENSEMBLE),
        "bls": (BLS, _config()),
        "seq": (IDENTITY, _config(more=f'sequence_batching {{ control_input [{{ name: "START" {START} }}] }}')),
        "repeat": (REPEAT, _config("INT32", 0, "model_transaction_policy { decoupled: true }")),
        "wait": (WAIT, _config(batch=1)),
        "cached": (IDENTITY, _config(more="response_cache { enable: true }")),
        **{f"type_{name.lower()}": (IDENTITY, _config(name, 0)) for name in VALUES},
    }
    for name, (code, config) in models.items():
        if only and name not in only:
            continue
        (root / name / "1").mkdir(parents=True)
        (root / name / "config.pbtxt").write_text(config)
        if code:
            (root / name / "1" / "model.py").write_text(code)
    return root


def request(model: str, name: str = "IN", datatype: str = "FP32", values: Any = (1.0, 2.0), **more: Any) -> bytes:
    """Return the body of an infer request; with ``values`` as bytes, its JSON alone."""
    flat = model.startswith("type_") or model == "repeat"
    n = len(values) // 2 if isinstance(values, bytes) else len(values)
    tensor: dict[str, Any] = {"name": name, "datatype": datatype, "shape": [n] if flat else [1, n]}
    if isinstance(values, bytes):
        tensor["parameters"] = {"binary_data_size": len(values)}
        more["outputs"] = [{"name": "OUT", "parameters": {"binary_data": True}}]
    else:
        tensor["data"] = list(values)
    return json.dumps({**more, "inputs": [tensor]}).encode()
