"""The SageMaker front end: ping, invocations by environment, binary bodies, and multi-model endpoints on real files."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import raw
from tests.helpers.clouds import SAGEMAKER, TARGET, binary, binary_values, infer
from tests.helpers.server import LocalServer, Model, repository, until, with_repeat
from triton_fast.frontends.http import sagemaker_models

FLAG = "--allow-sagemaker=1"
DEFAULT = "SAGEMAKER_TRITON_DEFAULT_MODEL_NAME"
TYPE = "SAGEMAKER_TRITON_INFERENCE_TYPE"
PING = "SAGEMAKER_TRITON_PING_MODE"
CALL = "/invocations"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_repeat(repository(tmp_path_factory.mktemp("sagemaker"), Model("m"), Model("n")))


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[LocalServer]:
    with LocalServer(root, FLAG, "--http-header-forward-pattern=.*", env={DEFAULT: "m"}) as served:
        yield served


# ---- one model


def test_ping(server: LocalServer) -> None:
    answer = raw.ask(server.sagemaker, raw.get("/ping"))
    assert (answer.status, answer.body) == (200, b"")
    assert raw.ask(server.sagemaker, raw.get("/ping", method="HEAD")).status == 200
    answer = raw.ask(server.sagemaker, raw.post("/ping"))
    assert (answer.status, answer.error) == (405, "Method Not Allowed")


@pytest.mark.parametrize(("mode", "status"), [("ready", 400), ("live", 200), ("other", 400)])
def test_ping_modes(root: Path, mode: str, status: int) -> None:
    """Live, but not ready: one of the models is not there any more."""
    with LocalServer(root, FLAG, env={PING: mode, DEFAULT: "m"}) as server:
        assert (raw.ask(server.sagemaker, raw.get("/ping")).status == 200) is (mode != "other")
        server.server.plane.started = False
        assert raw.ask(server.sagemaker, raw.get("/ping")).status == status


def test_invocations(server: LocalServer) -> None:
    with raw.Client(server.sagemaker) as client:
        for n in range(5):
            answer = client.ask(infer(CALL, [n, 2]))
            assert (answer.json()["model_name"], raw.values_of(answer)) == ("m", [n, 2])
            answer = client.ask(binary(CALL, SAGEMAKER, [n, 0.5]))
            assert binary_values(answer, SAGEMAKER) == [n, 0.5]
    assert raw.ask(server.sagemaker, raw.get(CALL)).status == 405


def test_errors_are_those_of_infer(server: LocalServer) -> None:
    for body in (b"", b"{", b"{}", b'{"inputs": 1}', infer(CALL, [1, 2], shape=[1, 3]).partition(b"\r\n\r\n")[2]):
        there = raw.ask(server.http, raw.post(raw.infer_path("m"), body))
        here = raw.ask(server.sagemaker, raw.post(CALL, body))
        assert (here.status, here.body) == (there.status, there.body)
        assert here.status in (400, 500)


def test_bad_binary_type(server: LocalServer) -> None:
    answer = raw.ask(server.sagemaker, binary(CALL, SAGEMAKER, [1], size="0x"))
    assert (answer.status, answer.error) == (400, "Unable to parse inference header size, got: 0x")
    answer = raw.ask(server.sagemaker, infer(CALL, [1], f"Content-Type: a {SAGEMAKER}1"))
    text = f"expect MIME type for binary data starts with '{SAGEMAKER}', got: a {SAGEMAKER}1"
    assert (answer.status, answer.error) == (400, text)


def test_no_compression_and_nothing_forwarded(server: LocalServer) -> None:
    headers = "Accept-Encoding: gzip", "Content-Encoding: gzip", "priority: 1"
    answer = raw.ask(server.sagemaker, infer(CALL, [1], *headers))
    assert raw.values_of(answer) == [1]
    assert "content-encoding" not in answer.headers
    packed = gzip.compress(infer(CALL, [1]).partition(b"\r\n\r\n")[2])
    assert raw.ask(server.sagemaker, raw.post(CALL, packed, "Content-Encoding: gzip")).status == 500


GENERATE = {"IN": [1, 2], "DELAY": [0, 0], "WAIT": 0}


def test_generate(root: Path) -> None:
    with LocalServer(root, FLAG, env={DEFAULT: "m", TYPE: "generate"}) as server:
        there = raw.ask(server.http, raw.generate("m", {"INPUT0": [1.5]}))
        here = raw.ask(server.sagemaker, raw.post(CALL, json.dumps({"INPUT0": [1.5]}).encode()))
        assert (here.status, here.body, here.headers) == (200, there.body, there.headers)


def test_generate_stream(root: Path) -> None:
    with LocalServer(root, FLAG, env={DEFAULT: "repeat", TYPE: "generate_stream"}) as server:
        answer = raw.ask(server.sagemaker, raw.post(CALL, json.dumps(GENERATE).encode(), "Content-Encoding: gzip"))
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert [event["OUT"] for event in answer.events] == [1, 2]


def test_a_decoupled_model_and_infer(root: Path) -> None:
    with LocalServer(root, FLAG, env={DEFAULT: "repeat"}) as server:
        assert raw.ask(server.sagemaker, infer(CALL, [1])).status == 501


def test_a_bad_type(root: Path) -> None:
    with LocalServer(root, FLAG, env={DEFAULT: "m", TYPE: "embed"}) as server:
        answer = raw.ask(server.sagemaker, infer(CALL, [1]))
        text = "Server has invalid inference type 'embed'. Must be one of: infer, generate, generate_stream."
        assert (answer.status, answer.error) == (400, text)


def test_no_default_model(root: Path) -> None:
    with LocalServer(root, FLAG, env={}) as server:
        answer = raw.ask(server.sagemaker, infer(CALL, [1]))
        text = "Request for unknown model: 'unspecified_SAGEMAKER_TRITON_DEFAULT_MODEL_NAME' is not found"
        assert (answer.status, answer.error) == (404, text)


@pytest.mark.parametrize("path", ["/", "/v2", "/v2/health/ready", "/v2/models/m/infer", "/v2/repository/index",
    "/metrics", "/ping/", "//ping", "/PING", "/ping;a", "/invocations/", "/models/", "/models/m/", "/models/m/infer",
    "/models/m/invoke/", "/models//invoke", "/%6dodels"])  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
def test_other_paths(server: LocalServer, path: str, method: str) -> None:
    body = infer(path, [1]).partition(b"\r\n\r\n")[2]
    answer = raw.ask(server.sagemaker, raw.get(path, f"Content-Length: {len(body)}", method=method) + body)
    assert (answer.status, answer.body) == (400, b"")


@pytest.mark.parametrize(("method", "path"), [("PUT", "/models"), ("DELETE", "/models"), ("PATCH", "/models/m"),
    ("POST", "/models/m"), ("GET", "/models/m/invoke"), ("DELETE", "/models/m/invoke")])  # fmt: skip
def test_other_methods(server: LocalServer, method: str, path: str) -> None:
    answer = raw.ask(server.sagemaker, raw.get(path, method=method))
    assert (answer.status, answer.body) == (400, b"")


# ---- many models


class Endpoint:
    """A server in explicit mode over the directory that stands in for /opt/ml/models."""

    def __init__(self, server: LocalServer, models: Path) -> None:
        self.server, self.models, self.address = server, models, server.sagemaker

    def put(self, hashed: str, *models: Model) -> str:
        """Lay an archive's content out; return its URL."""
        repository(self.models / hashed / "model", *models)
        return f"{self.models}/{hashed}/model"

    def load(self, name: str, url: object, *headers: str) -> raw.Answer:
        body = json.dumps({"model_name": name, "url": url}).encode()
        return raw.ask(self.address, raw.post("/models", body, *headers))

    def unload(self, name: str) -> raw.Answer:
        return raw.ask(self.address, raw.get(f"/models/{name}", method="DELETE"))

    def listing(self) -> Any:
        return raw.ask(self.address, raw.get("/models")).json()["models"]

    def call(self, name: str, values: list[float], *headers: str) -> raw.Answer:
        return raw.ask(self.address, infer(f"/models/{name}/invoke", values, *headers))


