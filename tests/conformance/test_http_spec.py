"""The v2 protocol over HTTP, request by request, without a client library: routes, statuses, headers, texts, shapes."""

from __future__ import annotations

import gzip
import json
import math
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance import http_cases as cases
from tests.conformance.client_verbs import EXTENSIONS
from tests.conformance.http_cases import LIMIT, Case, infer, inputs, one, tensor, with_binary
from tests.helpers import raw
from tests.helpers.server import Model, ServerProcess, repository

BUSY = "instance_group [{{ count: 1 kind: KIND_CPU }}] dynamic_batching {{ default_queue_policy {{ {policy} }} }}"


def check(served: ServerProcess, case: Case) -> None:
    answer = raw.ask(served.http, case.request)
    assert answer.status == case.status, answer.body
    assert answer.headers["content-type"] == "application/json"
    assert "content-encoding" not in answer.headers
    assert list(answer.json()) == ["error"]
    assert case.error is not None
    beginning, dots, _ = case.error.partition("...")
    if dots:
        assert answer.error[: len(beginning)] == beginning
        assert len(answer.error) > len(beginning)
    else:
        assert answer.error == case.error


def names(table: list[Case]) -> dict[str, Any]:
    return {"argnames": "case", "argvalues": table, "ids": [case.name for case in table]}


@pytest.mark.parametrize(**names(cases.ROUTES))
def test_routes(served: ServerProcess, case: Case) -> None:
    check(served, case)


@pytest.mark.parametrize(**names(cases.REPOSITORY))
def test_repository(served: ServerProcess, case: Case) -> None:
    check(served, case)
    assert raw.ask(served.http, raw.get("/v2/models/control/ready")).status == 200


@pytest.mark.parametrize(**names(cases.SHARED_MEMORY))
def test_shared_memory(served: ServerProcess, case: Case) -> None:
    check(served, case)


@pytest.mark.parametrize(**names(cases.INFER))
def test_infer_errors(served: ServerProcess, case: Case) -> None:
    check(served, case)


def test_every_error_leaves_the_server_usable(served: ServerProcess) -> None:
    client = raw.Client(served.http)
    for case in cases.INFER:
        if client.ask(case.request).closes:
            client.close()
            client = raw.Client(served.http)
        assert raw.values_of(client.ask(raw.infer_json("id_fp32", [1, 2]))) == [1, 2], case.name
    client.close()


# ---- methods


@pytest.mark.parametrize(("path", "allowed"), cases.METHODS)
def test_methods(served: ServerProcess, path: str, allowed: str) -> None:
    methods = {"GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"} - set(allowed.split(", "))
    for method in sorted(methods):
        answer = raw.ask(served.http, raw.get(path, "Content-Length: 0", method=method))
        assert (answer.status, answer.error) == (405, "Method Not Allowed"), method
        assert answer.headers["allow"] == allowed


def test_head_is_get_without_a_body(served: ServerProcess) -> None:
    for path in ("/v2", "/v2/health/live", "/v2/models/two", "/v2/models/nobody"):
        told, got = (raw.ask(served.http, raw.get(path, method=method)) for method in ("HEAD", "GET"))
        assert (told.status, told.headers, told.body) == (got.status, got.headers, b"")


def test_the_query_is_ignored(served: ServerProcess) -> None:
    assert raw.ask(served.http, raw.get("/v2/health/live?a=/v3&b=%zz")).status == 200
    answer = raw.ask(served.http, raw.post("/v2/models/id_fp32/infer?x=1", json.dumps(one()).encode()))
    assert answer.status == 200


# ---- bodies of verbs


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready", "/v2/models/two/ready"])
def test_health_has_no_body(served: ServerProcess, path: str) -> None:
    answer = raw.ask(served.http, raw.get(path))
    assert (answer.status, answer.body) == (200, b"")


def test_server_metadata(served: ServerProcess) -> None:
    answer = raw.ask(served.http, raw.get("/v2"))
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["name", "version", "extensions"]
    assert answer.json()["extensions"] == EXTENSIONS


def test_model_metadata(served: ServerProcess) -> None:
    found = raw.ask(served.http, raw.get("/v2/models/two/versions/1")).json()
    assert list(found) == ["name", "versions", "platform", "inputs", "outputs"]
    assert [list(row) for row in found["inputs"] + found["outputs"]] == [["name", "datatype", "shape"]] * 4


