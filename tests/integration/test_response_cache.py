"""The response cache through the whole server: ONNX and Python models over HTTP and gRPC, a stampede, statistics and
metrics, reloads, and the options that turn it on."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient

from tests.helpers import onnx_models, python_models, raw
from tests.helpers.models import in_threads
from tests.helpers.server import ROOT, Model, ServerProcess, repository, until
from tests.integration.onnx_files import add, direct, infer, same
from tests.integration.test_metrics_stats import samples, scrape, stats

CACHED = "response_cache { enable: true }\n"
FLAGS = ("--cache-config=local,size=1048576", "--model-control-mode=explicit", "--load-model=*")
PYTHON = """
backend: "python"
max_batch_size: 4
input { name: "IN" data_type: TYPE_INT32 dims: [ -1 ] }
output { name: "OUT" data_type: TYPE_INT32 dims: [ -1 ] }
instance_group { count: 2 kind: KIND_CPU }
"""
# Each execution appends a line to a file, so that executions are counted where they happen.
COUNTED = """
class TritonPythonModel:
    def initialize(self, args):
        self.place = "%s"

    def execute(self, requests):
        import os, time
        answers = []
        for request in requests:
            numbers = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
            with open(self.place, "a") as file:
                file.write("x\\n")
            if numbers.size and numbers.flat[0] == 13:
                answers.append(pb_utils.InferenceResponse(error=pb_utils.TritonError("unlucky")))
                continue
            while numbers.size and numbers.flat[0] == 7 and not os.path.exists(self.place + ".go"):
                time.sleep(0.005)
            more = {"parameters": {"k": 1}} if numbers.size and numbers.flat[0] == 5 else {}
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", numbers + 1)], **more))
        return answers
"""


class Place:
    """Where the Python model counts."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def executions(self) -> int:
        return len(self.path.read_text().splitlines()) if self.path.exists() else 0

    def go(self) -> None:
        Path(f"{self.path}.go").touch()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("cache")
    place = Place(tmp_path_factory.mktemp("place") / "count")
    add(root, "mlp", onnx_models.mlp(), 'backend: "onnxruntime"\nmax_batch_size: 8\n' + CACHED)
    python_models.model_of(root, "counted", COUNTED % place.path, PYTHON + CACHED)
    repository(
        root, Model("plain"), Model("stat", dims=(2,), extra=CACHED), Model("texts", datatype="BYTES", extra=CACHED),
        Model("again", extra=CACHED), Model("held", delay_ms=150, extra=CACHED),
    )  # fmt: skip
    with ServerProcess(root, *FLAGS) as process:
        process.place = place  # type: ignore[attr-defined]
        yield process


def counts(process: ServerProcess, model: str) -> tuple[int, int, int]:
    found = stats(process, model)
    inference = found["inference_stats"]
    return inference["cache_hit"]["count"], inference["cache_miss"]["count"], found["execution_count"]


def number(process: ServerProcess, value: int, *more: int, shape: list[int] | None = None) -> raw.Answer:
    values = [value, *more]
    body = {"inputs": [{"name": "IN", "shape": shape or [1, len(values)], "datatype": "INT32", "data": values}]}
    return raw.ask(process.http, raw.post(raw.infer_path("counted"), json.dumps(body).encode()))


def outputs(answer: raw.Answer) -> list[tuple[Any, Any]]:
    assert answer.status == 200, answer.body
    return [(output["shape"], output["data"]) for output in answer.json()["outputs"]]


def test_onnx_answers_equal_onnxruntime_first_and_again(server):
    inputs = {"INPUT": np.random.default_rng(3).standard_normal((3, 16)).astype(np.float32)}
    expected = direct(onnx_models.mlp(), inputs)["OUTPUT"]
    for _ in range(3):
        found = infer(server.http, "mlp", inputs)["OUTPUT"]
        assert same(found, expected) or np.allclose(found, expected)
    assert counts(server, "mlp") == (2, 1, 1)


def test_http_and_grpc_share_what_is_stored(server):
    values = np.array([[b"", b"a\0b"], [b"\xff", b"x" * 3000]], object)
    with grpcclient.InferenceServerClient(f"{server.grpc[0]}:{server.grpc[1]}") as client:
        given = grpcclient.InferInput("INPUT0", [2, 2], "BYTES")
        given.set_data_from_numpy(values)
        (over_http,) = infer(server.http, "texts", {"INPUT0": values}).values()
        answers = [client.infer("texts", [given]).as_numpy("OUTPUT0") for _ in range(2)]
        assert [list(answer.flat) for answer in (over_http, *answers)] == [list(values.flat)] * 3
        assert counts(server, "texts") == (2, 1, 1)
        (found,) = client.get_inference_statistics("texts").model_stats
        assert found.inference_stats.cache_hit.count == 2
        assert found.inference_stats.cache_miss.count == 1
        assert 0 < found.inference_stats.cache_hit.ns < found.inference_stats.success.ns


def test_python_models_shapes_and_errors(server):
    before = server.place.executions()
    assert outputs(number(server, 1, 2)) == [([1, 2], [2, 3])]
    assert outputs(number(server, 1, 2)) == [([1, 2], [2, 3])]
    assert outputs(number(server, 1, 2, shape=[2, 1])) == [([2, 1], [2, 3])]  # the same bytes, other shape
    assert server.place.executions() - before == 2
    for _ in range(2):
        assert number(server, 13).error == "unlucky"
    assert server.place.executions() - before == 4


def test_answers_with_parameters_are_not_stored(server):
    before = server.place.executions()
    for k in range(2):
        assert number(server, 5).json()["parameters"] == {"k": 1}
        assert server.place.executions() - before == k + 1


