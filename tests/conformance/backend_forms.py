"""One model of every datatype for each form of each backend, and the framework itself run on the same file.

A form is a backend with one kind of file. Its model has a tensor of each datatype that the backend says it has, turned
around, and doubled where every framework can add. Knows no server.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from tests.helpers import onnx_models
from tests.helpers.server import ROOT
from tests.integration.onnx_files import NUMPY
from triton_fast import backends
from triton_fast.types import DataType

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
ROWS = 4  # of a full batch
PLAIN_ROWS = 2  # of the models without a batch dimension
DOUBLED = ("INT8", "INT16", "INT32", "INT64", "UINT8", "FP16", "FP32", "FP64")
TORCH = importlib.util.find_spec("torch") is not None
TREELITE = importlib.util.find_spec("treelite") is not None
OPENVINO = importlib.util.find_spec("openvino") is not None


def numpy_of(kind: str) -> Any:
    return NUMPY["BYTES" if kind == "STRING" else kind]


def given_name(kind: str) -> str:
    return f"in_{kind.lower()}"


def made_name(kinds: list[str], kind: str) -> str:
    """As TorchScript wants the names of its outputs, which others take too."""
    return f"out_{kind.lower()}__{kinds.index(kind)}"


@dataclass(frozen=True)
class Form:
    """``write(version directory, kinds, batched)``, ``direct(version directory, inputs, batched)``.

    ``alone``: what may be missing from config.pbtxt: "nothing", "tensors" (the model tells them), "file" (no config).
    """

    name: str
    backend: str
    write: Callable[[Path, list[str], bool], object]
    direct: Callable[[Path, Arrays, bool], Arrays]
    alone: str = "file"
    missing: str = ""
    turned: bool = True
    more: str = ""
    folder: str = "{name}"

    def kinds(self) -> list[str]:
        found = backends.get(self.backend)
        assert found is not None
        return [DataType(number).name for number in sorted(found.datatypes()) if self._takes(DataType(number).name)]

    def _takes(self, kind: str) -> bool:
        # TorchScript alone has texts: List[str].
        return kind != "STRING" or self.backend != "pytorch" or self.name == "torchscript"

    def shapes(self, kind: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of one row, given and made."""
        if self.backend == "fil":
            return (4,), (3,)
        if self.backend == "pytorch" and kind == "STRING":
            return (), ()
        return (2, 3), (3, 2) if self.turned else (2, 3)

    def names(self, kind: str) -> tuple[str, str]:
        if self.backend == "fil":
            return "input__0", "output__0"
        return given_name(kind), made_name(self.kinds(), kind)

    def config(self, *, batched: bool, tensors: bool = True, scheduling: str = "") -> str:
        lines = [f'backend: "{self.backend}"', self.more, scheduling, "instance_group [{ count: 1 kind: KIND_CPU }]"]
        lines.append(f"max_batch_size: {ROWS if batched else 0}")
        for kind in self.kinds() if tensors else ():
            for side, name, row in zip(("input", "output"), self.names(kind), self.shapes(kind), strict=True):
                dims, reshape = list(row), ""
                if not batched:
                    dims = [PLAIN_ROWS, *row]
                elif not dims:
                    dims, reshape = [1], "reshape { shape: [] }"
                lines.append(f'{side} [{{ name: "{name}" data_type: TYPE_{kind} dims: {dims} {reshape} }}]')
        return "\n".join(line for line in lines if line) + "\n"

    def sample(self, rows: int, seed: int, *, batched: bool) -> Arrays:
        """Values of every datatype; no NaN, which JSON does not have."""
        found = {}
        for kind in self.kinds():
            row = self.shapes(kind)[0]
            if batched and not row:
                row = (1,)
            found[self.names(kind)[0]] = values(kind, (rows, *row), seed)
        return found


def values(kind: str, shape: tuple[int, ...], seed: int) -> Array:
    rng = np.random.default_rng(seed)
    count, dtype = int(np.prod(shape)), numpy_of(kind)
    if kind == "STRING":
        texts = ["", "a", "h\u00e9 \U0001f600", 'quo"te\\', "x" * 300, "two\nlines"]
        made = np.empty(count, object)
        made[:] = [f"{texts[(seed + at) % len(texts)]}{at % 7 or ''}".encode() for at in range(count)]
        return made.reshape(shape)
    if kind == "BOOL":
        return (rng.integers(0, 2, count) == 1).reshape(shape)
    if kind in ("FP16", "FP32", "FP64", "BF16"):
        return (rng.standard_normal(count) * 100).astype(dtype).reshape(shape)
    info = np.iinfo(dtype)
    made = rng.integers(info.min, info.max, count, dtype, endpoint=True)
    made[:2] = info.min, info.max
    return made.reshape(shape)


