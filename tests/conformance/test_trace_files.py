"""Trace files, by what a reader needs: the same requests here and, where there is one, at the reference.

Every span has its end, steps have their parents, tensors are printed as Triton prints them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient

from tests.conformance import reference
from tests.helpers import raw, trace_models
from tests.helpers.server import Model, ServerProcess, repository, until
from tests.helpers.trace_models import VALUES
from tests.helpers.traces import Traced, parse, read, tree

Address = tuple[str, int]


def post(address: Address, model: str, *rest: Any, headers: tuple[str, ...] = (), **more: Any) -> int:
    body = trace_models.request(model, *rest, **more)
    if len(rest) > 2 and isinstance(rest[2], bytes):
        headers = (*headers, f"Inference-Header-Content-Length: {len(body)}")
        body += rest[2]
    return raw.ask(address, raw.post(f"/v2/models/{model}/infer", body, *headers)).status


def tensor(datatype: str, array: Any) -> Any:
    made = grpcclient.InferInput("IN", array.shape, datatype)
    made.set_data_from_numpy(array)
    return made


def over_grpc(address: Address) -> None:
    import threading

    done = threading.Semaphore(0)
    with grpcclient.InferenceServerClient(f"{address[0]}:{address[1]}") as client:
        one = tensor("FP32", np.ones((1, 2), np.float32))
        client.infer("plain", [one], request_id="grpc")
        with contextlib.suppress(Exception):
            client.infer("plain", [one], request_id="fail")
        client.start_stream(lambda result, error: done.release())
        client.async_stream_infer("repeat", [tensor("INT32", np.ones(2, np.int32))], request_id="repeat")
        for _ in range(3):
            assert done.acquire(timeout=30)
        client.stop_stream()


def given_up(server: ServerProcess, gate: Path) -> None:
    """One request runs and one waits when their clients go."""
    sockets = []
    for name in ("runs", "waits"):
        sockets.append(socket.create_connection(server.http))
        sockets[-1].sendall(raw.post("/v2/models/wait/infer", trace_models.request("wait", id=name)))
    pending = re.compile(rb'nv_inference_pending_request_count\{[^}]*model="wait"[^}]*\} 1\b')
    assert until(lambda: pending.search(raw.ask(server.metrics, raw.get("/metrics")).body) is not None)
    for one in reversed(sockets):
        one.close()
    gate.touch()


def drive(http: Address, grpc: Address) -> None:
    assert post(http, "plain", id="one") == 200
    assert post(http, "plain", id="fail") == 500
    assert post(http, "plain", "OTHER", id="wrong") == 400
    assert post(http, "none", id="none") in (400, 404)
    assert post(http, "ens", "X", id="ens") == 200
    assert post(http, "bls", id="bls") == 200
    assert post(http, "bls", id="apart") == 200
    for flag in ("sequence_start", "sequence_end"):
        assert post(http, "seq", id=flag, parameters={"sequence_id": 5, flag: True}) == 200
    assert post(http, "cached", id="miss") == 200
    assert post(http, "cached", id="hit") == 200
    for datatype, values in VALUES.items():
        assert post(http, f"type_{datatype.lower()}", "IN", datatype, values, id=datatype) == 200, datatype
    over_grpc(grpc)
    assert post(http, "plain", id="last") == 200


FLAGS = (
    "--trace-config", "level=TIMESTAMPS", "--trace-config", "level=TENSORS", "--trace-config", "rate=1",
    "--trace-config", "triton,log-frequency=1", "--cache-config=local,size=1048576",
)  # fmt: skip
LAST = 9 + len(VALUES) + 4  # requests that leave a trace


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("traces")
    trace_models.write(path / "models")
    return path


def complete(path: Path) -> bool:
    return sum(1 for _ in path.parent.glob(path.name + ".*")) >= LAST


@pytest.fixture(scope="module")
def ours(root: Path) -> Iterator[list[Traced]]:
    gate = root / "gate"
    with ServerProcess(
        root / "models", *FLAGS, "--trace-config", f"triton,file={root}/ours", env={"TRACE_GATE": str(gate)}
    ) as server:
        drive(server.http, server.grpc)
        given_up(server, gate)
    yield read(root / "ours")


def by_id(traces: list[Traced], request_id: str) -> Traced:
    (found,) = [one for one in traces if one.request_id == request_id and not one.parent]
    return found


COMPUTE = ["COMPUTE_END", "COMPUTE_INPUT_END", "COMPUTE_OUTPUT_START", "COMPUTE_START"]
HTTP = ["HTTP_RECV_END", "HTTP_RECV_START", "HTTP_SEND_END", "HTTP_SEND_START", "INFER_RESPONSE_COMPLETE"]
QUEUE = ["QUEUE_START", "REQUEST_END", "REQUEST_START"]


def test_every_span_has_its_end(ours: list[Traced]) -> None:
    assert len(ours) > LAST
    for one in ours:
        assert "REQUEST" in one.spans(), one
    first = by_id(ours, "one")
    assert first.names == sorted([*COMPUTE, *HTTP, *QUEUE])
    at = dict(first.stamps)
    order = ["HTTP_RECV_START", "HTTP_RECV_END", "REQUEST_START", "QUEUE_START", "COMPUTE_START", "COMPUTE_INPUT_END",
             "COMPUTE_OUTPUT_START", "COMPUTE_END", "INFER_RESPONSE_COMPLETE", "HTTP_SEND_START",
             "HTTP_SEND_END"]  # fmt: skip
    assert [at[name] for name in order] == sorted(at[name] for name in order)


def test_requests_that_never_were_leave_no_trace(ours: list[Traced]) -> None:
    assert not {"wrong", "none"} & {one.request_id for one in ours}
    assert len({one.id for one in ours}) == len(ours)


def test_steps_have_their_parents(ours: list[Traced]) -> None:
    ens, bls, apart = (by_id(ours, name) for name in ("ens", "bls", "apart"))
    assert [one.model for one in ours if one.parent == ens.id] == ["plain", "plain"]
    assert not any(name.startswith("COMPUTE") for name in ens.names)
    below = [one for one in ours if one.parent == bls.id]
    assert [one.model for one in below] == ["plain", "ens"]
    assert [one.model for one in ours if one.parent == below[1].id] == ["plain", "plain"]
    assert not [one for one in ours if one.parent == apart.id]
    # What a step does lies within what it is a step of.
    for one in ours:
        for step in ours:
            if step.parent == one.id:
                outer, inner = dict(one.stamps), dict(step.stamps)
                assert outer["REQUEST_START"] <= inner["REQUEST_START"] <= inner["REQUEST_END"] <= outer["REQUEST_END"]


def test_responses_of_a_stream_each_have_their_stamps(ours: list[Traced]) -> None:
    one = by_id(ours, "repeat")
    for name in ("INFER_RESPONSE_COMPLETE", "GRPC_SEND_START", "GRPC_SEND_END"):
        assert one.names.count(name) == 3
    made = [data for activity, _, data, *_ in one.tensors if activity == "TENSOR_BACKEND_OUTPUT"]
    assert made == ["1,1", "2,2", "3,3"]


def test_an_answer_of_the_cache_is_no_execution(ours: list[Traced]) -> None:
    assert set(COMPUTE) <= set(by_id(ours, "miss").names)
    assert not set(COMPUTE) & set(by_id(ours, "hit").names)
    assert [row[2] for row in by_id(ours, "hit").tensors] == ["1,2", "1,2"]


@pytest.mark.parametrize(
    ("datatype", "text"),
    [
        ("BOOL", "1,0"), ("UINT8", "1,100"), ("UINT16", "1,65535"), ("UINT32", "1,4294967295"),
        ("UINT64", "1,18446744073709551615"), ("INT8", "1,-100"), ("INT16", "1,-32768"), ("INT32", "1,-2147483648"),
        ("INT64", "1,-9223372036854775808"), ("FP16", "1.5,-2"), ("FP32", "1.5,1e+30,0.1,1.67772e+07,1.23457e+06"),
        ("FP64", "1.5,1e+300,0.1"), ("BYTES", '"plain","","two words"'),
    ],
)  # fmt: skip
def test_tensors(ours: list[Traced], datatype: str, text: str) -> None:
    one = by_id(ours, datatype)
    shape = str(len(VALUES[datatype]) // (2 if datatype == "FP16" else 1))
    assert one.tensors == [
        ("TENSOR_QUEUE_INPUT", "IN", text, shape, datatype), ("TENSOR_BACKEND_OUTPUT", "OUT", text, shape, datatype),
    ]  # fmt: skip


def test_requests_whose_clients_have_gone(ours: list[Traced]) -> None:
    # The one that ran is told of, and the one that waited: it is over without an execution, if its client went first.
    ran, waited = by_id(ours, "runs"), by_id(ours, "waits")
    assert {"REQUEST_START", "REQUEST_END"} <= set(ran.names) & set(waited.names)
    assert not [name for name in waited.names if "COMPUTE" in name and set(COMPUTE) - set(waited.names)]


@pytest.mark.skipif(reference.VARIABLE not in os.environ, reason="no reference server")
def test_as_the_reference(root: Path, ours: list[Traced], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACE_GATE", str(root / "gate"))
    flags = (*FLAGS, "--trace-config", f"triton,file={root}/theirs", "--model-control-mode=explicit", "--load-model=*")
    with reference.Reference(root / "models", root / "log", *flags) as server:
        drive(server.http, server.grpc)
        assert until(lambda: complete(root / "theirs"))
    theirs = []
    for path in sorted(root.glob("theirs.*"), key=lambda one: int(one.suffix[1:])):
        # It prints bytes of 8-bit tensors as characters, which is no JSON.
        odd, plain = rb'"data":"[^"]*","shape":"2","dtype":"U?INT8"', b'"data":"?","shape":"2","dtype":"8"'
        text = re.sub(odd, plain, path.read_bytes())
        theirs += parse(text.decode("utf-8", "replace"))
    mine = [one for one in ours if one.model != "wait"]
    assert comparable(mine) == comparable(theirs)


def comparable(traces: list[Traced]) -> Any:
    """Return what both servers must agree on. Known differences of the reference, see docs/tracing.md, are smoothed."""
    for one in traces:
        if one.model == "seq":  # it shows no inputs of sequences
            one.tensors = [row for row in one.tensors if row[0] != "TENSOR_QUEUE_INPUT"]
        if one.request_id == "repeat":  # it marks only the first response of a stream as complete
            one.stamps = [row for row in one.stamps if row[0] != "INFER_RESPONSE_COMPLETE"]
        if one.request_id == "miss":  # it shows the outputs a second time when they are put into the cache
            one.tensors = list(dict.fromkeys(one.tensors))
        one.tensors = [
            (activity, name, "?", shape, "8" if kind in ("INT8", "UINT8", "8") else kind)
            if kind in ("INT8", "UINT8", "8", "FP16") else (activity, name, data, shape, kind)
            for activity, name, data, shape, kind in one.tensors
        ]  # fmt: skip
    return sorted(json.dumps(one) for one in tree(traces))


def test_one_file_is_whole_at_any_time(tmp_path: Path) -> None:
    file = tmp_path / "traces"
    file.write_text("left from an earlier run")
    root = repository(tmp_path / "models", Model("m"))
    flags = ("--trace-config=level=TIMESTAMPS", "--trace-config=rate=2", f"--trace-config=triton,file={file}")
    with ServerProcess(root, *flags) as server:
        for n in range(1, 7):
            assert raw.ask(server.http, raw.infer_json("m", [1.0], id=f"r{n}")).status == 200
        assert until(lambda: len(parse(file.read_bytes()) if file.read_bytes()[:1] == b"[" else []) == 3)
        assert [one.request_id for one in read(file)] == ["r2", "r4", "r6"]
        assert post_settings(server.http, {"trace_count": "1", "trace_rate": "1"})["trace_count"] == "1"
        for n in range(7, 10):
            assert raw.ask(server.http, raw.infer_json("m", [1.0], id=f"r{n}")).status == 200
        assert settings(server.http)["trace_count"] == "0"
        server.stop()
    assert [one.request_id for one in read(file)] == ["r2", "r4", "r6", "r7"]


def settings(address: Address) -> Any:
    return json.loads(raw.ask(address, raw.get("/v2/trace/setting")).body)


def post_settings(address: Address, changes: dict[str, Any], model: str = "") -> Any:
    path = f"/v2/models/{model}/trace/setting" if model else "/v2/trace/setting"
    answer = raw.ask(address, raw.post(path, json.dumps(changes).encode()))
    assert answer.status == 200, answer.body
    return json.loads(answer.body)


def test_files_of_so_many_traces(tmp_path: Path) -> None:
    file = tmp_path / "traces"
    root = repository(tmp_path / "models", Model("m"), Model("other"))
    flags = ("--trace-level=TIMESTAMPS", "--trace-rate=1", f"--trace-file={file}", "--trace-log-frequency=2")
    with ServerProcess(root, *flags) as server:
        assert "deprecated" in server.log()
        post_settings(server.http, {"trace_level": ["OFF"]}, "other")
        for n in range(3):
            for model in ("m", "other"):
                assert raw.ask(server.http, raw.infer_json(model, [1.0], id=f"{model}{n}")).status == 200
        # What waits for a second trace is written when its setting ends.
        post_settings(server.http, {"log_frequency": "1"})
        assert until((tmp_path / "traces.1").exists)
        assert raw.ask(server.http, raw.infer_json("m", [1.0], id="m3")).status == 200
        assert until((tmp_path / "traces.2").exists)
    names = [[one.request_id for one in parse((tmp_path / f"traces.{n}").read_bytes())] for n in range(3)]
    assert names == [["m0", "m1"], ["m2"], ["m3"]]
    assert not file.exists()
