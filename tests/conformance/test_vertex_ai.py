"""The Vertex AI front end: environment, default model, predict, binary bodies, every redirect, everything else."""

from __future__ import annotations

import contextlib
import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import raw
from tests.helpers.clouds import AIP, HEALTH, PREDICT, REDIRECT, VERTEX, binary, binary_values, infer
from tests.helpers.server import LocalServer, Model, ServerProcess, repository, with_repeat
from triton_fast.frontends import keyfile

FLAGS = ("--allow-vertex-ai=1", "--vertex-ai-default-model=m")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_repeat(repository(tmp_path_factory.mktemp("vertex"), Model("m"), Model("n"), Model("s", "BYTES")))


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[LocalServer]:
    with LocalServer(root, *FLAGS, "--http-header-forward-pattern=.*", env=AIP) as served:
        yield served


def redirect(to: str, body: bytes = b"", *headers: str) -> bytes:
    return raw.post(PREDICT, body, f"{REDIRECT}: {to}", *headers)


# ---- predict and health


def test_health(server: LocalServer) -> None:
    answer = raw.ask(server.vertex, raw.get(HEALTH))
    assert (answer.status, answer.body) == (200, b"")
    assert raw.ask(server.vertex, raw.get(HEALTH, method="HEAD")).status == 200
    assert raw.ask(server.vertex, raw.post(HEALTH)).status == 405


def test_predict(server: LocalServer) -> None:
    answer = raw.ask(server.vertex, infer(PREDICT, [1, 2], id="7"))
    assert answer.status == 200
    assert (answer.json()["model_name"], answer.json()["id"], raw.values_of(answer)) == ("m", "7", [1, 2])
    assert raw.ask(server.vertex, raw.get(PREDICT)).status == 405
    with raw.Client(server.vertex) as client:
        for n in range(5):
            assert raw.values_of(client.ask(infer(PREDICT, [n]))) == [n]


def test_binary(server: LocalServer) -> None:
    with raw.Client(server.vertex) as client:
        # The third is made from a plan, and so is its reply.
        for n in range(5):
            answer = client.ask(binary(PREDICT, VERTEX, [n, 2.5]))
            assert answer.status == 200
            assert binary_values(answer, VERTEX) == [n, 2.5]
            assert binary_values(
                client.ask(binary(PREDICT, VERTEX, [n], f"{REDIRECT}: v2/models/n/infer")), VERTEX
            ) == [n]


def test_a_large_binary_answer(server: LocalServer) -> None:
    values = [float(n) for n in range(300_000)]
    assert binary_values(raw.ask(server.vertex, binary(PREDICT, VERTEX, values)), VERTEX) == values


def test_an_answer_that_is_encoded_off_the_loop(root: Path, server: LocalServer) -> None:
    """More text than the loop's thread prints, beside a binary output: its head is made elsewhere."""
    text = "x" * 2_000_000
    tensor = {"name": "INPUT0", "datatype": "BYTES", "shape": [1, 1], "data": [text]}
    wanted = [{"name": "OUTPUT0", "parameters": {"binary_data": True}}]
    body = json.dumps({"inputs": [tensor], "outputs": wanted}).encode()
    answer = raw.ask(server.vertex, redirect("v2/models/s/infer", body))
    size = int(answer.headers["content-type"].removeprefix(VERTEX))
    assert answer.body[size + 4 :] == text.encode()
    twice = json.dumps({"inputs": [{**tensor, "shape": [2, 1], "data": [text, text]}]}).encode()
    answer = raw.ask(server.vertex, redirect("v2/models/s/infer", twice))
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["outputs"][0]["data"] == [text, text]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        ("", "Unable to parse inference header size, got: "),
        ("x", "Unable to parse inference header size, got: x"),
        ("9" * 30, f"Unable to parse inference header size, got: {'9' * 30}"),
        ("100000", "inference header size should be in range (0, {n}), got: 100000"),
        ("-1", "inference header size should be in range (0, {n}), got: -1"),
    ],
)
def test_bad_header_size(server: LocalServer, size: str, text: str) -> None:
    request = binary(PREDICT, VERTEX, [1], size=size)
    answer = raw.ask(server.vertex, request)
    assert (answer.status, answer.error) == (400, text.format(n=len(request.partition(b"\r\n\r\n")[2])))


def test_a_type_that_only_holds_the_binary_type(server: LocalServer) -> None:
    answer = raw.ask(server.vertex, infer(PREDICT, [1], f"Content-Type: text/{VERTEX}5"))
    text = f"expect MIME type for binary data starts with '{VERTEX}', got: text/{VERTEX}5"
    assert (answer.status, answer.error) == (400, text)


def test_raw_binary(server: LocalServer) -> None:
    answer = raw.ask(server.vertex, raw.post(PREDICT, raw.fp32([3, 4]), f"Content-Type: {VERTEX}0"))
    assert binary_values(answer, VERTEX) == [3, 4]