def test_a_stampede_is_one_execution(server):
    """200 equal requests while the first executes: none of the others does, and each has its answer."""
    before, hits = server.place.executions(), counts(server, "counted")[0]

    def ask(_: int) -> None:
        assert outputs(number(server, 7)) == [([1, 1], [8])]

    runner = threading.Thread(target=in_threads, args=(200, ask))
    runner.start()
    # 199 wait, and one executes.
    assert until(lambda: samples(server, "counted")["nv_inference_pending_request_count", frozenset()] == 199)
    assert server.place.executions() - before == 1
    server.place.go()
    runner.join(60)
    assert not runner.is_alive()
    assert server.place.executions() - before == 1
    assert counts(server, "counted")[0] - hits == 199


def test_a_client_that_leaves_the_stampede_leaves_it_alone(server):
    with raw.several(server.http, 4) as clients:
        for client in clients:
            client.send(raw.infer_json("held", [4.5]))
        assert until(lambda: samples(server, "held")["nv_inference_pending_request_count", frozenset()] in (0, 3))
        clients[0].reset()
        clients[2].close()
        for client in (clients[1], clients[3]):
            assert client.answer().json()["outputs"][0]["data"] == [4.5]
    # The first one may be told apart from the others only by its place: it leads.
    assert raw.ask(server.http, raw.infer_json("held", [4.5])).json()["outputs"][0]["data"] == [4.5]


def test_statistics_and_metrics_agree(server):
    for k in (1, 2, 1, 1, 3):
        raw.ask(server.http, raw.infer_json("stat", [float(k), 0.0], shape=[1, 2]))
    found = stats(server, "stat")
    inference = found["inference_stats"]
    assert {name: value["count"] for name, value in inference.items()} == {
        "success": 5, "fail": 0, "queue": 5, "compute_input": 3, "compute_infer": 3, "compute_output": 3,
        "cache_hit": 2, "cache_miss": 3,
    }  # fmt: skip
    assert (found["inference_count"], found["execution_count"]) == (3, 3)
    shown = samples(server, "stat")
    none: frozenset[Any] = frozenset()
    assert shown["nv_cache_num_hits_per_model", none] == 2
    assert shown["nv_cache_num_misses_per_model", none] == 3
    # Whole microseconds of each look-up and each copy.
    for word in ("hit", "miss"):
        spent = inference[f"cache_{word}"]
        lost = spent["ns"] // 1000 - shown[f"nv_cache_{word}_duration_per_model", none]
        assert 0 <= lost <= 2 * spent["count"]
    assert shown["nv_inference_request_success", none] == 5
    assert shown["nv_inference_count", none] == 3
    assert ("nv_cache_num_hits_per_model", none) not in samples(server, "plain")
    whole = samples(server)
    assert 0 < whole["nv_cache_util", none] <= 1
    assert whole["nv_cache_num_lookups", none] == (
        whole["nv_cache_num_hits", none] + whole["nv_cache_num_misses", none]
    )
    assert whole["nv_cache_num_entries", none] >= 3
    assert "# HELP nv_cache_num_hits_per_model Number of cache hits per model\n" in scrape(server)


def test_a_reload_forgets(server):
    for _ in range(2):
        raw.ask(server.http, raw.infer_json("again", [1.0]))
    assert counts(server, "again") == (1, 1, 1)
    for verb in ("unload", "load"):
        assert raw.ask(server.http, raw.post(f"/v2/repository/models/again/{verb}")).status == 200
    assert raw.ask(server.http, raw.infer_json("again", [1.0])).status == 200
    assert counts(server, "again") == (0, 1, 1)


def test_a_model_that_does_not_ask_is_not_cached(server):
    for _ in range(2):
        raw.ask(server.http, raw.infer_json("plain", [1.0]))
    assert counts(server, "plain") == (0, 0, 2)


# --- options ----------------------------------------------------------------------------------------------------------


def test_without_a_server_cache_there_is_a_warning(tmp_path):
    root = repository(tmp_path, Model("m", extra=CACHED))
    with ServerProcess(root) as process:
        process.wait_for_log("model 'm' enables the response cache, but the server has none")
        for _ in range(2):
            raw.ask(process.http, raw.infer_json("m", [1.0]))
        assert counts(process, "m") == (0, 0, 2)
        assert "nv_cache" not in scrape(process)
        assert process.wait_for_log("cache_enabled").split("|")[2].strip() == "0"


def test_the_old_flag_makes_a_local_cache(tmp_path):
    root = repository(tmp_path, Model("m", extra=CACHED))
    with ServerProcess(root, "--response-cache-byte-size=65536") as process:
        for _ in range(2):
            raw.ask(process.http, raw.infer_json("m", [1.0]))
        assert counts(process, "m") == (1, 1, 1)
        assert process.wait_for_log("cache_enabled").split("|")[2].strip() == "1"


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ("local,foo=1", "Invalid argument - Failed to initialize LocalCache: config didn't contain a valid 'size'"),
        ("local,size=0", "Internal - Failed to initialize LocalCache: "),
        ("local,size=100", "Internal - Failed to initialize LocalCache: a response cache needs at least 512 bytes"),
        ("local,size=x", "Invalid argument - Failed to initialize LocalCache: 'size' must be a number of bytes, got"),
        ("nope,a=b", "Invalid argument - unable to find 'libtritoncache_nope.so' for cache. Searched: /opt/"),
        ("redis,host=h", "Invalid argument - Failed to initialize RedisCache, didn't specify address."),
    ],
)  # fmt: skip
def test_wrong_caches_end_the_server(tmp_path, config, text):
    command = [sys.executable, "-m", "triton_fast", f"--model-repository={tmp_path}", f"--cache-config={config}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)
    assert ended.returncode == 1
    assert f"error: creating server: {text}" in ended.stderr
