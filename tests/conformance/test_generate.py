"""POST .../generate and .../generate_stream over real sockets: answers, frames, statuses, keep-alive, who may ask."""

from __future__ import annotations

import gzip
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance import generate_cases
from tests.helpers import python_models, raw
from tests.helpers.raw import generate
from tests.helpers.server import LocalServer, Model, ServerProcess, repository, until, with_repeat

NOT_ONE = {
    "error": "generate expects model to produce exactly 1 response, use generate stream for model that generates "
    "various number of responses"
}
JSON, EVENTS = "application/json", "text/event-stream; charset=utf-8"
HOUR_MS = 3_600_000
LOAD_MODEL = '''
class TritonPythonModel:
    """Says of its KV cache what a TensorRT-LLM model says."""

    def initialize(self, args):
        kind = pb_utils.MetricFamily.GAUGE
        self.family = pb_utils.MetricFamily(name="nv_trt_llm_kv_cache_block_metrics", description="blocks", kind=kind)
        self.series = {
            name: self.family.Metric(labels={"kv_cache_block_type": name, "model": "load"})
            for name in ("tokens_per", "used", "max")
        }

    def execute(self, requests):
        for request in requests:
            used, most, tokens = pb_utils.get_input_tensor_by_name(request, "USED").as_numpy().tolist()
            self.series["used"].set(used)
            self.series["max"].set(most)
            self.series["tokens_per"].set(tokens)
        out = pb_utils.Tensor("OUT", np.array([1], np.int32))
        return [pb_utils.InferenceResponse([out]) for _ in requests]
'''


def repeat(values: list[int], delay: int = 0, wait: int = 0, **more: Any) -> dict[str, Any]:
    return {"IN": values, "DELAY": [delay] * len(values), "WAIT": wait, **more}


def tokens(values: list[int], **more: Any) -> list[dict[str, Any]]:
    said = {"model_name": "repeat", "model_version": "1", **more}
    return [{"IDX": i, "OUT": value, **said} for i, value in enumerate(values)]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("generate") / "models"
    python_models.write(root, only=("decoupled", "errors", "endless", "echo"))
    config = generate_cases.config(
        generate_cases.tensor("USED", "FP64", "3"), generate_cases.tensor("OUT", "INT32", "1")
    )
    python_models.model_of(root, "load", LOAD_MODEL, config)
    with ServerProcess(root) as process:
        yield process


# ---- answers


def test_a_plain_model(served: ServerProcess) -> None:
    for stream, kind in ((False, JSON), (True, EVENTS)):
        with raw.Client(served.http) as client:
            client.send(generate("id_int32", {"INPUT0": [1, 2], "id": "7"}, stream=stream))
            head = client.head()
            assert (head.status, head.headers) == (200, {"content-type": kind, "transfer-encoding": "chunked"})
            text = b'{"OUTPUT0":[1,2],"id":"7","model_name":"id_int32","model_version":"1"}'
            assert client.chunk() == (b"data: " + text + b"\n\n" if stream else text)
            assert client.chunk() == b""


def test_a_decoupled_model(served: ServerProcess) -> None:
    with raw.Client(served.http) as client:
        client.send(generate("repeat", repeat([5, 6, 7], id="q"), stream=True))
        assert client.head().headers == {"content-type": EVENTS, "transfer-encoding": "chunked"}
        # Each event is a chunk of its own, however many go out in one write.
        assert [json.loads(client.chunk()[6:]) for _ in range(3)] == tokens([5, 6, 7], id="q")
        assert client.chunk() == b""
    assert raw.ask(served.http, generate("repeat", repeat([9]))).json() == tokens([9])[0]


@pytest.mark.parametrize("values", [[], [1, 2], list(range(1000))])
def test_generate_wants_exactly_one_response(served: ServerProcess, values: list[int]) -> None:
    answer = raw.ask(served.http, generate("repeat", repeat(values)))
    assert (answer.status, answer.headers["content-type"], answer.json()) == (200, JSON, NOT_ONE)
    assert raw.ask(served.http, generate("repeat", repeat(values), stream=True)).events == tokens(values)