@pytest.fixture
def endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    (tmp_path / "own").mkdir()
    (tmp_path / "ml").mkdir()
    monkeypatch.setattr(sagemaker_models, "ROOT", str(tmp_path / "ml"))
    with LocalServer(tmp_path / "own", FLAG, "--model-control-mode=explicit") as server:
        yield Endpoint(server, tmp_path / "ml")


def test_load_invoke_unload(endpoint: Endpoint) -> None:
    url = endpoint.put("h1", Model("anything"))
    assert endpoint.listing() == []
    assert endpoint.call("a", [1]).status == 404
    answer = endpoint.load("a", url)
    assert (answer.status, answer.body) == (200, b"")
    entry = {"modelName": "a", "modelUrl": url}
    assert endpoint.listing() == [entry]
    assert raw.ask(endpoint.address, raw.get("/models/a")).json() == entry
    answer = raw.ask(endpoint.address, raw.get("/models/b"))
    assert (answer.status, answer.body) == (404, b"")
    with raw.Client(endpoint.address) as client:
        for n in range(4):
            request = infer("/models/a/invoke", [n])
            answer = client.ask(request)
            assert (answer.json()["model_name"], raw.values_of(answer)) == ("a", [n])
            assert binary_values(client.ask(binary("/models/a/invoke", SAGEMAKER, [n])), SAGEMAKER) == [n]
        answer = endpoint.unload("a")
        assert (answer.status, answer.body) == (200, b"")
        assert endpoint.listing() == []
        # Byte for byte what was answered before.
        answer = client.ask(request)
        assert (answer.status, answer.body) == (404, b"")
    assert endpoint.unload("a").status == 404
    assert endpoint.load("a", url).status == 200


