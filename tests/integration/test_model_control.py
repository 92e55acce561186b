"""Explicit control: load, unload and reload under load, version policies, several repositories, failures at start."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.helpers import raw
from tests.helpers.gated import Gated
from tests.helpers.scrape import pending
from tests.helpers.server import EXIT_TIMEOUT_S, ROOT, Model, ServerProcess, repository, until
from tests.integration.onnx_files import add, config, index, infer

EXPLICIT = "--model-control-mode=explicit"
RELOADS = 50


def plus(value: float) -> bytes:
    """OUTPUT0 = INPUT0 + value: which file is served can be seen in the answer."""
    weight = numpy_helper.from_array(np.array([value], np.float32), "w")
    tensors = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 1]) for name in ("INPUT0", "OUTPUT0")
    ]
    graph = helper.make_graph(
        [helper.make_node("Add", ["INPUT0", "w"], ["OUTPUT0"])], "g", tensors[:1], tensors[1:], [weight]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def control(process: ServerProcess, verb: str, name: str, **parameters: Any) -> raw.Answer:
    body = json.dumps({"parameters": parameters}).encode() if parameters else b""
    return raw.ask(process.http, raw.post(f"/v2/repository/models/{name}/{verb}", body))


def answered(process: ServerProcess, name: str) -> float:
    return float(infer(process.http, name, {"INPUT0": np.zeros((1, 1), np.float32)})["OUTPUT0"][0, 0])


def ready(process: ServerProcess, path: str) -> int:
    return raw.ask(process.http, raw.get(f"/v2/models/{path}/ready")).status


# ---- explicit mode


def test_only_what_was_named_is_loaded(tmp_path: Path) -> None:
    repository(tmp_path, Model("a"), Model("b"), Model("c"))
    with ServerProcess(tmp_path, EXPLICIT, "--load-model=a", "--load-model=b") as process:
        rows = index(process.http)
        assert rows["a"] == {"name": "a", "version": "1", "state": "READY"}
        assert rows["c"] == {"name": "c"}
        assert (ready(process, "b"), ready(process, "c")) == (200, 404)
        assert control(process, "load", "c").status == 200
        assert ready(process, "c") == 200


def test_nothing_is_loaded(tmp_path: Path) -> None:
    repository(tmp_path, Model("a"))
    with ServerProcess(tmp_path, EXPLICIT) as process:
        assert index(process.http) == {"a": {"name": "a"}}
        assert raw.ask(process.http, raw.get("/v2/health/ready")).status == 200
        assert raw.ask(process.http, raw.post("/v2/repository/index", b'{"ready": true}')).json() == []


def test_unload_and_load(tmp_path: Path) -> None:
    repository(tmp_path, Model("a"), Model("b"))
    with ServerProcess(tmp_path, EXPLICIT, "--load-model=*") as process:
        assert control(process, "unload", "a").status == 200
        assert until(lambda: index(process.http)["a"].get("reason") == "unloaded")
        assert index(process.http)["a"]["state"] == "UNAVAILABLE"
        assert ready(process, "b") == 200
        assert raw.ask(process.http, raw.get("/v2/health/ready")).status == 200
        assert control(process, "load", "a").status == 200
        assert raw.values_of(raw.ask(process.http, raw.infer_json("a", [1]))) == [1]


def test_a_reload_takes_new_files_and_a_failed_one_keeps_the_old(tmp_path: Path) -> None:
    folder = add(tmp_path, "m", plus(1))
    with ServerProcess(tmp_path, EXPLICIT, "--load-model=m") as process:
        assert answered(process, "m") == 1
        (folder / "1" / "model.onnx").write_bytes(plus(22))
        assert answered(process, "m") == 1
        assert control(process, "load", "m").status == 200
        assert answered(process, "m") == 22
        (folder / "1" / "model.onnx").write_bytes(b"nonsense")
        answer = control(process, "load", "m")
        assert answer.status == 400
        assert answer.error.startswith("load failed for model 'm': version 1 is at UNAVAILABLE state: ")
        assert answered(process, "m") == 22
        assert index(process.http)["m"]["state"] == "READY"


def test_a_new_version_is_served_after_a_load(tmp_path: Path) -> None:
    add(tmp_path, "m", plus(1))
    with ServerProcess(tmp_path, EXPLICIT, "--load-model=m") as process:
        add(tmp_path, "m", plus(2), version="2")
        assert control(process, "load", "m").status == 200
        assert answered(process, "m") == 2
        assert until(lambda: index(process.http).get("m:1", {}).get("reason") == "unloaded")
        answer = raw.ask(process.http, raw.get("/v2/models/m/versions/1"))
        assert (answer.status, answer.error) == (
            503, "Request for unknown model: 'm' version 1 is not at ready state",
        )  # fmt: skip


def test_config_override(tmp_path: Path) -> None:
    add(tmp_path, "m", plus(1))
    with ServerProcess(tmp_path, EXPLICIT, "--load-model=m") as process:
        given = config(process.http, "m")
        changed = {**given, "max_batch_size": 2, "dynamic_batching": {"preferred_batch_size": [2]}}
        assert control(process, "load", "m", config=json.dumps(changed)).status == 200
        assert config(process.http, "m")["max_batch_size"] == 2
        answer = raw.ask(process.http, raw.infer_json("m", [1, 2, 3], shape=[3, 1]))
        assert answer.status == 400
        assert control(process, "load", "m").status == 200
        assert config(process.http, "m") == given


def test_file_override_with_the_flag(tmp_path: Path) -> None:
    add(tmp_path, "m", plus(1))
    content = base64.b64encode(plus(33)).decode()
    with ServerProcess(tmp_path, EXPLICIT, "--load-model=m", "--allow-code-upload=true") as process:
        answer = control(process, "load", "m", **{"file:1/model.onnx": content})
        text = "Load parameter 'config' must be specified for model file override"
        assert (answer.status, answer.error) == (400, text)
        for path in ("../x", "1/../../x", "/etc/x"):
            answer = control(process, "load", "m", config='{"backend":"onnxruntime"}', **{f"file:{path}": content})
            assert answer.status == 400, path
        parameters = {"config": '{"backend":"onnxruntime"}', "file:1/model.onnx": content}
        assert control(process, "load", "m", **parameters).status == 200
        assert answered(process, "m") == 33
        assert control(process, "load", "m").status == 200
        assert answered(process, "m") == 1


# ---- under load


def test_no_request_fails_in_many_reloads(tmp_path: Path) -> None:
    folder = add(tmp_path, "m", plus(0))
    stop = threading.Event()
    failed: list[str] = []
    seen: list[set[float]] = [set(), set(), set()]

    def ask(k: int, address: tuple[str, int]) -> None:
        request = raw.infer_json("m", [0])
        with raw.Client(address) as client:
            while not stop.is_set():
                answer = client.ask(request)
                if answer.status != 200:
                    failed.append(answer.error)
                    return
                seen[k].add(raw.values_of(answer)[0])

    with ServerProcess(tmp_path, EXPLICIT, "--load-model=m") as process:
        threads = [threading.Thread(target=ask, args=(k, process.http)) for k in range(3)]
        for thread in threads:
            thread.start()
        try:
            for i in range(1, RELOADS + 1):
                (folder / "1" / "model.onnx").write_bytes(plus(i))
                assert control(process, "load", "m").status == 200
                # From the answer of the load on, the new file answers.
                assert answered(process, "m") == i
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert failed == []
        assert all(len(values) > 1 for values in seen)
        assert [row["version"] for row in index(process.http).values()] == ["1"]


def test_unload_finishes_what_is_in_flight(tmp_path: Path) -> None:
    repository(tmp_path, Model("m", delay_ms=150, max_batch=1))
    answers: list[raw.Answer] = []
    with ServerProcess(tmp_path, EXPLICIT, "--load-model=m") as process:

        def ask() -> None:
            answers.append(raw.ask(process.http, raw.infer_json("m", [1])))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert until(lambda: pending(process, "m") >= 2)
        assert control(process, "unload", "m").status == 200
        for thread in threads:
            thread.join()
    assert [answer.status for answer in answers] == [200] * 4


def test_loads_and_unloads_from_several_threads(tmp_path: Path) -> None:
    repository(tmp_path, Model("a"), Model("b"))
    statuses: list[int] = []
    with ServerProcess(tmp_path, EXPLICIT, "--load-model=*") as process:

        def work(k: int) -> None:
            for i in range(20):
                verb = "load" if (i + k) % 2 else "unload"
                statuses.append(control(process, verb, "ab"[(i // 2 + k) % 2]).status)

        threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert statuses == [200] * 80
        for name in "ab":
            assert control(process, "load", name).status == 200
            assert raw.values_of(raw.ask(process.http, raw.infer_json(name, [1]))) == [1]


def test_many_that_wait_for_one_model_hold_up_no_other(tmp_path: Path) -> None:
    gated = Gated(tmp_path, "slow")
    with ServerProcess(gated.models, EXPLICIT) as process:
        clients = [raw.Client(process.http) for _ in range(100)]
        for client in clients:
            client.send(raw.post("/v2/repository/models/slow/load", b""))
        assert gated.saw("initializing", 1)
        assert control(process, "load", "m").status == 200
        assert control(process, "unload", "m").status == 200
        gated.open("loaded")
        assert [client.answer().status for client in clients] == [200] * 100
        for client in clients:
            client.close()
        assert len(gated.notes("initializing")) == 1


# ---- versions and repositories


@pytest.mark.parametrize(
    ("policy", "served"),
    [
        ("", [10]),
        ("latest { num_versions: 2 }", [3, 10]),
        ("all {}", [1, 2, 3, 10]),
        ("specific { versions: [1, 3] }", [1, 3]),
        ("specific { versions: [2, 99] }", [2]),
    ],
)
def test_version_policy(tmp_path: Path, policy: str, served: list[int]) -> None:
    for version in (1, 2, 3, 10):
        add(tmp_path, "m", plus(version), f"version_policy {{ {policy} }}" if policy else None, version=str(version))
    (tmp_path / "m" / "notes").mkdir()
    (tmp_path / "m" / "07").mkdir()
    with ServerProcess(tmp_path) as process:
        metadata = raw.ask(process.http, raw.get("/v2/models/m")).json()
        assert metadata["versions"] == [str(version) for version in served]
        assert answered(process, "m") == max(served)
        for version in (1, 2, 3, 10):
            request = raw.infer_json("m", [0]).replace(b"/m/infer", f"/m/versions/{version}/infer".encode())
            answer = raw.ask(process.http, request)
            if version in served:
                assert raw.values_of(answer) == [version]
                assert answer.json()["model_version"] == str(version)
            else:
                assert answer.status == 404


@pytest.fixture
def repositories(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    first, second = tmp_path / "first", tmp_path / "second"
    repository(first, Model("a"), Model("both"))
    repository(second, Model("b"), Model("both"))
    return first, second


def test_two_repositories(repositories: tuple[Path, Path]) -> None:
    first, second = repositories
    with ServerProcess(first, f"--model-repository={second}", "--exit-on-error=false") as process:
        rows = index(process.http)
        assert [rows[name]["state"] for name in ("a", "b")] == ["READY", "READY"]
        assert rows["both"] == {
            "name": "both", "version": "-1", "state": "UNAVAILABLE",
            "reason": "model appears in two or more repositories",
        }  # fmt: skip
        answer = raw.ask(process.http, raw.infer_json("both", [1]))
        assert answer.status == 404
        assert raw.values_of(raw.ask(process.http, raw.infer_json("b", [1]))) == [1]


def test_two_repositories_load(repositories: tuple[Path, Path]) -> None:
    first, second = repositories
    with ServerProcess(first, f"--model-repository={second}", EXPLICIT) as process:
        answer = control(process, "load", "both")
        assert answer.status == 500
        assert answer.error.startswith("failed to load 'both', failed to poll from model repository")
        assert control(process, "load", "b").status == 200


# ---- failures at start


def start(root: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run a server that must end by itself."""
    argv = [
        sys.executable, "-m", "triton_fast", f"--model-repository={root}", "--http-address=127.0.0.1", "--http-port=0",
        "--metrics-port=0", "--allow-grpc=false", *flags,
    ]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(argv, capture_output=True, text=True, timeout=EXIT_TIMEOUT_S, env=env, check=False)