def test_model_config(served: ServerProcess) -> None:
    found = raw.ask(served.http, raw.get("/v2/models/labelled/config")).json()
    assert list(found)[:6] == ["name", "platform", "backend", "runtime", "version_policy", "max_batch_size"]
    assert found["input"][0]["dims"] == [4]
    assert found["output"][0]["label_filename"] == "labels.txt"
    assert found["instance_group"][0]["kind"] == "KIND_CPU"
    assert found["instance_group"][0]["name"] == "labelled"


def test_index(served: ServerProcess) -> None:
    everything = raw.ask(served.http, raw.post("/v2/repository/index")).json()
    assert raw.ask(served.http, raw.post("/v2/repository/any/index", b"{}")).json() == everything
    assert [list(row) for row in everything] == [["name", "version", "state"]] * len(everything)
    assert everything == sorted(everything, key=lambda row: (row["name"], int(row["version"])))
    ready = raw.ask(served.http, raw.post("/v2/repository/index", b'{"ready": true}')).json()
    assert ready == [row for row in everything if row["state"] == "READY"]


def test_index_after_unload(served: ServerProcess) -> None:
    assert raw.ask(served.http, raw.post("/v2/repository/models/control/unload")).body == b""
    try:
        row = next(row for row in raw.ask(served.http, raw.post("/v2/repository/index")).json()
                   if row["name"] == "control")  # fmt: skip
        assert row["state"] in ("UNLOADING", "UNAVAILABLE")
        answer = raw.ask(served.http, raw.get("/v2/models/control/ready"))
        assert (answer.status, answer.error) == (400, "Model version not ready")
        for path in ("/v2/models/control", "/v2/models/control/config"):
            answer = raw.ask(served.http, raw.get(path))
            text = "Request for unknown model: 'control' has no available versions"
            assert (answer.status, answer.error) == (404, text)
        answer = raw.ask(served.http, raw.get("/v2/models/control/versions/1"))
        text = "Request for unknown model: 'control' version 1 is not at ready state"
        assert (answer.status, answer.error) == (503, text)
        answer = raw.ask(served.http, raw.get("/v2/models/control/stats"))
        assert (answer.status, answer.error) == (400, "requested model 'control' is not available")
    finally:
        answer = raw.ask(served.http, raw.post("/v2/repository/models/control/load"))
    assert (answer.status, answer.body) == (200, b"")


def test_statistics_shape(served: ServerProcess) -> None:
    (found,) = raw.ask(served.http, raw.get("/v2/models/two/stats")).json()["model_stats"]
    assert list(found) == [
        "name", "version", "last_inference", "inference_count", "execution_count", "inference_stats", "response_stats",
        "batch_stats", "memory_usage",
    ]  # fmt: skip
    assert all(list(row) == ["count", "ns"] for row in found["inference_stats"].values())
    for kind in ("system", "cuda"):
        assert raw.ask(served.http, raw.get(f"/v2/{kind}sharedmemory/status")).json() == []


def test_metrics_listener(served: ServerProcess) -> None:
    for path in ("/metrics", "/metrics/"):
        answer = raw.ask(served.metrics, raw.get(path))
        assert (answer.status, answer.headers["content-type"]) == (200, "text/plain; charset=utf-8")
        assert b"# TYPE nv_inference_count counter" in answer.body
    assert raw.ask(served.metrics, raw.get("/other")).status == 200
    assert raw.ask(served.metrics, raw.get("/other")).body == b""
    answer = raw.ask(served.metrics, raw.post("/metrics"))
    assert answer.status == 405
    assert raw.ask(served.http, raw.get("/metrics")).status == 404
    # The metrics port serves no models.
    assert raw.ask(served.metrics, raw.infer_json("id_fp32", [1])).status == 405


# ---- infer


def test_key_order_and_types(served: ServerProcess) -> None:
    value = one(id="7", parameters={"x": 1})
    found = raw.ask(served.http, infer("id_fp32", value)).json()
    assert list(found) == ["id", "model_name", "model_version", "outputs"]
    assert found["model_version"] == "1"
    assert list(found["outputs"][0]) == ["name", "datatype", "shape", "data"]