# ---- ONNX


def onnx_blob(kinds: list[str], batched: bool) -> bytes:
    lead: str | int = "batch" if batched else PLAIN_ROWS
    nodes, inputs, outputs = [], [], []
    for kind in kinds:
        given, made = given_name(kind), made_name(kinds, kind)
        inputs.append(onnx_models._info(given, kind, (lead, 2, 3)))
        outputs.append(onnx_models._info(made, kind, (lead, 3, 2)))
        if kind in DOUBLED:
            nodes.append(helper.make_node("Add", [given, given], [f"{given}_twice"]))
            given = f"{given}_twice"
        nodes.append(helper.make_node("Transpose", [given], [made], perm=[0, 2, 1]))
    return onnx_models._model(nodes, inputs, outputs).SerializeToString()


def write_onnx(folder: Path, kinds: list[str], batched: bool) -> None:
    (folder / "model.onnx").write_bytes(onnx_blob(kinds, batched))


def direct_onnx(folder: Path, given: Arrays, batched: bool) -> Arrays:
    """One session for each datatype: of BF16 only the bytes can be had, which texts have not."""
    del folder
    kinds = [name.removeprefix("in_").upper() for name in given]
    found = {}
    for kind, array in zip(kinds, given.values(), strict=True):
        session = onnxruntime.InferenceSession(onnx_blob([kind], batched), providers=["CPUExecutionProvider"])
        name, made = given_name(kind), made_name([kind], kind)
        if kind == "BF16":
            value = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), TensorProto.BFLOAT16)
            (out,) = session.run_with_ort_values([made], {name: value})
            size = array.nbytes
            result = np.frombuffer(ctypes.string_at(out.data_ptr(), size), ml_dtypes.bfloat16).reshape(out.shape())
        elif kind == "STRING":
            texts = np.array([text.decode() for text in array.flat], object).reshape(array.shape)
            (found_texts,) = session.run([made], {name: texts})
            result = np.empty(found_texts.size, object)
            result[:] = [text.encode() for text in found_texts.flat]
            result = result.reshape(found_texts.shape)
        else:
            (result,) = session.run([made], {name: array})
        found[made_name(kinds, kind)] = result
    return found


# ---- OpenVINO


def write_openvino(folder: Path, kinds: list[str], batched: bool) -> None:
    from tests.helpers import openvino_models as models

    inputs, outputs = {}, {}
    for kind in kinds:
        node = models.ops.parameter([-1 if batched else PLAIN_ROWS, 2, 3], models.ELEMENT[kind])
        inputs[given_name(kind)] = node
        doubled = models.ops.add(node, node) if kind in DOUBLED else node
        order = models.ops.constant(np.array([0, 2, 1], np.int64))
        outputs[made_name(kinds, kind)] = models.ops.transpose(doubled, order)
    models.ov.save_model(models.model(inputs, outputs), folder / "model.xml", compress_to_fp16=False)


def direct_openvino(folder: Path, given: Arrays, batched: bool) -> Arrays:
    from tests.helpers.openvino_models import reference

    del batched
    return reference(folder / "model.xml", given)


# ---- forests


@cache
def forest() -> Any:
    from sklearn import datasets, ensemble

    return ensemble.RandomForestClassifier(n_estimators=7, random_state=1).fit(*datasets.load_iris(return_X_y=True))


def write_forest(folder: Path, kinds: list[str], batched: bool) -> None:
    import treelite

    del kinds, batched
    treelite.sklearn.import_model(forest()).serialize(folder / "checkpoint.tl")


def direct_forest(folder: Path, given: Arrays, batched: bool) -> Arrays:
    import treelite

    del batched
    model = treelite.Model.deserialize(folder / "checkpoint.tl")
    found = treelite.gtil.predict(model, given["input__0"], nthread=1)
    # Of a model with 64-bit thresholds the Python package gives 64-bit scores, Triton's backend those of its output.
    return {"output__0": found.reshape(-1, 3).astype(np.float32)}


# ---- Python


