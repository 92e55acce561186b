"""The models behind tests of clients' shared memory: every kind of scheduler and backend that a tensor may go through.

Knows config.pbtxt and directory layout; knows nothing of servers or clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.helpers import onnx_models, python_models
from tests.helpers.server import Model, repository, with_repeat

ADD = """
max_batch_size: 8
input [{ name: "INPUT0" data_type: TYPE_FP32 dims: [16] }, { name: "INPUT1" data_type: TYPE_FP32 dims: [16] }]
output [{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [16] }, { name: "OUTPUT1" data_type: TYPE_FP32 dims: [16] }]
"""
CPU, GPU = "instance_group [{ count: 1 kind: KIND_CPU }]", "instance_group [{ count: 1 kind: KIND_GPU }]"
ADD_CODE = """
class TritonPythonModel:
    def execute(self, requests):
        made = []
        for request in requests:
            a, b = (pb_utils.get_input_tensor_by_name(request, n).as_numpy() for n in ("INPUT0", "INPUT1"))
            made.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", a + b),
                                                    pb_utils.Tensor("OUTPUT1", a - b)]))
        return made
"""
CHAIN = """
platform: "ensemble"
max_batch_size: 8
input [{ name: "X" data_type: TYPE_FP32 dims: [16] }, { name: "Y" data_type: TYPE_FP32 dims: [16] }]
output [{ name: "SUM" data_type: TYPE_FP32 dims: [16] }, { name: "Z" data_type: TYPE_FP32 dims: [-1] }]
ensemble_scheduling { step [
  { model_name: "fp32" model_version: -1 input_map { key: "INPUT0" value: "X" }
    output_map { key: "OUTPUT0" value: "Z" } },
  { model_name: "python_add" model_version: -1
    input_map { key: "INPUT0" value: "Z" } input_map { key: "INPUT1" value: "Y" }
    output_map { key: "OUTPUT0" value: "SUM" } }] }
"""
SPLIT = 'parameters { key: "batch_splitting" value { string_value: "true" } } dynamic_batching { }'
FLAGS = ("--allow-client-shm=true", "--cache-config=local,size=8388608")


def write(root: Path, *more: Model, onnx: Mapping[str, str]) -> Path:
    """Write the models that memory of either kind is tried with, and ``more``; ``onnx``: name -> its scheduler."""
    repository(
        root,
        Model("fp32"), Model("text", "BYTES", (2,)), Model("slow", delay_ms=1000), Model("two", "INT32", tensors=2),
        Model("cached", extra="response_cache { enable: true } dynamic_batching { }"),
        Model("split", dims=(4,), max_batch=2, extra=SPLIT),
        Model("sequence", "INT32", (1,), extra="sequence_batching { }"), *more,
    )  # fmt: skip
    with_repeat(root)
    write_python_add(root)
    for name, scheduler in onnx.items():
        (root / name / "1").mkdir(parents=True)
        (root / name / "config.pbtxt").write_text(f'backend: "onnxruntime" {scheduler}{ADD}{CPU}')
        (root / name / "1" / "model.onnx").write_bytes(onnx_models.add_sub("FP32"))
    (root / "chain" / "1").mkdir(parents=True)
    (root / "chain" / "config.pbtxt").write_text(CHAIN)
    return root


def write_python_add(root: Path) -> None:
    python_models.model_of(root, "python_add", ADD_CODE, f'backend: "python"{ADD}{CPU}')
