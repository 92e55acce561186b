"""The Python backend's server side within a whole server: stand-in workers, an engine that echoes in their place.

What is looked at is what surrounds inference: readiness over HTTP and gRPC, metrics, model control, directories of
Python-based backends.
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.helpers import raw, standin
from tests.helpers.server import LocalServer
from tests.helpers.standin import FakeChannel, FakeInstance, until
from triton_fast._native.sched.pyinstance import PyInstance
from triton_fast.backends.python import native, plan
from triton_fast.backends.python.supervisor import shared

CONFIG = """
backend: "%s"
input { name: "I" data_type: TYPE_FP32 dims: 1 }
output { name: "O" data_type: TYPE_FP32 dims: 1 }
"""
WAITING = """
import os, time
def is_ready(worker):
    folder = worker.context["model_dir"]
    open(os.path.join(folder, "asked"), "w").close()
    while not os.path.exists(os.path.join(folder, "go")): time.sleep(0.01)
    return open(os.path.join(folder, "go")).read() != "no"
"""
METRICS = """
def init(worker, message):
    worker.call({"type": "metric_family", "family": 1, "name": "own_total", "description": "d", "kind": "counter"})
    worker.call({"type": "metric", "metric": 1, "family": 1, "labels": {}, "buckets": None})
    worker.send({"type": "metric_update", "metric": 1, "op": "increment", "value": 3})
"""


@pytest.fixture
def instances(monkeypatch, tmp_path):
    """The fake instances that were made, by name; real workers, an engine that answers in their place."""
    made = {}

    def make(name, model, resolve):
        made[name] = FakeInstance(name, model, resolve)
        return made[name]

    def echo(requests):
        return [{"O": (11, request["I"][1], bytes(request["I"][2]))} for request in requests]

    fake = SimpleNamespace(channel=FakeChannel, instance=make, as_native=lambda one: PyInstance(echo, one.name))
    monkeypatch.setattr(native, "engine", lambda wait_s: fake)
    folder = tmp_path / "worker"
    folder.mkdir()
    monkeypatch.setattr(plan, "WORKER", standin.write(folder))
    yield made
    assert shared().join(standin.WAIT_S)


def repository(root: Path, **models: str) -> Path:
    for name, code in models.items():
        (root / name / "1").mkdir(parents=True)
        (root / name / "1" / "model.py").write_text(code)
        (root / name / "config.pbtxt").write_text(CONFIG % "python")
    return root


def status(server: LocalServer, path: str) -> int:
    with raw.Client(server.http) as client:
        return client.ask(raw.get(path)).status


def body(address, path: str) -> bytes:
    with raw.Client(address) as client:
        return client.ask(raw.get(path)).body


def test_a_dead_worker_is_not_ready_and_comes_back(tmp_path, instances):
    root = repository(tmp_path / "models", m="", other="")
    with LocalServer(root) as server:
        assert status(server, "/v2/models/m/ready") == 200
        assert status(server, "/v2/health/ready") == 200
        (tmp_path / "models" / "m" / "1" / "model.py").write_text("def init(w, m): raise ValueError('not yet')")
        runtime = server.server.repository.resolve("m")
        (one,) = runtime._model._instances.values()
        os.kill(one._process.pid, signal.SIGKILL)
        instances["m_0"].saw("give_up")
        assert status(server, "/v2/models/m/ready") == 400
        assert status(server, "/v2/health/ready") == 400
        assert status(server, "/v2/models/other/ready") == 200
        with grpc.insecure_channel("{}:{}".format(*server.grpc)) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            assert not stub.ModelReady(service_pb2.ModelReadyRequest(name="m")).ready
            assert not stub.ServerReady(service_pb2.ServerReadyRequest()).ready
            (tmp_path / "models" / "m" / "1" / "model.py").write_text("")
            instances["m_0"].saw("attach", 2)
            until(lambda: stub.ServerReady(service_pb2.ServerReadyRequest()).ready)
        assert status(server, "/v2/models/m/ready") == 200
        restarts = b'triton_fast_worker_restarts_total{model="m",version="1"} 1\n'
        until(lambda: restarts in body(server.metrics, "/metrics"))  # counted after it is ready


def test_a_check_that_waits_does_not_hold_the_loop(tmp_path, instances):
    root = repository(tmp_path / "models", m=WAITING)
    folder = root / "m"
    with LocalServer(root) as server:
        results = []
        asking = threading.Thread(target=lambda: results.append(status(server, "/v2/models/m/ready")))
        asking.start()
        until((folder / "asked").exists)
        # The model has not answered yet.
        assert status(server, "/v2/health/live") == 200
        assert not results
        (folder / "go").touch()
        asking.join(standin.WAIT_S)
        assert results == [200]
        (folder / "go").write_text("no")
        assert status(server, "/v2/models/m/ready") == 400
        assert status(server, "/v2/health/ready") == 400


def test_metrics_of_a_model_are_on_the_page_until_it_is_unloaded(tmp_path, instances):
    root = repository(tmp_path / "models", m=METRICS)
    with LocalServer(root, "--model-control-mode=explicit", "--load-model=m") as server:
        until(lambda: b"\nown_total 3\n" in body(server.metrics, "/metrics"))
        with raw.Client(server.http) as client:
            assert client.ask(raw.post("/v2/repository/models/m/unload")).status == 200
        until(lambda: b"own_total" not in body(server.metrics, "/metrics"))


def test_a_model_loads_another_and_not_itself(tmp_path, instances):
    code = """
import os
def init(worker, message):
    folder = worker.context["model_dir"]
    for name in ("other", "m", "nothing"):
        with open(os.path.join(folder, name), "w") as file:
            file.write(str(worker.call({"type": "load_model", "model": name, "config": "", "files": []})))
"""
    root = repository(tmp_path / "models", m=code, other="")
    with LocalServer(root, "--model-control-mode=explicit", "--model-load-thread-count=1") as server:
        with raw.Client(server.http) as client:
            assert client.ask(raw.post("/v2/repository/models/m/load")).status == 200
        assert status(server, "/v2/models/other/ready") == 200
        assert (root / "m" / "other").read_text() == "None"
        assert "would wait for itself: m -> m" in (root / "m" / "m").read_text()
        assert "failed to poll from model repository" in (root / "m" / "nothing").read_text()


def test_a_python_based_backend_serves_its_models(tmp_path, instances):
    own = tmp_path / "backends" / "mine"
    own.mkdir(parents=True)
    (own / "model.py").write_text("def init(worker, message): print(worker.context['version_dir'], flush=True)")
    root = tmp_path / "models"
    (root / "m" / "1").mkdir(parents=True)
    (root / "m" / "config.pbtxt").write_text(CONFIG % "mine")
    with LocalServer(root, f"--backend-directory={tmp_path / 'backends'}") as server:
        assert status(server, "/v2/models/m/ready") == 200
        assert server.server.repository.resolve("m").config.runtime == "model.py"


def test_a_worker_that_fails_to_start_is_that_models_load_error(tmp_path, instances):
    bad = "import os\ndef init(worker, message): os._exit(4)"
    root = repository(tmp_path / "models", bad=bad, good="")
    with LocalServer(root) as server:
        assert status(server, "/v2/models/good/ready") == 200
        with raw.Client(server.http) as client:
            reply = client.ask(raw.post("/v2/repository/index"))
    assert b"Stub process 'bad_0' is not healthy. The worker process exited with code 4" in reply.body