def test_headers_that_mean_something_on_the_http_port(server: LocalServer) -> None:
    """No other length of the JSON part, no compression either way, nothing forwarded."""
    answer = raw.ask(server.vertex, infer(PREDICT, [1], "Inference-Header-Content-Length: 3"))
    assert raw.values_of(answer) == [1]
    answer = raw.ask(
        server.vertex, infer(PREDICT, [1], "Accept-Encoding: gzip", "Content-Encoding: gzip", "priority: 1")
    )
    assert "content-encoding" not in answer.headers
    assert raw.values_of(answer) == [1]
    packed = gzip.compress(infer(PREDICT, [1]).partition(b"\r\n\r\n")[2])
    assert raw.ask(server.vertex, raw.post(PREDICT, packed, "Content-Encoding: gzip")).status == 500
    assert raw.ask(server.http, raw.infer_json("m", [1], "priority: 1")).status == 400


def test_chunked_and_old(server: LocalServer) -> None:
    body = infer(PREDICT, [5]).partition(b"\r\n\r\n")[2]
    assert raw.values_of(raw.ask(server.vertex, raw.chunked(PREDICT, [body[:9], body[9:]]))) == [5]
    answer = raw.ask(server.vertex, raw.post(PREDICT, body, version="1.0"))
    assert answer.closes
    assert raw.values_of(answer) == [5]


# ---- redirects

REACHED = {
    "v2": "/v2", "v2/health/live": "/v2/health/live", "v2/health/ready": "/v2/health/ready",
    "v2/models/n": "/v2/models/n", "v2/models/n/versions/1": "/v2/models/n/versions/1",
    "v2/models/n/ready": "/v2/models/n/ready", "v2/models/n/config": "/v2/models/n/config",
    "v2/models/n/versions/1/config": "/v2/models/n/versions/1/config",
    "v2/models/unknown": "/v2/models/unknown", "v2/models/n/stats": "/v2/models/n/stats",
    "v2/models/stats": "/v2/models/stats", "v2/systemsharedmemory/status": "/v2/systemsharedmemory/status",
    "v2/systemsharedmemory/region/r/status": "/v2/systemsharedmemory/region/r/status",
    "v2/cudasharedmemory/status": "/v2/cudasharedmemory/status",
}  # fmt: skip


@pytest.mark.parametrize("to", REACHED)
def test_redirect(server: LocalServer, to: str) -> None:
    """The answer is that of the HTTP port."""
    there, here = raw.ask(server.http, raw.get(REACHED[to])), raw.ask(server.vertex, redirect(to))
    assert (here.status, here.body) == (there.status, there.body)
    assert here.headers == there.headers
    assert raw.ask(server.vertex, raw.get(PREDICT, f"{REDIRECT}: {to}")).status == 405


def test_redirect_to_the_index(server: LocalServer) -> None:
    for body in (b"", b'{"ready": true}'):
        there = raw.ask(server.http, raw.post("/v2/repository/index", body))
        assert there.status == 200
        assert raw.ask(server.vertex, redirect("v2/repository/index", body)).body == there.body


def test_redirect_to_infer(server: LocalServer) -> None:
    for to in ("v2/models/n/infer", "v2/models/n/versions/1/infer", "v2/models/n/versions/0001/infer"):
        answer = raw.ask(server.vertex, infer(PREDICT, [3], f"{REDIRECT}: {to}"))
        assert (answer.json()["model_name"], raw.values_of(answer)) == ("n", [3])
    for to, status in (("v2/models/x/infer", 404), ("v2/models/n/versions/2/infer", 404),
                       (f"v2/models/n/versions/{'9' * 40}/infer", 400)):  # fmt: skip
        there = raw.ask(server.http, infer(f"/{to}", [3]))
        here = raw.ask(server.vertex, infer(PREDICT, [3], f"{REDIRECT}: {to}"))
        assert (here.status, here.body) == (there.status, there.body)
        assert here.status == status


def test_redirect_to_the_metrics(server: LocalServer) -> None:
    answer = raw.ask(server.vertex, redirect("metrics"))
    assert answer.status == 200
    assert b"nv_inference_request_success" in answer.body
    assert answer.headers["content-type"].startswith("text/plain")


def test_without_metrics(root: Path) -> None:
    with LocalServer(root, *FLAGS, "--allow-metrics=false", env=AIP) as server:
        assert raw.ask(server.vertex, redirect("metrics")).status == 400
        assert raw.values_of(raw.ask(server.vertex, infer(PREDICT, [1]))) == [1]


@pytest.mark.parametrize("to", ["v2/repository/models/m/load", "v2/repository/models/m/unload",
    "v2/repository/r/models/m/load", "v2/systemsharedmemory/region/r/register", "v2/systemsharedmemory/unregister",
    "v2/cudasharedmemory/region/r/register", "v2/cudasharedmemory/region/r/unregister"])  # fmt: skip