def test_exit_on_error(tmp_path: Path) -> None:
    add(tmp_path, "good", plus(1))
    add(tmp_path, "bad", b"nonsense")
    ended = start(tmp_path)
    assert ended.returncode == 1
    assert "error: creating server: Internal - failed to load all models" in ended.stderr
    assert "Started HTTPService" not in ended.stdout
    row = next(line for line in ended.stdout.splitlines() if line.startswith("| bad "))
    assert "UNAVAILABLE: " in row
    assert any(line.startswith("| good ") and "READY" in line for line in ended.stdout.splitlines())


def test_exit_on_error_of_a_named_model(tmp_path: Path) -> None:
    repository(tmp_path, Model("a"))
    ended = start(tmp_path, EXPLICIT, "--load-model=nobody")
    assert ended.returncode == 1
    assert "nobody" in ended.stderr


@pytest.mark.parametrize("flags", [["--load-model=a"], [EXPLICIT, "--load-model=*", "--load-model=a"]])
def test_refused_flags(tmp_path: Path, flags: list[str]) -> None:
    repository(tmp_path, Model("a"))
    ended = start(tmp_path, *flags)
    assert ended.returncode == 1
    assert "load-model" in ended.stderr or "Wildcard" in ended.stderr


def test_a_repository_that_is_not_there(tmp_path: Path) -> None:
    ended = start(tmp_path / "nowhere")
    assert ended.returncode == 1
    assert "nowhere" in ended.stderr


# ---- a warm-up that would take hours


def test_a_long_warm_up_ends_with_an_unload_and_with_the_server(tmp_path: Path) -> None:
    sample = "inputs { key: 'INPUT0' value { data_type: TYPE_FP32 dims: [ 1 ] zero_data: true } }"
    repository(tmp_path, Model("m", extra=f"model_warmup {{ name: 'w' batch_size: 1 count: 4294967295 {sample} }}"))

    def load() -> threading.Thread:
        thread = threading.Thread(target=lambda: answers.append(control(process, "load", "m")))
        thread.start()
        assert until(lambda: index(process.http)["m"].get("state") == "LOADING")
        return thread

    answers: list[raw.Answer] = []
    with ServerProcess(tmp_path, EXPLICIT) as process:
        loading = load()
        assert control(process, "unload", "m").status == 200
        loading.join()
        (answer,) = answers
        assert answer.status == 400
        assert b"the load was given up before warmup sample 'w' had run" in answer.body
        assert index(process.http)["m"]["state"] == "UNAVAILABLE"
        loading = load()
        process.signal()
        assert process.wait() == 0
    loading.join()
