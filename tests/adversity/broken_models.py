"""Good models of each backend, what can happen to their files, and models that fail while they run.

Knows files and configs; knows no server.
"""

from __future__ import annotations

import importlib.util
import io
import random
import re
import shutil
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from tests.helpers import onnx_models

TORCH = importlib.util.find_spec("torch") is not None
OPENVINO = importlib.util.find_spec("openvino") is not None
TREELITE = importlib.util.find_spec("treelite") is not None
NO_TORCH = "" if TORCH else "PyTorch is not installed: pip install 'triton_fast[pytorch]'"
NO_OPENVINO = "" if OPENVINO else "openvino is missing: pip install 'triton_fast[openvino]'"
NO_TREELITE = "" if TREELITE else "needs treelite: pip install 'triton_fast[fil]'"
PYTHON = """import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        found = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            found.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", {compute})]))
        return found
"""
Files = dict[str, bytes]


@dataclass(frozen=True)
class Kind:
    """``files``: of a good model y = x + x, the first is the one to be harmed.

    ``cuts``: parts of it that are no model: treelite's checkpoints end with statistics that it can do without, and a
    script that lacks its end may still be one. ``cause``: what an error of a harmed file must hold, one of them.
    ``claims``: the file with a huge size in it.
    """

    backend: str
    files: Callable[[], Files]
    cause: str
    claims: Callable[[bytes], bytes] | None
    missing: str = ""
    names: tuple[str, str] = ("x", "y")
    width: tuple[int, int] = (4, 4)
    more: str = ""
    cuts: tuple[float, ...] = (0.001, 0.1, 0.5, 0.9, 0.99)
    # Wrong config -> what the error must hold.
    configs: Mapping[str, tuple[str, str, str]] = field(default_factory=dict)

    def config(self) -> str:
        (x, y), (a, b) = self.names, self.width
        return (
            f'backend: "{self.backend}"\nmax_batch_size: 4\n{self.more}'
            f'input [{{ name: "{x}" data_type: TYPE_FP32 dims: [{a}] }}]\n'
            f'output [{{ name: "{y}" data_type: TYPE_FP32 dims: [{b}] }}]\n'
            "instance_group [{ count: 1 kind: KIND_CPU }]\n"
        )


# ---- good files


@cache
def onnx_files() -> Files:
    row: tuple[int | str, ...] = ("n", 4)
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4], [0.0] * 4)
    nodes = [helper.make_node("Add", ["x", "x"], ["z"]), helper.make_node("Add", ["z", "w"], ["y"])]
    info = onnx_models._info
    made = onnx_models._model(nodes, [info("x", "FP32", row)], [info("y", "FP32", row)], [weight])
    return {"model.onnx": made.SerializeToString()}


@cache
def openvino_files() -> Files:
    import tempfile

    from tests.helpers import openvino_models as models

    x = models.ops.parameter([-1, 4], np.float32)
    twice = models.ops.add(models.ops.add(x, x), models.ops.constant(np.zeros((1, 4), np.float32)))
    with tempfile.TemporaryDirectory() as folder:
        models.ov.save_model(models.model({"x": x}, {"y": twice}), Path(folder) / "model.xml", compress_to_fp16=False)
        return {name: (Path(folder) / name).read_bytes() for name in ("model.xml", "model.bin")}


@cache
def forest_files() -> Files:
    import treelite
    from sklearn import datasets, ensemble

    model = ensemble.RandomForestClassifier(n_estimators=3, random_state=1).fit(*datasets.load_iris(return_X_y=True))
    return {"checkpoint.tl": bytes(treelite.sklearn.import_model(model).serialize_bytes())}