def test_the_model_is_the_directory(endpoint: Endpoint) -> None:
    folder = endpoint.models / "h2" / "model"
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(Model("model").config())
    assert endpoint.load("b", str(folder)).status == 200
    assert raw.values_of(endpoint.call("b", [2])) == [2]
    assert endpoint.listing() == [{"modelName": "b", "modelUrl": str(folder.parent)}]
    assert endpoint.unload("b").status == 200


def test_the_header_names_the_model(endpoint: Endpoint) -> None:
    url = endpoint.put("h3", Model("x"))
    assert endpoint.load("hash", url, f"{TARGET}: c.tar.gz").status == 200
    answer = endpoint.call("hash", [3], f"{TARGET}: c.tar.gz")
    assert (answer.json()["model_name"], raw.values_of(answer)) == ("c.tar.gz", [3])
    assert raw.values_of(endpoint.call("hash", [4])) == [4]
    assert endpoint.call("hash", [3], f"{TARGET}: other").status == 404
    assert endpoint.call("c.tar.gz", [3]).status == 404
    assert endpoint.listing() == [{"modelName": "hash", "modelUrl": url}]
    assert endpoint.unload("hash").status == 200
    assert raw.ask(endpoint.server.http, raw.get("/v2/models/c.tar.gz/ready")).status == 400


def test_conflicts(endpoint: Endpoint) -> None:
    url, other = endpoint.put("h4", Model("x")), endpoint.put("h5", Model("x"))
    assert endpoint.load("d", url).status == 200
    for name, again, headers in (("d", url, ()), ("d", other, ()), ("e", url, ()), ("e", other, (f"{TARGET}: d",))):
        answer = endpoint.load(name, again, *headers)
        assert answer.status == 409, answer.body
        assert answer.error
    assert raw.values_of(endpoint.call("d", [1])) == [1]
    assert endpoint.load("e", other).status == 200
    assert raw.values_of(endpoint.call("e", [1])) == [1]


def test_refused_urls(endpoint: Endpoint) -> None:
    for url in ("", "/etc", f"{endpoint.models}/h/../../etc", f"{endpoint.models}/h/models", "/proc/self/root/model"):
        answer = endpoint.load("f", url)
        form = f"expected a path of the form {endpoint.models}/<hash>/model[/<subdir>]"
        assert (answer.status, answer.error) == (400, f"Invalid \"url\" '{url}': {form}")
    answer = endpoint.load("f", 7)
    assert (answer.status, answer.error) == (400, "Unable to parse 'url': attempt to access JSON non-string as string")
    assert endpoint.load("f", f"{endpoint.models}/none/model").status == 400
    assert raw.ask(endpoint.address, raw.post("/models", b"{")).status == 400
    assert raw.ask(endpoint.address, raw.post("/models")).status == 400
    assert endpoint.listing() == []


def test_refused_names(endpoint: Endpoint) -> None:
    url = endpoint.put("h6", Model("x"))
    for name in ("", "..", "a/b", "../x", "a\0b"):
        assert endpoint.load(name, url).status == 400, name
        assert endpoint.load("g", url, f"{TARGET}: ../{name[:1]}x".replace("\0", "")).status == 400
    assert endpoint.listing() == []
    assert endpoint.load("g", url).status == 200