def test_binary_answer(served: ServerProcess) -> None:
    value = {"parameters": {"binary_data_output": True}, "inputs": [tensor(**cases.binary(8))]}
    answer = raw.ask(served.http, with_binary("id_fp32", value, raw.fp32([1, 2])))
    assert answer.headers["content-type"] == "application/octet-stream"
    size = int(answer.headers["inference-header-content-length"])
    found = json.loads(answer.body[:size])
    assert list(found["outputs"][0]) == ["name", "datatype", "shape", "parameters"]
    assert found["outputs"][0]["parameters"] == {"binary_data_size": 8}
    assert answer.body[size:] == raw.fp32([1, 2])


@pytest.mark.parametrize("data", [[[1, 2], [3, 4]], [1, 2, 3, 4], [[1, 2, 3, 4]], [[[1], [2]], [[3], [4]]]])
def test_nested_and_flat_data(served: ServerProcess, data: Any) -> None:
    answer = raw.ask(served.http, infer("id_fp32", inputs(tensor(shape=[2, 2], data=data))))
    assert answer.json()["outputs"][0]["data"] == [1, 2, 3, 4]


@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
def test_nan_and_infinity(served: ServerProcess, datatype: str) -> None:
    body = b'{"inputs":[{"name":"INPUT0","datatype":"%s","shape":[1,5],"data":[NaN,Infinity,-Infinity,Inf,-1e-3]}]}'
    answer = raw.ask(served.http, infer(f"id_{datatype.lower()}", body % datatype.encode()))
    found = answer.json()["outputs"][0]["data"]
    assert math.isnan(found[0])
    assert found[1:4] == [math.inf, -math.inf, math.inf]


def test_raw_binary(served: ServerProcess) -> None:
    answer = raw.ask(served.http, infer("id_fp32", raw.fp32([1, 2, 3]), "Inference-Header-Content-Length: 0"))
    size = int(answer.headers["inference-header-content-length"])
    assert json.loads(answer.body[:size])["outputs"][0]["shape"] == [1, 3]
    assert answer.body[size:] == raw.fp32([1, 2, 3])
    # Without batching and one variable dimension; and text, which gets its length in front.
    answer = raw.ask(served.http, infer("half_open", raw.fp32([0] * 6), "Inference-Header-Content-Length: 0"))
    size = int(answer.headers["inference-header-content-length"])
    assert json.loads(answer.body[:size])["outputs"][0]["shape"] == [2, 3]
    answer = raw.ask(served.http, infer("text", b"h\xffi", "Inference-Header-Content-Length: 0"))
    size = int(answer.headers["inference-header-content-length"])
    assert json.loads(answer.body[:size])["outputs"][0]["shape"] == [1]
    assert answer.body[size:] == struct.pack("<I", 3) + b"h\xffi"


def test_versions(served: ServerProcess) -> None:
    body = inputs(tensor(datatype="INT32", shape=[1, 1], data=[1]))
    for version, answered in (("", "3"), ("1", "1"), ("02", "2")):
        answer = raw.ask(served.http, infer("versions", body, version=version))
        assert answer.json()["model_version"] == answered


def test_empty_outputs_means_all(served: ServerProcess) -> None:
    given = [tensor(f"INPUT{i}", **cases.INT32_INPUT) for i in range(2)]
    for more in ({}, {"outputs": []}):
        found = raw.ask(served.http, infer("two", {"inputs": given, **more})).json()
        assert [row["name"] for row in found["outputs"]] == ["OUTPUT0", "OUTPUT1"]


