"""Generate requests to Python models, for this server alone and side by side with the reference; and the models.

Knows no server; what is expected of an answer stands in test_generate.py.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers import python_models, raw
from tests.helpers.python_models import SOURCE

TYPES = (
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP32", "FP64", "FP16", "STRING",
)  # fmt: skip
SHAPES = {"2_2": "2, 2", "v_3": "-1, 3", "3_v": "3, -1", "v_v": "-1, -1", "1": "1", "v": "-1", "2_v_2": "2, -1, 2"}
SEEN = '''
import json


class TritonPythonModel:
    """What the request holds, as JSON."""

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        values = {one.name(): [list(one.shape()), [str(value) for value in one.as_numpy().ravel()]]
                  for one in request.inputs()}
        seen = [request.request_id(), json.loads(request.parameters()), request.timeout(), values]
        out = np.array([json.dumps(seen, sort_keys=True)], dtype=object)
        return pb_utils.InferenceResponse([pb_utils.Tensor("SEEN", out)])
'''
NAMES = '''
class TritonPythonModel:
    """Outputs whose names the server uses itself, in no order, of several shapes."""

    def execute(self, requests):
        texts = [pb_utils.Tensor(name, np.array([name], dtype=object)) for name in ("zz", "model_name", "id", "Aa")]
        numbers = [pb_utils.Tensor("grid", np.arange(4, dtype=np.float32).reshape(2, 2)),
                   pb_utils.Tensor("empty", np.zeros([0], np.int32))]
        return [pb_utils.InferenceResponse([*texts, *numbers]) for _ in requests]
'''
# Cases of the models "decoupled" and "errors" whose answers Triton 2.51 gives otherwise, by design (python_answers.py),
# or never.
_OTHERWISE = {"wrong_name", "extra_output", "output_twice", "returns_early", "returns_none", "none_element",
              "reschedule", "recursion", "execute", "answer", "error_is_text", "tensors_not_a_list"}  # fmt: skip
_PATH = re.compile(r"[\w/.-]*(?=\b\w+/1/model\.py)")


@dataclass(frozen=True)
class Case:
    model: str
    body: bytes
    headers: tuple[str, ...] = ()

    def requests(self) -> list[bytes]:
        """The request as generate and as generate_stream."""
        return [raw.generate(self.model, self.body, *self.headers, stream=stream) for stream in (False, True)]


def cleaned(answer: raw.Answer) -> tuple[str, str]:
    """Content type and body without what a server is free in: paths, and addresses of objects."""
    body = _PATH.sub("", answer.body.decode("utf-8", "replace"))
    return answer.headers["content-type"], re.sub(r" at 0x[0-9a-f]+", "", body)


def config(inputs: str, outputs: str, max_batch: int = 0) -> str:
    return f'backend: "python"\nmax_batch_size: {max_batch}\ninput [{inputs}]\noutput [{outputs}]\n'


def tensor(name: str, kind: str, dims: str, more: str = "") -> str:
    return f'{{ name: "{name}" data_type: TYPE_{kind} dims: [{dims}] {more} }}'


def write(root: Path) -> Path:
    python_models.write(
        root,
        only=("decoupled", "errors", "repeat", "endless", "identity", "identity_string", "identity_bool",
              "identity_fp64", "identity_uint64", "identity_fp16"),
    )  # fmt: skip
    seen = tensor("SEEN", "STRING", "1")
    optional = "optional: true"
    python_models.model_of(root, "types", SEEN, config(
        ", ".join(tensor(kind, kind, "-1", optional) for kind in TYPES), seen))  # fmt: skip
    python_models.model_of(root, "prompt", SEEN, config(
        f'{tensor("text", "STRING", "1")}, {tensor("n", "INT32", "1", optional)}', seen, 8))  # fmt: skip
    python_models.model_of(root, "keyword", SEEN, config(
        ", ".join(tensor(name, "INT32", "1", optional) for name in ("parameters", "A")), seen))  # fmt: skip
    python_models.model_of(root, "names", NAMES, config(
        tensor("x", "INT32", "1"),
        ", ".join([*(tensor(name, "STRING", "1") for name in ("zz", "model_name", "id", "Aa")),
                   tensor("grid", "FP32", "2, 2"), tensor("empty", "INT32", "-1")])))  # fmt: skip
    for name, dims in SHAPES.items():
        for batch in (0, 4):
            python_models.model_of(root, f"shape_{name}_{batch}", SEEN, config(tensor("X", "INT32", dims), seen, batch))
    return root


def _methods(model: str) -> list[str]:
    text = (SOURCE / model / "1" / "model.py").read_text()
    found = re.findall(r"^    def ([a-z]\w*)\(self, (?:sender, request|requests)\)", text, re.MULTILINE)
    return [name for name in found if name not in _OTHERWISE]


def _cases() -> dict[str, Case]:
    found = {
        f"types {body}": Case("types", body.encode())
        for body in (
            '{"INT32": 5}', '{"INT32": [1,2]}', '{"INT32": []}', '{"INT32": [[1],[2]]}', '{"INT32": [[1,2],[3,4]]}',
            '{"INT32": [[],[]]}', '{"INT32": null}', '{"INT32": 1.5}', '{"INT32": {"a": 1}}', '{"INT32": [1, "a"]}',
            '{"INT8": 300, "UINT8": [257], "UINT64": 18446744073709551615, "INT64": -9223372036854775808}',
            '{"UINT64": -1}', '{"INT64": 9223372036854775808}', '{"FP32": 1, "FP64": [1.5, -3e10, NaN, -Infinity]}',
            '{"FP32": "1"}', '{"BOOL": [true, false]}', '{"BOOL": 1}', '{"FP16": 1}', '{"FP16": []}', '{"STRING": []}',
            '{"STRING": "a"}', '{"STRING": ["a", "b\\u00e9\\n", ""]}', '{"STRING": ["a", 1]}', '{"STRING": 1}',
            '{"STRING": [["a"], ["b", "c"]]}', '{"x": null}', '{"x": [1]}', '{"x": 1, "x": 2}',
            '{"INT32": [1,2], "id": "abc", "x": 1, "y": "t", "z": true, "w": 1.5, "big": 9223372036854775808, '
            '"parameters": {"INT64": [7], "temp": 0.5}, "sequence_id": 4, "priority": 3, "timeout": 10}',
            '{"x": 1, "parameters": {"x": 2}}', '{"parameters": {"x": 2}, "x": 1}', '{"parameters": {}}',
            '{"parameters": 1}', '{"parameters": {"parameters": {}}}', '{"parameters": {"INT32": "a"}}',
            '{"parameters": {"INT32": 1, "id": "inner"}}', '{"id": 5, "INT32": "a"}', '{"id": ""}', '{"id": null}',
            '{"triton_x": 1, "binary_data_output": true, "inputs": 1}', "", "   ", "[]", "5", "{", "{}", "{} x",
            '{"z": 1e400}', '{"INT32": -0, "FP32": -0, "FP64": 1e-400}', '{"": 1, "\\u0061b": 2}', '{"INT32": 1,}',
            "\ufeff{}", "{}\0",
        )
    }  # fmt: skip
    for header in ("Content-Encoding: identity", "Content-Encoding: gzip", "Accept-Encoding: gzip",
                   "Inference-Header-Content-Length: abc", "endpoint-load-metrics-format: text"):  # fmt: skip
        found[f"types with {header}"] = Case("types", b"{}", (header,))
    found["nobody, compressed"] = Case("nobody", b"x", ("Content-Encoding: gzip",))
    for model, bodies in {
        "prompt": ({"text": "hi"}, {"text": ["hi", "ho"], "n": [1, 2]}, {"text": []}, {"text": ["a"] * 9}),
        "keyword": ({"A": 1}, {"parameters": {"A": 1}}, {"parameters": 1}),
        "names": ({"x": 1, "id": "my"}, {"x": 1}, {"x": [1, 2]}),
        "repeat": ({"IN": [1, 2, 3], "DELAY": [0, 0, 0], "WAIT": 0}, {"IN": [], "DELAY": [], "WAIT": 0},
                   {"IN": 5, "DELAY": 0, "WAIT": 0, "id": "q"}),
        "identity": ({"INPUT0": 1.5}, {"INPUT0": [0.5, 1.5]}), "identity_string": ({"INPUT0": "x\n"},),
        "identity_bool": ({"INPUT0": True},), "identity_uint64": ({"INPUT0": 2**64 - 1},),
        "identity_fp64": ({"INPUT0": [0.1, float("nan"), float("-inf"), 1e300]},),
    }.items():  # fmt: skip
        made: Any
        for made in bodies:
            found[f"{model} {json.dumps(made)}"] = Case(model, json.dumps(made).encode())
    for name in SHAPES:
        for batch in (0, 4):
            for n in (0, 1, 2, 3, 4, 6, 8, 12):
                model = f"shape_{name}_{batch}"
                found[f"{model} of {n}"] = Case(model, json.dumps({"X": list(range(n))}).encode())
    for model in ("decoupled", "errors"):
        for method in _methods(model):
            found[f"{model} {method}"] = Case(model, json.dumps({"CASE": method, "id": "i"}).encode())
    return found


CASES = _cases()