def test_the_versions_of_a_model(served: ServerProcess) -> None:
    body = json.dumps({"INPUT0": 1}).encode()
    for path, version in (("versions", "3"), ("versions/versions/2", "2"), ("versions/versions/0002", "2")):
        answer = raw.ask(served.http, raw.post(f"/v2/models/{path}/generate", body))
        assert answer.json() == {"OUTPUT0": 1, "model_name": "versions", "model_version": version}
        # The query counts for nothing.
        assert raw.ask(served.http, raw.post(f"/v2/models/{path}/generate_stream?a=/infer", body)).status == 200


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("nobody", 404, "Request for unknown model: 'nobody' is not found"),
        ("versions/versions/9", 404, "Request for unknown model: 'versions' version 9 is not found"),
        ("two/versions/" + "9" * 30, 400,
         f"invalid model version specified '{'9' * 30}' , version should be an integral value > 0"),
    ],
)  # fmt: skip
def test_models_that_are_not_there(served: ServerProcess, path: str, status: int, text: str) -> None:
    for kind in ("generate", "generate_stream"):
        answer = raw.ask(served.http, raw.post(f"/v2/models/{path}/{kind}", b"no json"))
        assert (answer.status, answer.headers["content-type"], answer.error) == (status, JSON, text)


def test_errors_before_inference_are_no_events(served: ServerProcess) -> None:
    for body, status, text in (
        ({"INPUT0": ["a"] * 4}, 500,
         "Unable to parse 'data': attempt to access JSON non-signed-integer as signed-integer"),
        ({"INPUT1": [1, 2, 3, 4]}, 400,
         "[request id: <id_unknown>] expected 2 inputs but got 1 inputs for model 'two'. Got input(s) ['INPUT1'], but "
         "missing required input(s) ['INPUT0']. Please provide all required input(s)."),
        ({"INPUT0": 1, "INPUT1": 1}, 400, "The schema can not convert input 'INPUT0' to tensor with proper shape"),
        ({"INPUT0": [1] * 20, "INPUT1": [1] * 20}, 400,
         "[request id: <id_unknown>] inference request batch-size must be <= 4 for 'two'"),
        (b"[]", 500, "attempt to get members for non-object"),
    ):  # fmt: skip
        for stream in (False, True):
            answer = raw.ask(served.http, generate("two", body, stream=stream))
            assert (answer.status, answer.headers["content-type"], answer.error) == (status, JSON, text)
            assert "transfer-encoding" not in answer.headers


def test_batches_and_matrices(served: ServerProcess) -> None:
    body = {"INPUT0": list(range(8)), "INPUT1": list(range(8))}
    assert raw.ask(served.http, generate("two", body)).json()["OUTPUT1"] == list(range(8))
    assert raw.ask(served.http, generate("plain", {"INPUT0": [1, 2, 3, 4]})).json()["OUTPUT0"] == [1.0, 2.0, 3.0, 4.0]
    assert raw.ask(served.http, generate("half_open", {"INPUT0": [1, 2, 3]})).json()["OUTPUT0"] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("kind", "value"),
    [("bool", True), ("uint8", 255), ("uint64", 2**64 - 1), ("int8", [-1, 1]), ("fp32", 0.5), ("fp64", [0.1, 1e300]),
     ("bytes", "é\n\0"), ("bytes", ["", "b"]), ("int64", -(2**63)), ("int32", [])],
)  # fmt: skip
def test_datatypes(served: ServerProcess, kind: str, value: Any) -> None:
    assert raw.ask(served.http, generate(f"id_{kind}", {"INPUT0": value})).json()["OUTPUT0"] == value


def test_halves_have_no_json(served: ServerProcess) -> None:
    for kind in ("fp16", "bf16"):
        answer = raw.ask(served.http, generate(f"id_{kind}", {"INPUT0": 1}))
        assert (answer.status, answer.error) == (
            400, f"receiving {kind.upper()} data via JSON is not supported. Please use the binary data format for "
            "input INPUT0")  # fmt: skip