# ---- encodings and limits


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_bodies(served: ServerProcess, encoding: str, pack: Any) -> None:
    value = {"parameters": {"binary_data_output": True}, "inputs": [tensor(**cases.binary(8))]}
    head = json.dumps(value).encode()
    request = raw.post(
        raw.infer_path("id_fp32"), pack(head + raw.fp32([1, 2])), f"Content-Encoding: {encoding}",
        f"Inference-Header-Content-Length: {len(head)}", f"Accept-Encoding: {encoding}",
    )  # fmt: skip
    answer = raw.ask(served.http, request)
    assert answer.headers["content-encoding"] == encoding
    plain = zlib.decompress(answer.body, 47)
    size = int(answer.headers["inference-header-content-length"])
    assert plain[size:] == raw.fp32([1, 2])


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("gzip;q=0.5, deflate;q=0.8", "deflate"),
        ("deflate, gzip", "deflate"),
        ("gzip, deflate", "gzip"),
        ("identity;q=1, gzip;q=0.9", None),
        ("gzip;q=0", None),
        ("br", None),
        ("", None),
    ],
)
def test_accept_encoding(served: ServerProcess, accept: str, chosen: str | None) -> None:
    answer = raw.ask(served.http, infer("id_fp32", one(), f"Accept-Encoding: {accept}"))
    assert answer.status == 200
    assert answer.headers.get("content-encoding") == chosen
    # Errors are never compressed, nor are other verbs.
    for request in (infer("id_fp32", b"{", f"Accept-Encoding: {accept}"), raw.get("/v2", f"Accept-Encoding: {accept}")):
        assert "content-encoding" not in raw.ask(served.http, request).headers


def test_unknown_encoding_names_the_known(served: ServerProcess) -> None:
    answer = raw.ask(served.http, infer("id_fp32", one(), "Content-Encoding: br"))
    assert (answer.status, answer.headers["accept-encoding"]) == (501, "gzip, deflate")


def test_json_past_the_limit(served: ServerProcess) -> None:
    body = json.dumps(inputs(tensor(shape=[1, 1], data=[1]))).encode()
    padded = body + b" " * (LIMIT + 1 - len(body))
    answer = raw.ask(served.http, infer("id_fp32", padded))
    assert (answer.status, answer.error) == (
        400, f"request JSON size of {LIMIT + 1} bytes exceeds the maximum allowed input size of {LIMIT} bytes. "
        + cases.INPUT_LIMIT,
    )  # fmt: skip
    assert raw.ask(served.http, infer("id_fp32", padded[:LIMIT])).status == 200