@cache
def script_files() -> Files:
    import torch

    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("w", torch.zeros(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + x + self.w

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = io.BytesIO()
        torch.jit.save(torch.jit.script(Twice().eval()), file)
        return {"model.pt": file.getvalue()}


@cache
def exported_files() -> Files:
    import torch

    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("w", torch.zeros(4))

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"y": x + x + self.w}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = ({0: torch.export.Dim("rows", min=1, max=8)},)
        program = torch.export.export(Twice().eval(), (torch.ones(2, 4),), dynamic_shapes=rows)
        file = io.BytesIO()
        torch.export.save(program, file)
        return {"model.pt2": file.getvalue()}


@cache
def python_files() -> Files:
    return {"model.py": PYTHON.format(compute="x + x").encode()}


# ---- claims


def onnx_claim(good: bytes) -> bytes:
    """The graph says that it is 4 GiB long."""
    return b"\x3a\xff\xff\xff\xff\x0f" + good


def openvino_claim(good: bytes) -> bytes:
    """The weights are said to be 2^62 bytes."""
    made, count = re.subn(rb'(offset="\d+" size=")\d+', rb"\g<1>4611686018427387904", good)
    assert count
    return made


def forest_claim(good: bytes) -> bytes:
    """The number of trees, behind the version, is 2^60."""
    at = good.index((3).to_bytes(8, "little"))
    return good[:at] + (1 << 60).to_bytes(8, "little") + good[at + 8 :]


def zip_claim(good: bytes) -> bytes:
    """Every entry of the archive's directory is said to be 2 GiB."""
    made, at = bytearray(good), good.index(b"PK\x01\x02")
    while at >= 0:
        made[at + 20 : at + 28] = (0x7FFFFFF0).to_bytes(4, "little") * 2
        at = good.find(b"PK\x01\x02", at + 1)
    return bytes(made)


WRONG = {
    "datatype": ("TYPE_FP32 dims: [4] }]\noutput", "TYPE_INT32 dims: [4] }]\noutput",
                 "expects datatype TYPE_INT32 for input 'x', model provides TYPE_FP32"),
    "name": ('"x"', '"other"', "unexpected inference input 'other', allowed inputs are: x"),
    "dims": ("dims: [4] }]\noutput", "dims: [5] }]\noutput",
             "tensor 'x': the model expects 2 dimensions (shape [-1,4]) but"),
    "count": ("output [", 'input [{ name: "more" data_type: TYPE_FP32 dims: [1] }]\noutput [',
              "configuration expects 2 inputs, model provides 1"),
}  # fmt: skip
FOREST_WRONG = {
    "datatype": ("TYPE_FP32 dims: [4]", "TYPE_INT32 dims: [4]",
                 "expects datatype TYPE_INT32 for input 'input__0', model provides TYPE_FP32"),
    "name": ("input__0", "other", "unexpected inference input 'other', allowed inputs are: input__0"),
    "dims": ("dims: [4]", "dims: [5]", "the model expects 4 features but"),
    "output": ("dims: [3]", "dims: [2]", "the model makes 3 values of a row but"),
}  # fmt: skip
# TorchScript tells neither shapes nor datatypes, and names that are no arguments' count by their order.
SCRIPT_WRONG = {
    "count": (*WRONG["count"][:2], "configuration expects 2 inputs, model provides 1"),
    "text": ("TYPE_FP32 dims: [4] }]\noutput", "TYPE_STRING dims: [1] reshape { shape: [] } }]\noutput",
             "expects datatype TYPE_STRING for input 'x', model provides Tensor"),
}  # fmt: skip
EXPORTED_WRONG = {name: WRONG[name] for name in ("datatype", "dims", "count")}
ARCHIVE = (
    r"truncated or corrupt|is not a model of PyTorch|not a model of PyTorch|is empty|PytorchStreamReader|a pickle|"
    r"is an archive, but none of PyTorch|has weights|'broken/1/model.pt2?': \S"
)
KINDS: dict[str, Kind] = {
    "onnxruntime": Kind(
        "onnxruntime", onnx_files, r"Load model from broken/1/model.onnx failed|onnx runtime error|is empty|ModelProto",
        onnx_claim, configs=WRONG,
    ),
    "openvino": Kind(
        "openvino", openvino_files, r"openvino error in reading model : |is not an OpenVINO IR|is empty",
        openvino_claim, missing=NO_OPENVINO, configs=WRONG,
    ),
    "fil": Kind(
        "fil", forest_files, r"'broken/1/checkpoint.tl' is no treelite_checkpoint model that can be read: |is empty",
        forest_claim, missing=NO_TREELITE, cuts=(0.001, 0.1, 0.5, 0.9),
        names=("input__0", "output__0"), width=(4, 3), configs=FOREST_WRONG,
        more='parameters { key: "predict_proba" value { string_value: "true" } }\n',
    ),
    "torchscript": Kind("pytorch", script_files, ARCHIVE, zip_claim, missing=NO_TORCH, configs=SCRIPT_WRONG),
    "exported": Kind("pytorch", exported_files, ARCHIVE, zip_claim, missing=NO_TORCH, configs=EXPORTED_WRONG),
    "python": Kind(
        "python", python_files, r"\w+Error\b|TritonPythonModel|null bytes|source code", None,
        cuts=(0.001, 0.1, 0.5, 0.9),
    ),
}  # fmt: skip


# ---- what happens to files


def cut(good: bytes, part: float) -> bytes:
    return good[: max(1, int(len(good) * part))]


def flipped(good: bytes, seed: int) -> bytes:
    rng, made = random.Random(seed), bytearray(good)
    for _ in range(1 + seed % 3):
        made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
    return bytes(made)


def other_archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model/readme.txt", "no model")
    return file.getvalue()


def put(folder: Path, files: Files) -> None:
    """Write the files of a version, and nothing else there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def foreign(name: str) -> dict[str, bytes]:
    """What is no model of this kind: files of the other backends, and of nobody."""
    own = KINDS[name]
    found = {
        other: next(iter(kind.files().values()))
        for other, kind in KINDS.items()
        if kind.backend != own.backend and not kind.missing
    }
    return {
        **found, "text": b"This is no model.\n" * 40, "zeros": bytes(4096), "ones": b"\xff" * 4096,
        "json": b'{"learner": {}}', "archive": other_archive(), "newline": b"\n",
    }  # fmt: skip


# ---- models that fail while they run


def onnx_of(nodes: list[Any], output: str, size: int | None, *weights: Any) -> Files:
    """A model of one INT64; ``size``: elements of y."""
    info = onnx_models._info
    made = onnx_models._model(nodes, [info("x", "INT64", (1,))], [info("y", output, (size,))], weights)
    return {"model.onnx": made.SerializeToString()}


def onnx_index() -> Files:
    table = helper.make_tensor("table", TensorProto.FLOAT, [4], [0.0, 1.0, 2.0, 3.0])
    return onnx_of([helper.make_node("Gather", ["table", "x"], ["y"])], "FP32", 1, table)


def onnx_division() -> Files:
    hundred = helper.make_tensor("hundred", TensorProto.INT64, [1], [100])
    return onnx_of([helper.make_node("Div", ["hundred", "x"], ["y"])], "INT64", 1, hundred)


def onnx_shape() -> Files:
    """x ones, added to three."""
    three = helper.make_tensor("three", TensorProto.FLOAT, [3], [0.0] * 3)
    nodes = [helper.make_node("ConstantOfShape", ["x"], ["made"]), helper.make_node("Add", ["made", "three"], ["y"])]
    return onnx_of(nodes, "FP32", 3, three)


def onnx_memory() -> Files:
    """As many zeros as x says."""
    return onnx_of([helper.make_node("ConstantOfShape", ["x"], ["y"])], "FP32", None)


def openvino_of(build: Callable[[Any, Any], Any]) -> Files:
    import tempfile

    from tests.helpers import openvino_models as models

    x = models.ops.parameter([1], np.int64)
    with tempfile.TemporaryDirectory() as folder:
        made = models.model({"x": x}, {"y": build(models.ops, x)})
        models.ov.save_model(made, Path(folder) / "model.xml", compress_to_fp16=False)
        return {name: (Path(folder) / name).read_bytes() for name in ("model.xml", "model.bin")}


def openvino_memory() -> Files:
    """A square of x rows."""
    return openvino_of(lambda ops, x: ops.broadcast(ops.constant(np.float32(0)), ops.concat([x, x], 0)))


def openvino_shape() -> Files:
    """Six zeros in x rows."""

    def build(ops: Any, x: Any) -> Any:
        rest = ops.constant(np.array([-1], np.int64))
        return ops.reshape(ops.constant(np.zeros(6, np.float32)), ops.concat([x, rest], 0), False)

    return openvino_of(build)


def script_of(body: str) -> Callable[[], Files]:
    def make() -> Files:
        import torch

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # torch keeps what it has compiled by the name of its class.
            name = "Fault" + re.sub(r"\W", "", body)
            made = type(name, (torch.jit.ScriptModule,), {})()
            made.define(f"def forward(self, x: Tensor):\n  return {body}\n")
            file = io.BytesIO()
            torch.jit.save(made, file)
            return {"model.pt": file.getvalue()}

    return make


def python_of(body: str) -> Callable[[], Files]:
    return lambda: {"model.py": PYTHON.format(compute=body).encode()}


HUGE = 1 << 48  # of 4 bytes more than an address has bits for
# Name -> backend, files, datatype and dims of y, x that works, x that does not, what the error holds.
FAULTS: dict[str, tuple[str, Callable[[], Files], str, str, int, int, str]] = {
    "onnxruntime index": ("onnxruntime", onnx_index, "FP32", "1", 2, 99, "indices element out of data bounds"),
    "onnxruntime division": ("onnxruntime", onnx_division, "INT64", "1", 5, 0, "Integer division by zero"),
    "onnxruntime shape": ("onnxruntime", onnx_shape, "FP32", "3", 3, 4, "broadcast"),
    "onnxruntime memory": ("onnxruntime", onnx_memory, "FP32", "-1", 3, HUGE, "ailed to allocate memory"),
    "openvino shape": ("openvino", openvino_shape, "FP32", "-1,-1", 3, 4, "openvino error in inference : "),
    "openvino memory": ("openvino", openvino_memory, "FP32", "-1,-1", 3, 1 << 24, "openvino error in inference : "),
    "torchscript index": ("pytorch", script_of("torch.zeros(4)[x]"), "FP32", "1", 2, 99, "out of bounds"),
    "torchscript division": ("pytorch", script_of("torch.floor_divide(torch.full([1], 100), x)"), "INT64", "1", 5, 0,
                             "ZeroDivisionError"),
    "torchscript shape": ("pytorch", script_of("torch.zeros(int(x)) + torch.zeros(3)"), "FP32", "-1", 3, 4,
                          "must match the size of tensor"),
    "torchscript memory": ("pytorch", script_of("torch.zeros(int(x))"), "FP32", "-1", 3, HUGE, "allocate memory"),
    "python index": ("python", python_of("np.zeros(4, np.float32)[x]"), "FP32", "1", 2, 99, "out of bounds"),
    "python division": ("python", python_of("np.array([100 // int(x[0])])"), "INT64", "1", 5, 0,
                        "integer division or modulo by zero"),
    "python shape": ("python", python_of("np.zeros(int(x[0]), np.float32) + np.zeros(3, np.float32)"), "FP32", "-1",
                     3, 4, "could not be broadcast together"),
    "python memory": ("python", python_of("np.zeros(int(x[0]), np.float32)"), "FP32", "-1", 3, HUGE,
                      "Unable to allocate 1.00 PiB"),
}  # fmt: skip


def fault_config(name: str) -> str:
    backend, _, datatype, dims, _, _, _ = FAULTS[name]
    return (
        f'backend: "{backend}"\ninput [{{ name: "x" data_type: TYPE_INT64 dims: [1] }}]\n'
        f'output [{{ name: "y" data_type: TYPE_{datatype} dims: [{dims}] }}]\n'
        "instance_group [{ count: 1 kind: KIND_CPU }]\n"
    )


MISSING = {kind.backend: kind.missing for kind in KINDS.values()}