# ---- Python models


def test_parameters_reach_the_model(python: ServerProcess) -> None:
    body = {"IN": 1, "id": "x", "temperature": 0.5, "n": 3, "parameters": {"stop": "end", "echo": True}, "timeout": 5}
    seen = json.loads(raw.ask(python.http, generate("echo", body)).json()["SEEN"])
    assert seen["id"] == "x"
    assert seen["parameters"] == {
        "echo": ["bool", True], "id": ["str", "x"], "n": ["int", 3], "stop": ["str", "end"],
        "temperature": ["float", 0.5], "timeout": ["int", 5],
    }  # fmt: skip
    assert (seen["timeout"], seen["correlation"], seen["flags"]) == (0, ["int", 0], 0)


def case(python: ServerProcess, name: str) -> tuple[raw.Answer, raw.Answer]:
    body = {"CASE": name, "id": "i"}
    whole, stream = (raw.ask(python.http, generate("decoupled", body, stream=stream)) for stream in (False, True))
    assert (whole.headers["content-type"], stream.headers["content-type"]) == (JSON, EVENTS)
    assert whole.status == stream.status
    return whole, stream


def said(text: str) -> dict[str, str]:
    return {"OUT": text, "id": "i", "model_name": "decoupled", "model_version": "1"}


@pytest.mark.parametrize(
    ("name", "status", "whole", "events"),
    [
        ("none", 200, NOT_ONE, []),
        ("one", 200, said("a"), [said("a")]),
        ("with_final", 200, NOT_ONE, [said("a"), said("b")]),
        ("thread", 200, said("late"), [said("late")]),
        ("error_then_more", 404, NOT_ONE, [{"error": "one failed"}, said("b")]),
        ("final_error", 503, {"error": "the last failed"}, [{"error": "the last failed"}]),
        ("many", 200, NOT_ONE, [said(str(i)) for i in range(100)]),
        ("empty_response", 200, {key: said("")[key] for key in ("id", "model_name", "model_version")},
         [{key: said("")[key] for key in ("id", "model_name", "model_version")}]),
    ],
)  # fmt: skip
def test_responses(python: ServerProcess, name: str, status: int, whole: Any, events: list[Any]) -> None:
    """The status is that of the first response, whatever follows."""
    found, stream = case(python, name)
    assert (found.status, found.json(), stream.events) == (status, whole, events)


def test_an_error_in_mid_stream_is_an_event(python: ServerProcess) -> None:
    found, stream = case(python, "raises_after")
    assert (found.status, found.json()) == (200, NOT_ONE)
    first, second = stream.events
    assert first == said("a")
    assert list(second) == ["error"]
    assert "ValueError: after a response" in second["error"]


def load_told(python: ServerProcess, numbers: list[float], *headers: str, stream: bool = False) -> str | None:
    answer = raw.ask(python.http, generate("load", {"USED": numbers}, *headers, stream=stream))
    assert answer.status == 200
    return answer.headers.get("endpoint-load-metrics")


def test_the_load_of_the_models(python: ServerProcess) -> None:
    """endpoint-load-metrics-format asks for a header; it comes when the models say what it needs."""
    text, as_json = "endpoint-load-metrics-format: text", "Endpoint-Load-Metrics-Format: json"
    for used, most, wanted, named in (
        (30.0, 60.0, "TEXT named_metrics.kv_cache_utilization=0.500000, named_metrics.max_token_capacity=1920",
         {"kv_cache_utilization": 0.5, "max_token_capacity": 1920}),
        (0.0, 0.0, "TEXT named_metrics.kv_cache_utilization=0.000000, named_metrics.max_token_capacity=0",
         {"kv_cache_utilization": 0.0, "max_token_capacity": 0}),
    ):  # fmt: skip
        numbers = [used, most, 32]
        # What a model sets reaches the server beside its responses, not before them.
        assert until(lambda numbers=numbers, wanted=wanted: load_told(python, numbers, text) == wanted)  # type: ignore[misc]
        for stream in (False, True):
            assert load_told(python, numbers, text, stream=stream) == wanted
            kind, _, value = (load_told(python, numbers, as_json, stream=stream) or "").partition(" ")
            assert (kind, json.loads(value)) == ("JSON", {"named_metrics": named})
            for headers in ((), ("endpoint-load-metrics-format: xml",)):
                assert load_told(python, numbers, *headers, stream=stream) is None
    # Not for infer; nor with numbers that say nothing.
    body = raw.infer_object([1, 1, 32], [3], "FP64")
    body["inputs"][0]["name"] = "USED"
    answer = raw.ask(python.http, raw.post("/v2/models/load/infer", json.dumps(body).encode(), text))
    assert (answer.status, "endpoint-load-metrics" in answer.headers) == (200, False)
    assert until(lambda: load_told(python, [-1.0, 1, 1], text) is None)