def test_the_limit_does_not_bound_binary_tensors(served: ServerProcess) -> None:
    data = bytes(LIMIT + 4)
    value = inputs(tensor(shape=[1, len(data) // 4], **cases.binary(len(data))))
    value["parameters"] = {"binary_data_output": True}
    answer = raw.ask(served.http, with_binary("id_fp32", value, data))
    assert answer.status == 200
    assert answer.body.endswith(data)


def test_json_tensor_past_the_limit(served: ServerProcess) -> None:
    count = LIMIT // 8 + 1
    body = b'{"inputs":[{"name":"INPUT0","datatype":"FP64","shape":[1,%d],"data":[%s]}]}'
    answer = raw.ask(served.http, infer("id_fp64", body % (count, b",".join([b"1"] * count))))
    assert (answer.status, answer.error) == (
        400, f"JSON input 'INPUT0' has a byte_size ({count * 8} bytes) that exceeds the maximum allowed value of "
        f"{LIMIT} bytes. " + cases.INPUT_LIMIT,
    )  # fmt: skip


def test_inflated_body_past_the_limit(served: ServerProcess) -> None:
    answer = raw.ask(served.http, infer("id_fp32", gzip.compress(bytes(LIMIT + 1)), "Content-Encoding: gzip"))
    assert (answer.status, answer.error) == (
        400, f"Decompressed data size exceeds the maximum allowed value of {LIMIT} bytes. " + cases.INPUT_LIMIT,
    )  # fmt: skip


def test_chunked(served: ServerProcess) -> None:
    body = json.dumps(one()).encode()
    for size in (1, 7, len(body)):
        parts = [body[at : at + size] for at in range(0, len(body), size)]
        answer = raw.ask(served.http, raw.chunked(raw.infer_path("id_fp32"), parts))
        assert raw.values_of(answer) == [1, 2]


def test_too_many_chunks(served: ServerProcess) -> None:
    answer = raw.ask(served.http, raw.chunked(raw.infer_path("id_fp32"), [b" "] * 65537))
    text = "Chunked request body exceeds maximum of 65536 non-empty chunks. Send fewer or larger HTTP chunks."
    assert (answer.status, answer.error) == (400, text)
    assert answer.closes


# ---- queue policies


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = repository(
        tmp_path_factory.mktemp("busy"),
        Model("full", max_batch=1, delay_ms=400, extra=BUSY.format(policy="max_queue_size: 1")),
        Model("late", max_batch=1, delay_ms=400, extra=BUSY.format(policy="default_timeout_microseconds: 1000")),
    )
    with ServerProcess(
        root, "--id=abc", "--http-restricted-api=inference,metadata:key=a value",
        "--http-restricted-api=health,model-repository,model-config,statistics,shared-memory,trace,logging:other=x",
    ) as process:  # fmt: skip
        yield process


@pytest.mark.parametrize(
    ("model", "text"), [("full", "Exceeds maximum queue size"), ("late", "Request timeout expired")]
)
def test_queue_policy(busy: ServerProcess, model: str, text: str) -> None:
    answers: list[raw.Answer] = []

    def ask() -> None:
        answers.append(raw.ask(busy.http, raw.infer_json(model, [1], "key: a value")))

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [answer.error for answer in answers if answer.status == 503]
    assert sorted({answer.status for answer in answers}) == [200, 503]
    assert len(refused) >= 3
    assert set(refused) <= {text, f"{cases.ANON}{text}"}


# ---- restricted APIs, server id


GUARDED = [
    ("key: a value", raw.get("/v2")),
    ("key: a value", raw.get("/v2/models/full")),
    ("key: a value", raw.infer_json("nobody", [1])),
    ("other: x", raw.get("/v2/health/live")),
    ("other: x", raw.get("/v2/models/full/ready")),
    ("other: x", raw.get("/v2/models/full/config")),
    ("other: x", raw.get("/v2/models/full/stats")),
    ("other: x", raw.get("/v2/models/stats")),
    ("other: x", raw.post("/v2/repository/index")),
    ("other: x", raw.post("/v2/repository/models/full/load")),
    ("other: x", raw.get("/v2/systemsharedmemory/status")),
    ("other: x", raw.get("/v2/trace/setting")),
    ("other: x", raw.get("/v2/logging")),
    # The header is asked for before the method is looked at.
    ("other: x", raw.get("/v2/health/live", method="PUT")),
    ("key: a value", raw.get("/v2/models/full/infer")),
]


@pytest.mark.parametrize(("header", "request_bytes"), GUARDED, ids=lambda value: str(value)[:40])
def test_restricted(busy: ServerProcess, header: str, request_bytes: bytes) -> None:
    name = header.partition(":")[0]
    for wrong in ("", f"{name}: other\r\n", f"{name}: {'x' * 300}\r\n"):
        answer = raw.ask(busy.http, request_bytes.replace(b"Host: t\r\n", b"Host: t\r\n" + wrong.encode(), 1))
        text = f"This API is restricted, expecting header '{name}'"
        assert (answer.status, answer.error) == (403, text)
    answer = raw.ask(busy.http, request_bytes.replace(b"Host: t\r\n", f"Host: t\r\n{header}\r\n".encode(), 1))
    assert answer.status != 403


def test_server_id(busy: ServerProcess) -> None:
    assert raw.ask(busy.http, raw.get("/v2", "key: a value")).json()["name"] == "abc"


def test_control_is_off_in_mode_none(busy: ServerProcess) -> None:
    for verb in ("load", "unload"):
        answer = raw.ask(busy.http, raw.post(f"/v2/repository/models/full/{verb}", b"", "other: x"))
        text = "explicit model load / unload is not allowed if polling is enabled"
        assert (answer.status, answer.error) == (503, text)


def test_input_limit_flag(tmp_path: Path) -> None:
    with ServerProcess(repository(tmp_path, Model("m")), "--http-max-input-size=1024") as small:
        answer = raw.ask(small.http, raw.infer_json("m", list(range(1000))))
        assert answer.status == 400
        assert "maximum allowed input size of 1024 bytes" in answer.error


@pytest.mark.parametrize("name", ["priority", "Sequence_Id", "triton_x", "binary_data_output"])
def test_reserved_headers_are_not_forwarded(tmp_path: Path, name: str) -> None:
    with ServerProcess(
        repository(tmp_path, Model("m")), "--http-header-forward-pattern=PRIO|seq|TRITON|binary"
    ) as process:
        answer = raw.ask(process.http, raw.infer_json("m", [1], f"{name}: 1"))
        text = f"Header '{name}' is reserved for Triton usage and cannot be forwarded."
        assert (answer.status, answer.error) == (400, text)
        assert raw.values_of(raw.ask(process.http, raw.infer_json("m", [1], "X-Other: 1"))) == [1]
