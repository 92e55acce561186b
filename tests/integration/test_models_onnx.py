"""ONNX models through the whole server: configs completed, refused and kept; results equal onnxruntime's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.helpers import onnx_models, raw
from tests.helpers.server import ServerProcess
from tests.integration.onnx_files import add, arrays, config, direct, index, infer, request, same

ORT = 'backend: "onnxruntime"\n'
IO = """
input [{ name: "INPUT0" data_type: TYPE_FP32 dims: [4] }]
output [{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [4] }]
"""
BATCHED = ORT + "max_batch_size: 4" + IO

SAMPLES: dict[str, Any] = {
    "BOOL": np.array([[True, False, True, True]]),
    "UINT8": np.array([[0, 1, 2, 255]], np.uint8),
    "UINT16": np.array([[0, 1, 2, 65535]], np.uint16),
    "UINT32": np.array([[0, 1, 2, 2**32 - 1]], np.uint32),
    "UINT64": np.array([[0, 1, 2, 2**64 - 1]], np.uint64),
    "INT8": np.array([[-128, -1, 0, 127]], np.int8),
    "INT16": np.array([[-32768, -1, 0, 32767]], np.int16),
    "INT32": np.array([[-(2**31), -1, 0, 2**31 - 1]], np.int32),
    "INT64": np.array([[-(2**63), -1, 0, 2**63 - 1]], np.int64),
    "FP16": np.array([[-0.5, 65504, 6e-8, np.inf]], np.float16),
    "FP32": np.array([[-0.1, 3.4e38, 1e-45, np.nan]], np.float32),
    "FP64": np.array([[-0.1, 1.7e308, 5e-324, -np.inf]], np.float64),
    "BF16": np.array([[-0.5, 3e38, 1e-40, 1.875]], ml_dtypes.bfloat16),
    "STRING": np.array([[b"", b"a", "h\u00e9 \U0001f600".encode(), b"x" * 5000]], object),
}

# Model name -> config.pbtxt that contradicts identity FP32 [batch, 4], and what the server must say.
WRONG: dict[str, tuple[str, str]] = {
    "datatype": (
        BATCHED.replace("TYPE_FP32 dims: [4] }]\noutput", "TYPE_INT32 dims: [4] }]\noutput"),
        "unable to load model 'datatype', configuration expects datatype TYPE_INT32 for input 'INPUT0', model provides "
        "TYPE_FP32",
    ),
    "count": (
        BATCHED.replace("output [", 'input [{ name: "INPUT1" data_type: TYPE_FP32 dims: [4] }]\noutput ['),
        "unable to load model 'count', configuration expects 2 inputs, model provides 1",
    ),
    "input_name": (
        BATCHED.replace("INPUT0", "OTHER"), "unexpected inference input 'OTHER', allowed inputs are: INPUT0",
    ),
    "output_name": (
        BATCHED.replace("OUTPUT0", "OTHER"), "unexpected inference output 'OTHER', allowed outputs are: OUTPUT0",
    ),
    "dims": (
        BATCHED.replace("[4]", "[5]"),
        "model 'dims', tensor 'INPUT0': the model expects 2 dimensions (shape [-1,4]) but the model configuration "
        "specifies 2 dimensions (an initial batch dimension because max_batch_size > 0 followed by the explicit tensor "
        "shape, making complete shape [-1,5])",
    ),
    "rank": (
        BATCHED.replace("[4]", "[4,1]"),
        "model 'rank', tensor 'INPUT0': the model expects 2 dimensions (shape [-1,4]) but the model configuration "
        "specifies 3 dimensions (an initial batch dimension because max_batch_size > 0 followed by the explicit tensor "
        "shape, making complete shape [-1,4,1])",
    ),
    "rank_without_batching": (
        ORT + "max_batch_size: 0" + IO,
        "model 'rank_without_batching', tensor 'INPUT0': the model expects 2 dimensions (shape [-1,4]) but the model "
        "configuration specifies 1 dimensions (shape [4])",
    ),
    "optional": (
        BATCHED.replace("dims: [4] }]\noutput", "dims: [4] optional: true }]\noutput"),
        "unable to load model 'optional', optional input 'INPUT0' is not supported for models that support batching",
    ),
    "syntax": (ORT + "max_batch_size: four", "failed to read text proto from syntax/config.pbtxt:2:17: "),
    "field": (ORT + "max_batchsize: 4", "did you mean 'max_batch_size'?"),
    "negative": (ORT + "max_batch_size: -1", "'max_batch_size' must be non-negative value for negative"),
    "directory": (
        ORT + 'name: "other"',
        "unexpected directory name 'directory' for model 'other', directory name must equal model name",
    ),
    "backend": ('backend: "nobody"', "unable to find backend library for backend 'nobody'"),
    "gpu": (
        ORT + "instance_group [{ kind: KIND_GPU }]",
        "instance group gpu_0 of model gpu has kind KIND_GPU but no GPUs are available",
    ),
    "preferred": (
        BATCHED + "dynamic_batching { preferred_batch_size: [8] }",
        "dynamic batching preferred size must be <= max batch size for preferred",
    ),
    "zero_dimension": (
        BATCHED.replace("[4]", "[0]"),
        "model input 'INPUT0' dimension must be integer >= 1, or -1 to indicate a variable-size dimension for "
        "zero_dimension",
    ),
    "no_dims": (BATCHED.replace("dims: [4]", ""), "model input 'INPUT0' must specify 'dims' for no_dims"),
    "reshape": (
        BATCHED.replace("dims: [4] }]\noutput", "dims: [4] reshape { shape: [5] } }]\noutput"),
        "model input 'INPUT0' has different size for dims and reshape for reshape",
    ),
    "policy": (
        BATCHED + "version_policy { specific { versions: [7] } }",
        "at least one version must be available under the version policy of model 'policy'",
    ),
    "label_path": (
        BATCHED.replace("dims: [4] }]\n", 'dims: [4] label_filename: "../../x" }]\n').replace(
            ' label_filename: "../../x" }]\noutput', " }]\noutput"
        ),
        "is outside model directory",
    ),
}  # fmt: skip
# What stands in model.onnx, with no config; None: the file is missing.
BROKEN: dict[str, tuple[bytes | None, str]] = {
    "garbage": (b"nonsense", "Load model from garbage/1/model.onnx failed"),
    "empty": (b"", "'empty/1/model.onnx' is empty"),
    "missing": (None, "Could not determine backend for model 'missing' with no backend in model configuration"),
    "no_tensor": (onnx_models.sequence_output(), "OUTPUT0"),
}


# ---- completed configs


@pytest.fixture(scope="module")
def completed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("completed")
    add(root, "add_sub", onnx_models.add_sub("FP32"))
    add(root, "fixed", onnx_models.identity("FP32", (2, 3)))
    add(root, "variable", onnx_models.identity("FP32", ("batch", None, 3)))
    add(root, "scalar", onnx_models.scalar())
    add(root, "mlp", onnx_models.mlp())
    add(root, "gather", onnx_models.gather())
    add(root, "given", onnx_models.identity(), "max_batch_size: 16\ninstance_group [{ count: 3 kind: KIND_CPU }]")
    add(root, "unbatched", onnx_models.identity("FP32", (None, 4)), f"{ORT}max_batch_size: 0\n"
        + IO.replace("[4]", "[-1, 4]"))  # fmt: skip
    add(root, "labelled", onnx_models.mlp(classes=3), None)
    (root / "labelled" / "config.pbtxt").write_text(
        ORT + 'max_batch_size: 2\ninput [{ name: "INPUT" data_type: TYPE_FP32 dims: [16] }]\n'
        'output [{ name: "OUTPUT" data_type: TYPE_FP32 dims: [3] label_filename: "labels.txt" }]'
    )
    (root / "labelled" / "labels.txt").write_text("cat\ndog\nbird\n")
    for datatype in SAMPLES:
        add(root, f"id_{datatype}", onnx_models.identity(datatype))
        if datatype not in ("BOOL", "STRING", "BF16"):
            add(root, f"add_{datatype}", onnx_models.add_sub(datatype, ("batch", 4)))
    with ServerProcess(root, "--backend-config=onnxruntime,default-max-batch-size=8") as process:
        yield process


def shown(found: Any, side: str) -> list[tuple[str, str, list[int]]]:
    return [(tensor["name"], tensor["data_type"], tensor["dims"]) for tensor in found[side]]


def test_batching_is_found(completed: ServerProcess) -> None:
    found = config(completed.http, "add_sub")
    assert (found["backend"], found["platform"]) == ("onnxruntime", "onnxruntime_onnx")
    assert found["max_batch_size"] == 8
    assert shown(found, "input") == [("INPUT0", "TYPE_FP32", [16]), ("INPUT1", "TYPE_FP32", [16])]
    assert shown(found, "output") == [("OUTPUT0", "TYPE_FP32", [16]), ("OUTPUT1", "TYPE_FP32", [16])]
    assert found["dynamic_batching"]["preferred_batch_size"] == [8]
    assert found["instance_group"] == [{
        "name": "add_sub", "kind": "KIND_CPU", "count": 2, "gpus": [], "secondary_devices": [], "profile": [],
        "passive": False, "host_policy": "",
    }]  # fmt: skip
    assert found["default_model_filename"] == "model.onnx"


def test_no_batching_is_found(completed: ServerProcess) -> None:
    found = config(completed.http, "fixed")
    assert found["max_batch_size"] == 0
    assert shown(found, "input") == [("INPUT0", "TYPE_FP32", [2, 3])]
    assert "dynamic_batching" not in found
    found = config(completed.http, "scalar")
    assert (found["max_batch_size"], shown(found, "output")) == (0, [("OUTPUT0", "TYPE_FP32", [1])])


def test_variable_dimensions_are_found(completed: ServerProcess) -> None:
    found = config(completed.http, "variable")
    assert (found["max_batch_size"], shown(found, "input")) == (8, [("INPUT0", "TYPE_FP32", [-1, 3])])


def test_what_was_given_stays(completed: ServerProcess) -> None:
    found = config(completed.http, "given")
    assert (found["max_batch_size"], found["instance_group"][0]["count"]) == (16, 3)
    assert shown(found, "input") == [("INPUT0", "TYPE_FP32", [4])]
    metadata = raw.ask(completed.http, raw.get("/v2/models/given")).json()
    assert metadata["inputs"] == [{"name": "INPUT0", "datatype": "FP32", "shape": [-1, 4]}]
    assert config(completed.http, "unbatched")["max_batch_size"] == 0


# ---- results


@pytest.mark.parametrize("datatype", SAMPLES)
def test_identity_of(completed: ServerProcess, datatype: str) -> None:
    inputs = {"INPUT0": np.concatenate([SAMPLES[datatype]] * 2)}
    found = infer(completed.http, f"id_{datatype}", inputs)["OUTPUT0"]
    assert same(found, inputs["INPUT0"])
    if datatype != "BF16":
        assert same(found, direct(onnx_models.identity(datatype), inputs)["OUTPUT0"])


@pytest.mark.parametrize("datatype", [name for name in SAMPLES if name not in ("BOOL", "STRING", "BF16")])
def test_sum_of(completed: ServerProcess, datatype: str) -> None:
    blob = onnx_models.add_sub(datatype, ("batch", 4))
    inputs = {"INPUT0": SAMPLES[datatype], "INPUT1": SAMPLES[datatype][:, ::-1].copy()}
    expected = direct(blob, inputs)
    found = infer(completed.http, f"add_{datatype}", inputs)
    assert all(same(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_mlp(completed: ServerProcess, batch: int) -> None:
    inputs = {"INPUT": np.random.default_rng(batch).standard_normal((batch, 16)).astype(np.float32)}
    expected = direct(onnx_models.mlp(), inputs)["OUTPUT"]
    np.testing.assert_allclose(infer(completed.http, "mlp", inputs)["OUTPUT"], expected, rtol=1e-6)
    values = {"inputs": [{"name": "INPUT", "datatype": "FP32", "shape": [batch, 16],
                          "data": inputs["INPUT"].tolist()}]}  # fmt: skip
    answer = raw.ask(completed.http, raw.post(raw.infer_path("mlp"), json.dumps(values).encode()))
    np.testing.assert_allclose(arrays(answer)["OUTPUT"], expected, rtol=1e-6)


def test_scalar_and_shapes(completed: ServerProcess) -> None:
    assert infer(completed.http, "scalar", {"INPUT0": np.array([2.5], np.float32)})["OUTPUT0"].tolist() == [5]
    for shape in ((1, 1, 3), (2, 7, 3), (8, 0, 3)):
        inputs = {"INPUT0": np.arange(np.prod(shape), dtype=np.float32).reshape(shape)}
        assert same(infer(completed.http, "variable", inputs)["OUTPUT0"], inputs["INPUT0"])


def test_classes(completed: ServerProcess) -> None:
    inputs = {"INPUT": np.random.default_rng(5).standard_normal((2, 16)).astype(np.float32)}
    wanted = [{"name": "OUTPUT", "parameters": {"classification": 3, "binary_data": True}}]
    found = arrays(raw.ask(completed.http, request("labelled", inputs, outputs=wanted)))["OUTPUT"]
    rows = direct(onnx_models.mlp(classes=3), inputs)["OUTPUT"]
    labels = ["cat", "dog", "bird"]
    for row, texts in zip(rows, found, strict=True):
        assert [text.decode().split(":")[1:] for text in texts] == [[str(k), labels[k]] for k in np.argsort(-row)]
        assert [float(text.split(b":")[0]) for text in texts] == pytest.approx(sorted(row, reverse=True), abs=1e-6)


def test_parameters(tmp_path: Path) -> None:
    given = {
        "intra_op_thread_count": "1", "inter_op_thread_count": "1", "execution_mode": "1", "enable_mem_arena": "0",
        "enable_mem_pattern": "0", "session.set_denormal_as_zero": "1",
    }  # fmt: skip
    text = "".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n' for key, value in given.items()
    )
    add(tmp_path, "m", onnx_models.mlp(), f"{ORT}optimization {{ graph {{ level: 1 }} }}\n{text}")
    with ServerProcess(tmp_path, "--backend-config=onnxruntime,intra_op_thread_count=1") as process:
        shown_parameters = config(process.http, "m")["parameters"]
        assert shown_parameters == {key: {"string_value": value} for key, value in given.items()}
        inputs = {"INPUT": np.ones((2, 16), np.float32)}
        expected = direct(onnx_models.mlp(), inputs)["OUTPUT"]
        np.testing.assert_allclose(infer(process.http, "m", inputs)["OUTPUT"], expected, rtol=1e-6)


def test_an_error_of_the_model(completed: ServerProcess) -> None:
    good, bad = ({"INDEX": np.array([[k]], np.int64)} for k in (3, 99))
    answer = raw.ask(completed.http, request("gather", bad))
    assert answer.status == 500
    assert "onnx runtime error" in answer.error
    assert infer(completed.http, "gather", good)["OUTPUT0"].tolist() == [[3]]


def test_batch_past_the_maximum(completed: ServerProcess) -> None:
    answer = raw.ask(completed.http, request("mlp", {"INPUT": np.zeros((9, 16), np.float32)}))
    assert (answer.status, answer.error) == (
        400, "[request id: <id_unknown>] inference request batch-size must be <= 8 for 'mlp'",
    )  # fmt: skip


# ---- refused configs


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("damaged")
    add(root, "good", onnx_models.identity(), BATCHED)
    for name, (text, _) in WRONG.items():
        add(root, name, onnx_models.identity(), text)
    for name, (blob, _) in BROKEN.items():
        add(root, name, blob)
    with ServerProcess(root, "--exit-on-error=false") as process:
        yield process


EXPECTED = {name: text for table in (WRONG, BROKEN) for name, (_, text) in table.items()}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_reason_is_told(damaged: ServerProcess, name: str) -> None:
    row = index(damaged.http)[name]
    assert row["state"] == "UNAVAILABLE"
    assert EXPECTED[name] in row["reason"]
    assert any(EXPECTED[name].splitlines()[0] in line for line in damaged.log().splitlines())
    answer = raw.ask(damaged.http, raw.infer_json(name, [1, 2, 3, 4]))
    assert answer.status in (404, 503)
    assert answer.error.startswith(f"Request for unknown model: '{name}' ")


def test_nothing_told_holds_a_path(damaged: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> None:
    base = str(tmp_path_factory.getbasetemp())
    assert not [row for row in index(damaged.http).values() if base in row.get("reason", "")]


def test_the_others_are_served(damaged: ServerProcess) -> None:
    assert raw.ask(damaged.http, raw.get("/v2/health/live")).status == 200
    assert raw.ask(damaged.http, raw.get("/v2/health/ready")).status == 400
    assert index(damaged.http)["good"]["state"] == "READY"
    assert raw.values_of(raw.ask(damaged.http, raw.infer_json("good", [1, 2, 3, 4]))) == [1, 2, 3, 4]


def test_readiness_that_is_not_strict(tmp_path: Path) -> None:
    add(tmp_path, "good", onnx_models.identity())
    add(tmp_path, "bad", b"nonsense")
    with ServerProcess(tmp_path, "--exit-on-error=false", "--strict-readiness=false") as process:
        assert raw.ask(process.http, raw.get("/v2/health/ready")).status == 200
        assert "| bad " in process.log()


# ---- strict


@pytest.mark.parametrize("flag", ["--disable-auto-complete-config", "--strict-model-config=true"])
def test_strict(tmp_path: Path, flag: str) -> None:
    add(tmp_path, "whole", onnx_models.identity(), BATCHED)
    add(tmp_path, "without", onnx_models.identity())
    add(tmp_path, "part", onnx_models.identity(), ORT)
    add(tmp_path, "nameless", onnx_models.identity(), "max_batch_size: 4" + IO)
    with ServerProcess(tmp_path, flag, "--exit-on-error=false") as process:
        rows = index(process.http)
        assert rows["whole"]["state"] == "READY"
        # The backend follows from the model file's name; nothing else is looked up.
        assert rows["nameless"]["state"] == "READY"
        assert {rows[name]["state"] for name in ("without", "part")} == {"UNAVAILABLE"}
        assert "config.pbtxt" in rows["without"]["reason"]
        assert "configuration expects 0 inputs, model provides 1" in rows["part"]["reason"]
        assert raw.values_of(raw.ask(process.http, raw.infer_json("whole", [1, 2, 3, 4]))) == [1, 2, 3, 4]
        # Nothing was added to what was written.
        assert "dynamic_batching" not in config(process.http, "whole")
