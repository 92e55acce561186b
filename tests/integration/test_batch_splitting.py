"""Batch splitting through the whole server: ONNX and Python models, HTTP and gRPC, equal to a client that cuts, counted
once; what a config may not ask for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpcclient

from tests.helpers import onnx_models, python_models, raw
from tests.helpers.server import Model, ServerProcess, repository
from tests.integration.onnx_files import add, infer, request
from tests.integration.test_metrics_stats import samples, stats
from triton_fast import config as cfg
from triton_fast.config import parse
from triton_fast.errors import InvalidArg
from triton_fast.scheduling.layers import DEFAULT_SPLIT_ROWS, split_rows

SPLIT = 'parameters { key: "batch_splitting" value { string_value: "true" } }\n'
MOST = 16


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("split")
    groups = "instance_group { count: 2 kind: KIND_CPU }\n"
    onnx = f'backend: "onnxruntime"\nmax_batch_size: {MOST}\n{groups}'
    add(root, "mlp", onnx_models.mlp(), onnx + SPLIT)
    add(root, "plain", onnx_models.mlp(), onnx)
    python_models.add(
        root, "add_sub", replace={"max_batch_size: 8": f"max_batch_size: {MOST}", "count: 1": "count: 2"}, more=SPLIT
    )
    python_models.add(root, "identity", as_name="texts", replace={"TYPE_FP32": "TYPE_STRING"}, more=SPLIT)
    limit = 'parameters { key: "batch_splitting_max_rows" value { string_value: "20" } }\n'
    repository(
        root,
        Model("limited", extra=SPLIT + limit),
        Model("cached", dims=(2,), extra=SPLIT + "response_cache { enable: true }"),
    )
    with ServerProcess(root, "--cache-config=local,size=1000000") as process:
        yield process


def cut(server: ServerProcess, model: str, inputs: dict[str, np.ndarray], n: int) -> dict[str, np.ndarray]:
    """What a client gets that sends batches of MOST rows."""
    parts = [
        infer(server.http, model, {name: array[at : at + MOST] for name, array in inputs.items()})
        for at in range(0, n, MOST)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def test_500_rows_of_an_onnx_model_equal_32_calls(server):
    inputs = {"INPUT": np.random.default_rng(1).standard_normal((500, 16)).astype(np.float32)}
    before = stats(server, "mlp")
    whole = infer(server.http, "mlp", inputs)["OUTPUT"]
    after = stats(server, "mlp")
    assert whole.tobytes() == cut(server, "plain", inputs, 500)["OUTPUT"].tobytes()
    assert whole.shape == (500, 4)
    counted = after["inference_stats"]
    assert counted["success"]["count"] - before["inference_stats"]["success"]["count"] == 1
    assert counted["queue"]["count"] - before["inference_stats"]["queue"]["count"] == 1
    assert after["inference_count"] - before["inference_count"] == 500
    assert after["execution_count"] - before["execution_count"] == 32
    assert {row["batch_size"]: row["compute_infer"]["count"] for row in after["batch_stats"]} == {16: 31, 4: 1}
    assert counted["success"]["ns"] > 0
    assert samples(server, "mlp")["nv_inference_request_success", frozenset()] == 1
    assert samples(server, "mlp")["nv_inference_pending_request_count", frozenset()] == 0


def test_python_models_over_grpc(server):
    rng = np.random.default_rng(2)
    inputs = {name: rng.standard_normal((100, 3)).astype(np.float32) for name in ("INPUT0", "INPUT1")}
    with grpcclient.InferenceServerClient(f"{server.grpc[0]}:{server.grpc[1]}") as client:
        given = []
        for name, array in inputs.items():
            given.append(grpcclient.InferInput(name, list(array.shape), "FP32"))
            given[-1].set_data_from_numpy(array)
        found = client.infer("add_sub", given)
        assert np.array_equal(found.as_numpy("OUTPUT0"), inputs["INPUT0"] + inputs["INPUT1"])
        assert np.array_equal(found.as_numpy("OUTPUT1"), inputs["INPUT0"] - inputs["INPUT1"])
        only = client.infer("add_sub", given, outputs=[grpcclient.InferRequestedOutput("OUTPUT1")])
        assert only.as_numpy("OUTPUT0") is None
        assert np.array_equal(only.as_numpy("OUTPUT1"), inputs["INPUT0"] - inputs["INPUT1"])
    assert stats(server, "add_sub")["inference_stats"]["success"]["count"] == 2
    assert stats(server, "add_sub")["inference_count"] == 200


def test_strings(server):
    values = np.array([[b"x" * (k % 7), str(k).encode()] for k in range(333)], object)
    (found,) = infer(server.http, "texts", {"INPUT0": values}).values()
    assert found.shape == (333, 2)
    assert list(found.flat) == list(values.flat)


def test_the_limit_and_the_errors(server):
    assert raw.values_of(raw.ask(server.http, raw.infer_json("limited", [1.0] * 20, shape=[20, 1]))) == [1.0] * 20
    answer = raw.ask(server.http, raw.infer_json("limited", [1.0] * 21, shape=[21, 1]))
    assert answer.status == 400
    assert "inference request batch-size must be <= 20 for 'limited'" in answer.error
    answer = raw.ask(server.http, request("plain", {"INPUT": np.zeros((17, 16), np.float32)}))
    assert f"inference request batch-size must be <= {MOST} for 'plain'" in answer.error


def test_a_whole_request_is_cached(server):
    ask = raw.infer_json("cached", [float(k) for k in range(80)], shape=[40, 2])
    answers = [raw.values_of(raw.ask(server.http, ask)) for _ in range(3)]
    assert answers[0] == answers[1] == answers[2] == [float(k) for k in range(80)]
    found = stats(server, "cached")
    assert found["execution_count"] == 5
    assert found["inference_stats"]["cache_hit"]["count"] == 2
    assert found["inference_stats"]["success"]["count"] == 3


# --- configs ----------------------------------------------------------------------------------------------------------

IO = "input { name: 'I' data_type: TYPE_FP32 dims: 1 %s } output { name: 'O' data_type: TYPE_FP32 dims: 1 }"


def config_of(text: str, ragged: bool = False):
    io = IO % ("allow_ragged_batch: true" if ragged else "")
    config = parse.parse_text(f'name: "m" backend: "x" {io} {text}'.encode(), "f").config
    cfg.normalize(config, cpu_count=2)
    return config


def parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }} '


def test_who_asks_for_it():
    assert split_rows(config_of("max_batch_size: 4")) == 0
    for value in ("false", "False", "0", ""):
        assert split_rows(config_of("max_batch_size: 4 " + parameter("batch_splitting", value))) == 0
    for value in ("true", "True", "1"):
        assert split_rows(config_of("max_batch_size: 4 " + parameter("batch_splitting", value))) == DEFAULT_SPLIT_ROWS
    more = parameter("batch_splitting_max_rows", "64")
    assert split_rows(config_of("max_batch_size: 4 " + SPLIT + more)) == 64
    assert split_rows(config_of("max_batch_size: 4 " + more)) == 0


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (SPLIT, "max_batch_size is 0, so that requests have no rows: set it to the largest batch"),
        ("max_batch_size: 4 model_transaction_policy { decoupled: true } " + SPLIT, "is decoupled, its responses can"),
        ("max_batch_size: 4 sequence_batching { } " + SPLIT, "a request of a sequence is one step and can not be cut"),
        ("max_batch_size: 4 " + parameter("batch_splitting", "yes"), "must be true or false, got 'yes'"),
        ("max_batch_size: 4 " + SPLIT + parameter("batch_splitting_max_rows", "4"), "over max_batch_size 4, got '4'"),
        ("max_batch_size: 4 " + SPLIT + parameter("batch_splitting_max_rows", "x"), "over max_batch_size 4, got 'x'"),
    ],
)  # fmt: skip
def test_what_it_can_not_be_had_for(text, error):
    with pytest.raises(InvalidArg, match=error):
        split_rows(config_of(text))


def test_ragged_inputs_can_not_be_cut():
    with pytest.raises(InvalidArg, match="ragged inputs have no rows of one shape"):
        split_rows(config_of("max_batch_size: 4 " + SPLIT, ragged=True))


TENSORS = """
max_batch_size: %d
input [{ name: "INPUT0" data_type: TYPE_FP32 dims: [2] }] output [{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [2] }]
ensemble_scheduling { step [
  { model_name: "one" model_version: -1
    input_map { key: "INPUT0" value: "INPUT0" } output_map { key: "OUTPUT0" value: "T" } },
  { model_name: "two" model_version: -1
    input_map { key: "INPUT0" value: "T" } output_map { key: "OUTPUT0" value: "OUTPUT0" } }
] }
"""


def test_an_ensemble_is_cut_itself_and_no_larger_than_its_smallest_member(tmp_path: Path):
    """As in Triton a member's largest batch bounds the ensemble's, although the member would cut its requests."""
    root = repository(tmp_path, Model("one", dims=(2,), max_batch=8), Model("two", dims=(2,), max_batch=4, extra=SPLIT))
    for name, config in (("cut", TENSORS % 4 + SPLIT), ("large", TENSORS % 8)):
        (root / name / "1").mkdir(parents=True)
        (root / name / "config.pbtxt").write_text('platform: "ensemble"' + config)
    with ServerProcess(root, "--exit-on-error=false") as process:
        values = np.arange(20, dtype=np.float32).reshape(10, 2)
        assert infer(process.http, "cut", {"INPUT0": values})["OUTPUT0"].tobytes() == values.tobytes()
        counted = stats(process, "cut")
        assert (counted["inference_stats"]["success"]["count"], counted["inference_count"]) == (1, 10)
        assert {row["batch_size"] for row in stats(process, "one")["batch_stats"]} == {4, 2}
        rows = {row["name"]: row for row in raw.ask(process.http, raw.post("/v2/repository/index")).json()}
        assert rows["large"]["reason"].endswith(
            "ensemble large allows maximum batch size 8, but it contains model two which only allows maximum batch "
            "size to be 4 (also where the model has batch_splitting: the ensemble can have that itself)"
        )


def test_a_load_says_why(tmp_path: Path):
    root = repository(tmp_path, Model("flat", max_batch=0, dims=(2,), extra=SPLIT))
    with ServerProcess(root, "--exit-on-error=false") as process:
        rows = raw.ask(process.http, raw.post("/v2/repository/index")).json()
        assert "model 'flat' can not have parameter 'batch_splitting': max_batch_size is 0" in rows[0]["reason"]
