"""Ensembles over Python and ONNX models, and what is asked of them: the same for this server and for the reference."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.helpers import onnx_models, python_models, raw
from tests.helpers.grpc_channel import add_input, set_parameters
from triton_fast import protos

DOUBLE = """
class TritonPythonModel:
    def execute(self, requests):
        given = [pb_utils.get_input_tensor_by_name(request, "IN").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", 2 * one)]) for one in given]
"""
STREAM = """
class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            given = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
            for k in range(int(given.flat[0])):
                if k == 7:
                    error = pb_utils.TritonError("no seven", pb_utils.TritonError.INVALID_ARG)
                    sender.send(pb_utils.InferenceResponse(error=error))
                    break
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", given * 0 + k)]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
PICKY = """
class TritonPythonModel:
    def execute(self, requests):
        made = []
        for request in requests:
            given = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
            if (given < 0).any():
                error = pb_utils.TritonError("below zero", pb_utils.TritonError.UNSUPPORTED)
                made.append(pb_utils.InferenceResponse(error=error))
            else:
                made.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", given)]))
        return made
"""
# What it is told, as JSON; and says that later steps belong to another sequence if it gets a 9.
TOLD = """
import json

class TritonPythonModel:
    def execute(self, requests):
        made = []
        for request in requests:
            given = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
            told = json.dumps({
                "id": request.request_id(), "sequence": request.correlation_id(), "flags": request.flags(),
                "timeout": request.timeout(), "parameters": json.loads(request.parameters()),
                "wanted": sorted(request.requested_output_names()),
            }, sort_keys=True)
            tensors = [
                pb_utils.Tensor("OUT", given),
                pb_utils.Tensor("TOLD", np.full(given.shape, told.encode(), dtype=object)),
            ]
            # The reference is older than parameters of responses.
            more = {"parameters": {"sequence_id": 77, "sequence_start": True}} if given.flat[0] == 9 else {}
            made.append(pb_utils.InferenceResponse(tensors, **more))
        return made
"""
MAYBE = """
class TritonPythonModel:
    def execute(self, requests):
        made = []
        for request in requests:
            given = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
            more = pb_utils.get_input_tensor_by_name(request, "MORE")
            out = given if more is None else given + more.as_numpy()
            made.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", out)]))
        return made
"""

# Asks the ensemble that its parameter names; a stream is added up.
CALLER = """
class TritonPythonModel:
    def execute(self, requests):
        made = []
        for request in requests:
            given = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
            name = "chain" if given.flat[0] < 100 else "streams"
            asked = pb_utils.InferenceRequest(
                model_name=name, requested_output_names=["Y"], inputs=[pb_utils.Tensor("X", given % 100)]
            )
            if name == "chain":
                answers = [asked.exec()]
            else:
                answers = list(asked.exec(decoupled=True))
            failed = [answer.error() for answer in answers if answer.has_error()]
            if failed:
                made.append(pb_utils.InferenceResponse(error=failed[0]))
                continue
            tensors = [pb_utils.get_output_tensor_by_name(answer, "Y") for answer in answers if answer.output_tensors()]
            total = sum((one.as_numpy() for one in tensors), given * 0)
            made.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", total)]))
        return made
"""


def io(side: str, name: str, datatype: str = "INT32", dims: str = "-1", more: str = "") -> str:
    return f'{side} {{ name: "{name}" data_type: TYPE_{datatype} dims: [{dims}] {more} }}\n'


def member(root: Path, name: str, code: str, *more: str, batch: int = 8, dims: str = "-1") -> None:
    config = f'backend: "python" max_batch_size: {batch}\ninstance_group {{ kind: KIND_CPU count: 1 }}\n'
    python_models.model_of(
        root, name, code, config + io("input", "IN", dims=dims) + io("output", "OUT", dims=dims) + "\n".join(more)
    )


def step(model: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> str:
    maps = [f'input_map {{ key: "{own}" value: "{tensor}" }}' for own, tensor in inputs.items()]
    maps += [f'output_map {{ key: "{own}" value: "{tensor}" }}' for own, tensor in outputs.items()]
    return f'step {{ model_name: "{model}" model_version: -1 {" ".join(maps)} }}\n'


def ensemble(root: Path, name: str, steps: Sequence[str], *tensors: str, batch: int = 8, more: str = "") -> None:
    (root / name / "1").mkdir(parents=True)
    ios = "".join(tensors) or io("input", "X") + io("output", "Y")
    (root / name / "config.pbtxt").write_text(
        f'platform: "ensemble" max_batch_size: {batch}\n{ios}ensemble_scheduling {{\n{"".join(steps)}{more}}}\n'
    )


def chain(*models: str) -> list[str]:
    names = ["X", *(f"t{k}" for k in range(1, len(models))), "Y"]
    return [step(model, {"IN": names[k]}, {"OUT": names[k + 1]}) for k, model in enumerate(models)]


def write(root: Path) -> Path:
    """Write all that both servers can serve."""
    member(root, "double", DOUBLE)
    member(root, "flat", DOUBLE, batch=0)
    member(root, "stream", STREAM, "model_transaction_policy { decoupled: true }")
    member(root, "picky", PICKY)
    member(root, "told", TOLD, io("output", "TOLD", "STRING"))
    member(root, "maybe", MAYBE, io("input", "MORE", more="optional: true"))
    member(root, "caller", CALLER)
    ensemble(root, "called", chain("caller", "double"))
    ensemble(root, "chain", chain("double", "double", "double"))
    ensemble(root, "inner", chain("double", "picky"))
    outer = [step("inner", {"X": "X"}, {"Y": "t"}), step("inner", {"X": "t"}, {"Y": "Y"})]
    ensemble(root, "outer", outer)
    ensemble(root, "fails", chain("double", "picky", "double"))
    ensemble(root, "streams", chain("stream", "double"))
    ensemble(root, "streams_last", chain("double", "stream"))
    diamond = [
        step("double", {"IN": "X"}, {"OUT": "left"}), step("picky", {"IN": "X"}, {"OUT": "right"}),
        step("maybe", {"IN": "left", "MORE": "right"}, {"OUT": "Y"}),
    ]  # fmt: skip
    ensemble(root, "diamond", diamond, io("input", "X"), io("output", "Y"), io("output", "left"))
    ensemble(
        root, "optional", [step("maybe", {"IN": "X", "MORE": "M"}, {"OUT": "Y"})],
        io("input", "X"), io("input", "M", more="optional: true"), io("output", "Y"),
    )  # fmt: skip
    ensemble(
        root, "sequence",
        [step("told", {"IN": "X"}, {"OUT": "t", "TOLD": "FIRST"}), step("told", {"IN": "t"}, {"TOLD": "SECOND"})],
        io("input", "X"), io("output", "FIRST", "STRING"), io("output", "SECOND", "STRING"),
    )  # fmt: skip
    return root


def write_more(root: Path) -> Path:
    """Write what the reference has not: ONNX models, and a setting that is younger than it."""
    ensemble(root, "streams_bounded", chain("stream", "double"), more="max_inflight_requests: 1\n")
    (root / "sums" / "1").mkdir(parents=True)
    (root / "sums" / "1" / "model.onnx").write_bytes(onnx_models.add_sub("INT32", ("batch", 4)))
    (root / "sums" / "config.pbtxt").write_text('backend: "onnxruntime" max_batch_size: 8\n')
    return root


@dataclass(frozen=True)
class Case:
    """One request. ``expected``: numbers of each output, or status and text; of streams, a list of the first."""

    model: str
    values: Sequence[int]
    expected: Any
    shape: Sequence[int] = ()
    more: Sequence[tuple[str, Sequence[int]]] = ()
    outputs: Sequence[str] = ()
    id: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def tensors(self) -> list[tuple[str, list[int], list[int]]]:
        shape = list(self.shape) or [1, len(self.values)]
        return [("X", shape, list(self.values)), *((name, [1, len(data)], list(data)) for name, data in self.more)]

    def http(self) -> bytes:
        body: dict[str, Any] = {
            "inputs": [
                {"name": name, "datatype": "INT32", "shape": shape, "data": data}
                for name, shape, data in self.tensors()
            ],
        }
        if self.id:
            body["id"] = self.id
        if self.parameters:
            body["parameters"] = dict(self.parameters)
        if self.outputs:
            body["outputs"] = [{"name": name} for name in self.outputs]
        return raw.post(raw.infer_path(self.model), json.dumps(body).encode())

    def grpc(self) -> Any:
        made = protos.ModelInferRequest(model_name=self.model, id=self.id)
        set_parameters(made.parameters, self.parameters)
        for name, shape, data in self.tensors():
            add_input(made, name, data, "INT32", shape)
        for name in self.outputs:
            made.outputs.add(name=name)
        return made


CASES = {
    "chain": Case("chain", [1, 2], {"Y": [8, 16]}),
    "batch": Case("chain", [1, 2, 3, 4], {"Y": [8, 16, 24, 32]}, shape=[2, 2]),
    "nested": Case("outer", [3], {"Y": [12]}),
    "diamond": Case("diamond", [5], {"Y": [15], "left": [10]}),
    "one_output": Case("diamond", [-5], {"left": [-10]}, outputs=["left"]),
    "optional": Case("optional", [5], {"Y": [7]}, more=[("M", [2])]),
    "not_given": Case("optional", [5], {"Y": [5]}),
    "called_by_a_model": Case("called", [3], {"Y": [48]}),
    "streamed_to_a_model": Case("called", [104], {"Y": [24]}),
    "error": Case("fails", [-1], (501, "in ensemble 'fails', below zero")),
    "error_of_a_branch": Case("diamond", [-1], (501, "in ensemble 'diamond', below zero")),
    "nested_error": Case("outer", [-1], (501, "in ensemble 'outer', in ensemble 'inner', below zero")),
    "too_large": Case(
        "chain", range(9), (400, "[request id: 5] inference request batch-size must be <= 8 for 'chain'"),
        shape=[9, 1], id="5",
    ),
}  # fmt: skip
STREAMS = {
    "stream": Case("streams", [3], [{"Y": [0]}, {"Y": [2]}, {"Y": [4]}]),
    "nothing": Case("streams", [0], []),
    "last": Case("streams_last", [2], [{"Y": [0]}, {"Y": [1]}, {"Y": [2]}, {"Y": [3]}]),
    "stream_error": Case(
        "streams_last",
        [4],
        [*({"Y": [k]} for k in range(7)), "in ensemble 'streams_last', no seven"],
    ),
}
BOUNDED = Case("streams_bounded", [6], [{"Y": [2 * k]} for k in range(6)])
SEQUENCES = {
    "plain": Case("sequence", [1], None, id="abc"),
    "told": Case("sequence", [1], None, parameters={"sequence_id": 5, "sequence_start": True, "mine": "x", "n": 3}),
    "text": Case("sequence", [1], None, parameters={"sequence_id": "five", "sequence_end": True, "timeout": 7_000_000}),
}
CHANGED = Case("sequence", [9], None, parameters={"sequence_id": 5, "sequence_end": True})