def test_a_model_that_does_not_load(endpoint: Endpoint) -> None:
    url = endpoint.put("h7", Model("x", extra="max_batch_size_: 1"))
    answer = endpoint.load("i", url)
    assert answer.status == 400
    assert "i" in answer.error
    assert endpoint.listing() == []
    (endpoint.models / "h7" / "model" / "x" / "config.pbtxt").write_text(Model("x").config())
    assert endpoint.load("i", url).status == 200


def test_out_of_memory(endpoint: Endpoint) -> None:
    """The status at which SageMaker makes room."""
    folder = endpoint.models / "h8" / "model" / "x"
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text('backend: "python"\n')
    model = (
        "class TritonPythonModel:\n    def initialize(self, args):\n        raise MemoryError('CUDA out of memory')\n"
    )
    (folder / "1" / "model.py").write_text(model)
    answer = endpoint.load("j", str(folder.parent))
    assert answer.status == 507, answer.body
    assert "out of memory" in answer.error
    assert endpoint.listing() == []


def test_an_ensemble_with_its_members(endpoint: Endpoint) -> None:
    url = endpoint.put("h9", Model("first"), Model("last"))
    folder = endpoint.models / "h9" / "model" / "all"
    (folder / "1").mkdir(parents=True)
    tensors = "".join(
        f'{side} [{{ name: "{side.upper()}0" data_type: TYPE_FP32 dims: [-1] }}]\n' for side in ("input", "output")
    )
    steps = "".join(
        f'step [{{ model_name: "{model}" model_version: -1 input_map {{ key: "INPUT0" value: "{given}" }} '
        f'output_map {{ key: "OUTPUT0" value: "{made}" }} }}]\n'
        for model, given, made in (("first", "INPUT0", "between"), ("last", "between", "OUTPUT0"))
    )
    (folder / "config.pbtxt").write_text(
        f'platform: "ensemble"\nmax_batch_size: 8\n{tensors}\nensemble_scheduling {{\n{steps}}}\n'
    )
    assert endpoint.load("k", url).status == 200
    answer = endpoint.call("k", [1, 2])
    assert (answer.json()["model_name"], raw.values_of(answer)) == ("k", [1, 2])
    assert endpoint.unload("k").status == 200
    # Its members go too, in their own time.
    summary = endpoint.server.server.repository.summary
    assert until(lambda: all(status.startswith("UNAVAILABLE") for _, _, status in summary()))


def test_not_ready(endpoint: Endpoint) -> None:
    assert endpoint.load("l", endpoint.put("h10", Model("x"))).status == 200
    endpoint.server.server.plane.unload_model("l")
    assert endpoint.listing() == [{}]
    assert raw.ask(endpoint.address, raw.get("/models/l")).json()["modelName"] == "l"
    assert endpoint.call("l", [1]).status == 404
    assert endpoint.unload("l").status == 200
    assert endpoint.listing() == []


def test_an_unload_waits_for_requests_in_flight(endpoint: Endpoint) -> None:
    slow = Model("x", max_batch=1, delay_ms=300, extra="instance_group [{ count: 1 kind: KIND_CPU }]")
    assert endpoint.load("o", endpoint.put("h11", slow)).status == 200
    with raw.several(endpoint.address, 3) as clients:
        for client in clients:
            client.send(infer("/models/o/invoke", [6]))
        assert until(lambda: endpoint.server.server.plane.native_model("o", -1).snapshot()["pending"] > 0)
        order: list[str] = []
        ended = threading.Thread(target=lambda: order.append(f"unload {endpoint.unload('o').status}"))
        ended.start()
        order.extend(f"answer {raw.values_of(client.answer())}" for client in clients)
        ended.join()
    assert sorted(order) == ["answer [6.0]"] * 3 + ["unload 200"] or sorted(order) == ["answer [6]"] * 3 + [
        "unload 200"
    ]
    assert endpoint.listing() == []


def test_without_model_control(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sagemaker_models, "ROOT", str(tmp_path))
    repository(tmp_path / "h" / "model", Model("x"))
    with LocalServer(root, FLAG, env={DEFAULT: "m"}) as server:
        endpoint = Endpoint(server, tmp_path)
        assert endpoint.load("x", f"{tmp_path}/h/model").status == 400
        assert endpoint.listing() == []