def test_redirects_that_change_something(root: Path, to: str) -> None:
    """Refused whatever the server allows elsewhere."""
    more = ("--model-control-mode=explicit", "--load-model=m", "--allow-client-shm=true")
    with LocalServer(root, *FLAGS, *more, env=AIP) as server:
        answer = raw.ask(server.vertex, redirect(to, b"{}"))
        assert (answer.status, answer.body) == (403, b"")
        assert raw.values_of(raw.ask(server.vertex, infer(PREDICT, [1]))) == [1]


@pytest.mark.parametrize("to", ["", "/", "/v2", "v2/", "V2", "v2/models", "v2/models/m/", "v2/models/m/generate",
    "v2/models/m/generate_stream", "v2/logging", "v2/trace/setting", "v2/models/m/trace/setting", "metrics/",
    "Metrics", "v2/health", "v2/models/m/versions/x", "v2/health/ready?a", "v2%2fhealth/ready",
    "http://t/v2"])  # fmt: skip
def test_redirects_to_nothing(server: LocalServer, to: str) -> None:
    answer = raw.ask(server.vertex, redirect(to, b"{}"))
    assert (answer.status, answer.body) == (400, b"")


def test_a_header_that_comes_twice(server: LocalServer) -> None:
    """The first counts, for routes of either kind."""
    answer = raw.ask(
        server.vertex, infer(PREDICT, [1], f"{REDIRECT}: v2/models/n/infer", f"{REDIRECT}: v2/models/m/infer")
    )
    assert answer.json()["model_name"] == "n"
    answer = raw.ask(server.vertex, redirect("v2/models/n", b"", f"{REDIRECT}: v2/models/m"))
    assert answer.json()["name"] == "n"


@pytest.mark.parametrize("path", ["/", "/v2", "/v2/health/ready", "/v2/models/m/infer", "/v2/models/m/generate",
    "/metrics", "/ping", "/invocations", PREDICT + "/", "/" + PREDICT, PREDICT.upper(), PREDICT.replace(":", "%3a"),
    HEALTH + "/", PREDICT + ";a=b", "/v1/endpoints/7/deployedModels/9xpredict"])  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
def test_other_paths(server: LocalServer, path: str, method: str) -> None:
    body = infer(path, [1]).partition(b"\r\n\r\n")[2]
    answer = raw.ask(server.vertex, raw.get(path, f"Content-Length: {len(body)}", method=method) + body)
    assert (answer.status, answer.body) == (400, b"")


# ---- start


@pytest.mark.parametrize(
    ("env", "flags", "text"),
    [
        ({"AIP_PREDICT_ROUTE": ""}, (), "API_PREDICT_ROUTE is not defined for Vertex AI endpoint"),
        ({"AIP_HEALTH_ROUTE": ""}, (), "AIP_HEALTH_ROUTE is not defined for Vertex AI endpoint"),
        ({}, ("--vertex-ai-default-model=x",), "Expect the default model 'x' is loaded"),
        ({}, (), "Expect the model repository contains only a single model if default model is not specified"),
    ],
)
def test_what_is_missing(root: Path, env: dict[str, str], flags: tuple[str, ...], text: str) -> None:
    process = ServerProcess(root, "--allow-vertex-ai=1", *flags, env={**AIP, **env}, exit_code=1)
    with contextlib.suppress(AssertionError), process:
        pytest.fail("the server has started")
    assert f"error: creating server: Invalid argument - {text}" in process.log()
    assert process.process.wait() == 1


def test_prediction_mode(tmp_path: Path) -> None:
    """Everything from the environment: the repository, no HTTP and no gRPC, the port, the only model."""
    repository(tmp_path, Model("only"))
    env = {**AIP, "AIP_MODE": "PREDICTION", "AIP_STORAGE_URI": str(tmp_path), "AIP_HTTP_PORT": "0"}
    process = ServerProcess(tmp_path, env=env)
    dropped = ("--model-repository", "--vertex-ai-port")
    process.argv = [argument for argument in process.argv if not argument.startswith(dropped)]
    with process:
        assert "Started Vertex AI HTTPService at 127.0.0.1:" in process.log()
        assert process.http[1] == process.grpc[1] == 0
        answer = raw.ask(process.vertex, infer(PREDICT, [4]))
        assert (answer.json()["model_name"], raw.values_of(answer)) == ("only", [4])
        assert raw.ask(process.vertex, raw.get(HEALTH)).status == 200


def test_a_redirect_counts_once(root: Path, tmp_path: Path) -> None:
    """Of the requests that a key may send."""
    text, key = keyfile.make(("admin",), rate=3)
    keyfile.add(tmp_path / "keys", key)
    with LocalServer(root, *FLAGS, f"--api-keys={tmp_path / 'keys'}", env=AIP) as server:
        keys = server.server.endpoints._keys
        assert keys is not None
        server.call(lambda: setattr(keys.gate, "now", 10**15))
        ask = raw.post(PREDICT, b"", f"{REDIRECT}: v2", f"X-Api-Key: {text}")
        assert [raw.ask(server.vertex, ask).status for _ in range(4)] == [200, 200, 200, 429]