# ---- HTTP


def test_no_compression(served: ServerProcess) -> None:
    body = gzip.compress(json.dumps({"INPUT0": 1}).encode())
    for encoding in ("gzip", "deflate", "br"):
        for stream in (False, True):
            answer = raw.ask(served.http, generate("id_fp32", body, f"Content-Encoding: {encoding}", stream=stream))
            assert (answer.status, answer.error) == (
                400, "Unsupported content-encoding, only 'identity' is supported.")  # fmt: skip
    headers = ("Accept-Encoding: gzip", "Content-Encoding: identity")
    answer = raw.ask(served.http, generate("id_fp32", {"INPUT0": 1}, *headers))
    assert "content-encoding" not in answer.headers
    assert answer.json()["OUTPUT0"] == 1.0


def test_chunked_requests(served: ServerProcess) -> None:
    body = json.dumps(repeat([1, 2])).encode()
    pieces = [body[i : i + 3] for i in range(0, len(body), 3)]
    answer = raw.ask(served.http, raw.chunked("/v2/models/repeat/generate_stream", pieces))
    assert answer.events == tokens([1, 2])


def test_the_size_of_a_request_is_limited(served: ServerProcess) -> None:
    limit = 4194304
    answer = raw.ask(served.http, generate("id_int64", b"{" + b" " * limit + b"}"))
    assert (answer.status, answer.error) == (
        400, f"request JSON size of {limit + 2} bytes exceeds the maximum allowed input size of {limit} bytes. "
        "Use --http-max-input-size to increase the limit.")  # fmt: skip
    many = [1] * (limit // 8 + 1)
    nested = {"parameters": {"INPUT0": many}}
    size = 8 * len(many)
    for body, prefix in (({"INPUT0": many}, ""), (nested, "Converting keyword: 'parameters': ")):
        text = json.dumps(body, separators=(",", ":")).encode()
        assert len(text) < limit
        answer = raw.ask(served.http, generate("id_int64", text))
        assert (answer.status, answer.error) == (
            400, f"{prefix}request size of {size} bytes with input 'INPUT0' of size {size} bytes exceeds the maximum "
            f"allowed input size of {limit}. Use --http-max-input-size to increase the limit.")  # fmt: skip


def test_old_clients_read_to_the_end(served: ServerProcess) -> None:
    for headers in ([], ["Connection: keep-alive"]):
        for stream, kind in ((False, JSON), (True, EVENTS)):
            with raw.Client(served.http) as client:
                answer = client.ask(generate("repeat", repeat([1]), *headers, stream=stream, version="1.0"))
                assert answer.headers == {"content-type": kind, "connection": "close"}
                assert (answer.events if stream else [answer.json()]) == tokens([1])


def test_the_connection_goes_on(served: ServerProcess) -> None:
    """Requests of every kind one behind the other, and all at once, on one connection."""
    order = [
        (generate("repeat", repeat([1, 2, 3]), stream=True), lambda a: a.events == tokens([1, 2, 3])),
        (raw.infer_json("id_fp32", [1]), lambda a: raw.values_of(a) == [1]),
        (generate("id_fp32", {"INPUT0": 2}), lambda a: a.json()["OUTPUT0"] == 2.0),
        (generate("repeat", repeat([1, 2, 3]), stream=True), lambda a: a.events == tokens([1, 2, 3])),
        (generate("repeat", repeat([4, 5, 6]), stream=True), lambda a: a.events == tokens([4, 5, 6])),
        (generate("id_fp32", {"INPUT0": "x"}, stream=True), lambda a: a.status == 500),
        (raw.get("/v2/health/live"), lambda a: a.status == 200),
        (generate("repeat", repeat([])), lambda a: a.json() == NOT_ONE),
    ]
    with raw.Client(served.http) as client:
        for request, right in order * 2:
            assert right(client.ask(request))
        client.send(b"".join(request for request, _ in order * 2))
        for _, right in order * 2:
            assert right(client.answer())
        answer = client.ask(generate("repeat", repeat([1]), "Connection: close", stream=True))
        assert answer.headers["connection"] == "close"
        assert client.closed()


def test_a_client_library(served: ServerProcess) -> None:
    connection = http.client.HTTPConnection(*served.http, timeout=30)
    try:
        for _ in range(2):
            body = json.dumps(repeat([1, 2, 3]))
            connection.request("POST", "/v2/models/repeat/generate_stream", body, {"Content-Type": JSON})
            response = connection.getresponse()
            events = [json.loads(line[6:]) for line in response if line.startswith(b"data: ")]
            assert events == tokens([1, 2, 3])
    finally:
        connection.close()


def test_other_methods(served: ServerProcess) -> None:
    for kind in ("generate", "generate_stream"):
        answer = raw.ask(served.http, raw.get(f"/v2/models/id_fp32/{kind}"))
        assert (answer.status, answer.error, answer.headers["allow"]) == (405, "Method Not Allowed", "POST")


# ---- servers of their own


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return with_repeat(repository(tmp_path / "models", Model("m")))


def test_restricted(root: Path) -> None:
    with LocalServer(root, "--http-restricted-api=inference:key=secret") as server:
        for stream in (False, True):
            body = repeat([1])
            for headers in ([], ["key: Secret"], ["kex: secret"]):
                answer = raw.ask(server.http, generate("repeat", body, *headers, stream=stream))
                text = "This API is restricted, expecting header 'key'"
                assert (answer.status, answer.error) == (403, text)
            assert raw.ask(server.http, generate("repeat", body, "key: secret", stream=stream)).status == 200


def test_the_head_comes_with_the_first_response(root: Path) -> None:
    """An event is there as soon as its response is, whatever time the next takes; another connection is served."""
    with LocalServer(root) as server, raw.Client(server.http) as client:
        body = {"IN": [1, 2], "DELAY": [0, HOUR_MS], "WAIT": 0}
        client.send(generate("repeat", body, stream=True))
        assert client.head().status == 200
        assert json.loads(client.chunk()[6:]) == tokens([1])[0]
        assert raw.values_of(raw.ask(server.http, raw.infer_json("m", [1]))) == [1]
        with raw.Client(server.http) as other:
            # The model's only instance is busy: this one waits in the queue.
            other.send(generate("repeat", repeat([1])))
            assert until(lambda: server.snapshot("repeat")["pending"] == 1)
            other.reset()
            assert until(lambda: server.snapshot("repeat")["pending"] == 0)
        assert server.call(lambda: server.native.in_flight) == 1  # type: ignore[attr-defined]
        client.close()
        assert until(lambda: server.call(lambda: server.native.in_flight) == 0)  # type: ignore[attr-defined]


def test_a_python_model_sees_that_its_reader_is_gone(python: ServerProcess) -> None:
    with raw.Client(python.http) as client:
        client.send(generate("endless", {"IN": 1}, stream=True))
        assert client.head().status == 200
        assert json.loads(client.chunk()[6:])["OUT"] == 1
        client.reset()

    def cancelled() -> bool:
        text = raw.ask(python.metrics, raw.get("/metrics")).body.decode()
        return 'nv_inference_request_failure{model="endless",reason="CANCELED",version="1"} 1' in text

    assert until(cancelled)