PYTHON = """
import triton_python_backend_utils as pb_utils

ROWS, KINDS, DOUBLED = {rows}, {kinds}, {doubled}
TENSORS = {tensors}


def compute(name, array):
    return (array + array if name in DOUBLED else array).swapaxes(1, 2)


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.set_max_batch_size(ROWS)
        for given, made in TENSORS:
            config.add_input(given)
            config.add_output(made)
        if ROWS:
            config.set_dynamic_batching()
        return config

    def execute(self, requests):
        return [pb_utils.InferenceResponse([self.one(request, *names) for names in KINDS]) for request in requests]

    def one(self, request, given, made):
        tensor = pb_utils.get_input_tensor_by_name(request, given)
        if given == "in_bf16":  # numpy has no such type
            return pb_utils.Tensor.from_dlpack(made, tensor.to_dlpack())
        return pb_utils.Tensor(made, compute(given, tensor.as_numpy()))
"""


def python_source(kinds: list[str], batched: bool) -> str:
    tensors = []
    for kind in kinds:
        lead = [] if batched else [PLAIN_ROWS]
        out = [2, 3] if kind == "BF16" else [3, 2]
        tensors.append((
            {"name": given_name(kind), "data_type": f"TYPE_{kind}", "dims": [*lead, 2, 3]},
            {"name": made_name(kinds, kind), "data_type": f"TYPE_{kind}", "dims": [*lead, *out]},
        ))  # fmt: skip
    return PYTHON.format(
        rows=ROWS if batched else 0, kinds=[(given_name(kind), made_name(kinds, kind)) for kind in kinds],
        doubled=[given_name(kind) for kind in DOUBLED], tensors=tensors,
    )  # fmt: skip


def write_python(folder: Path, kinds: list[str], batched: bool) -> None:
    (folder / "model.py").write_text(python_source(kinds, batched))


def direct_python(folder: Path, given: Arrays, batched: bool) -> Arrays:
    """The model's own function on the same arrays, in this process."""
    kinds = [name.removeprefix("in_").upper() for name in given]
    names: dict[str, Any] = {}
    source = python_source(kinds, batched).replace("import triton_python_backend_utils as pb_utils", "")
    exec(compile(source, str(folder / "model.py"), "exec"), names)  # noqa: S102
    return {
        made_name(kinds, kind): array if kind == "BF16" else names["compute"](given_name(kind), array)
        for kind, array in zip(kinds, given.values(), strict=True)
    }


class PythonForm(Form):
    def shapes(self, kind: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (2, 3), (2, 3) if kind == "BF16" else (3, 2)


# ---- identity


def write_nothing(folder: Path, kinds: list[str], batched: bool) -> None:
    """The identity backend has no file."""


def direct_identity(folder: Path, given: Arrays, batched: bool) -> Arrays:
    del folder, batched
    kinds = [name.removeprefix("in_").upper() for name in given]
    return {made_name(kinds, kind): array for kind, array in zip(kinds, given.values(), strict=True)}


NO_TORCH = "" if TORCH else "PyTorch is not installed: pip install 'triton_fast[pytorch]'"
NO_COMPILER = NO_TORCH or ("" if shutil.which("g++") else "AOTInductor needs a C++ compiler: install g++")


def environment() -> dict[str, str]:
    """Of a server that is to find PyTorch where this process does."""
    paths = [str(ROOT)]
    if TORCH:
        import torch

        paths.append(str(Path(torch.__file__).resolve().parents[1]))
    return {"PYTHONPATH": os.pathsep.join(paths)}


def all_forms() -> dict[str, Form]:
    found = [
        Form("onnxruntime", "onnxruntime", write_onnx, direct_onnx),
        Form("openvino", "openvino", write_openvino, direct_openvino,
             missing="" if OPENVINO else "openvino is missing: pip install 'triton_fast[openvino]'"),
        Form("forest", "fil", write_forest, direct_forest, folder="{name}.fil",
             more='parameters { key: "predict_proba" value { string_value: "true" } }',
             missing="" if TREELITE else "needs treelite: pip install 'triton_fast[fil]'"),
        PythonForm("python", "python", write_python, direct_python),
        Form("identity", "identity", write_nothing, direct_identity, alone="nothing", turned=False),
    ]  # fmt: skip
    if TORCH:
        from tests.conformance import torch_forms

        found += torch_forms.FORMS
    else:
        found += [Form(name, "pytorch", write_nothing, direct_identity, missing=NO_TORCH) for name in TORCH_NAMES]
    return {form.name: form for form in found}


TORCH_NAMES = ("torchscript", "exported", "compiled", "class")
