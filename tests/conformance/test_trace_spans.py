"""Traces as OpenTelemetry spans: their layout, the context that comes with a request and goes to models.

The server exports with the real SDK to a collector's stand-in. Source: spec/metrics.md section 6.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from tests.helpers import raw, trace_models
from tests.helpers.otlp import Collector, Span
from tests.helpers.python_models import model_of
from tests.helpers.server import ServerProcess

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"traceparent: 00-{TRACE}-{SPAN}-01"
# Tells in its answer what it was given, and makes a span of its own below the server's.
TELL = """
class TritonPythonModel:
    def execute(self, requests):
        from opentelemetry import trace

        answers = []
        for request in requests:
            span = pb_utils.current_span(request).get_span_context()
            first = pb_utils.current_span().get_span_context()
            told = [request.trace().get_context(), f"{span.trace_id:032x}", f"{span.span_id:016x}", span.is_valid,
                    span == first]
            answers.append(pb_utils.InferenceResponse([
                pb_utils.Tensor("OUT", np.array([[json.dumps(told)]], dtype=object))]))
        return answers
"""
CONFIG = """backend: "python"
max_batch_size: 8
input [{ name: "IN" data_type: TYPE_FP32 dims: [-1] }]
output [{ name: "OUT" data_type: TYPE_STRING dims: [-1] }]
"""
FLAGS = (
    "--trace-config=mode=opentelemetry", "--trace-config=level=TIMESTAMPS",
    "--trace-config=opentelemetry,resource=deployment=test", "--trace-config=opentelemetry,bsp_schedule_delay=20",
)  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spans") / "models"
    trace_models.write(path, only=("plain", "ens", "bls"))
    model_of(path, "tell", "import json\n\n\n" + TELL, CONFIG)
    return path


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as one:
        yield one


def served(models: Path, collector: Collector, *flags: str) -> ServerProcess:
    env = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return ServerProcess(models, *FLAGS, f"--trace-config=opentelemetry,url={collector.url}", *flags,
                         env={**env, "TRACE_GATE": os.devnull})  # fmt: skip


def ask(server: ServerProcess, model: str, *headers: str, name: str = "IN", **more: Any) -> raw.Answer:
    body = trace_models.request(model, name, **more)
    return raw.ask(server.http, raw.post(f"/v2/models/{model}/infer", body, *headers))


def told(answer: raw.Answer) -> Any:
    return json.loads(json.loads(answer.body)["outputs"][0]["data"][0])


def only(spans: list[Span], name: str) -> Span:
    (found,) = [one for one in spans if one.name == name]
    return found


def test_the_spans_of_a_request(models: Path, collector: Collector) -> None:
    with served(models, collector, "--trace-config=rate=1") as server:
        assert ask(server, "plain", id="one").status == 200
        spans = collector.wait_for(3)
    assert collector.paths == {"/v1/traces"}
    root, model, compute = (only(spans, name) for name in ("InferRequest", "plain", "compute"))
    assert collector.tree(root.trace) == ("InferRequest", [("plain", [("compute", [])])])
    assert root.parent == "" and root.trace != "0" * 32
    assert model.attributes == {
        "triton.model_name": "plain", "triton.model_version": 1, "triton.trace_id": model.attributes["triton.trace_id"],
        "triton.trace_parent_id": 0, "triton.request_id": "one",
    }  # fmt: skip
    assert root.attributes == compute.attributes == {}
    assert [name for name, _ in model.events] == ["REQUEST_START", "QUEUE_START", "REQUEST_END"]
    assert [name for name, _ in compute.events] == [
        "COMPUTE_START", "COMPUTE_INPUT_END", "COMPUTE_OUTPUT_START", "COMPUTE_END",
    ]  # fmt: skip
    assert [name for name, _ in root.events] == [
        "HTTP_RECV_START", "HTTP_RECV_END", "INFER_RESPONSE_COMPLETE", "HTTP_SEND_START", "HTTP_SEND_END",
    ]  # fmt: skip
    for one in spans:
        assert one.kind == 2 and not one.failed and one.scope == "triton-server"
        assert one.resource["service.name"] == "triton-inference-server"
        assert one.resource["deployment"] == "test"
        assert all(one.begin <= ns <= one.end for _, ns in one.events)
    assert root.begin <= model.begin <= compute.begin <= compute.end <= model.end <= root.end


def test_a_context_comes_in_over_http(models: Path, collector: Collector) -> None:
    # Neither the rate nor the count has a say.
    with served(models, collector, "--trace-config=rate=0", "--trace-config=count=0") as server:
        for headers in ((), ("traceparent: 00-bad",), (PARENT, PARENT), (f"traceparent: 00-{TRACE}-{'0' * 16}-01",)):
            assert ask(server, "plain", *headers).status == 200
        assert ask(server, "plain", PARENT, "tracestate: a=b", 'tracestate: c="d', id="own").status == 200
        # On one connection: the head is remembered, and so is its context; another head has none.
        with raw.Client(server.http) as connection:
            for headers in ((PARENT,), (PARENT,), ()):
                body = trace_models.request("plain")
                assert connection.ask(raw.post("/v2/models/plain/infer", body, *headers)).status == 200
        spans = collector.wait_for(9)
        server.stop()
    assert len(collector.spans) == 9
    assert {one.trace for one in spans} == {TRACE}
    assert [one.parent for one in spans if one.name == "InferRequest"] == [SPAN] * 3
    assert sorted({one.state for one in spans}) == ["", 'a=b,c="d']


def test_a_request_that_can_not_be_decoded_leaves_a_failed_span(models: Path, collector: Collector) -> None:
    with served(models, collector, "--trace-config=rate=0") as server:
        assert ask(server, "plain", PARENT, name="NO").status == 400
        assert ask(server, "plain", name="NO").status == 400
        with grpcclient.InferenceServerClient(f"{server.grpc[0]}:{server.grpc[1]}") as client:
            tensor = grpcclient.InferInput("NO", [1, 1], "FP32")
            tensor.set_data_from_numpy(np.zeros((1, 1), np.float32))
            with pytest.raises(InferenceServerException):
                client.infer("plain", [tensor], headers={"traceparent": PARENT.split(" ")[1]})
        spans = collector.wait_for(4)
        server.stop()
    assert len(collector.spans) == 4
    roots = [one for one in spans if one.name == "InferRequest"]
    assert [(one.trace, one.parent, one.failed) for one in roots] == [(TRACE, SPAN, True)] * 2
    assert all(0 < one.end - one.begin < 60 * 10**9 for one in roots)
    assert [(one.parent, one.failed) for one in spans if one.name == "plain"] == [(one.id, True) for one in roots]


def test_a_context_comes_in_over_grpc(models: Path, collector: Collector) -> None:
    with served(models, collector, "--trace-config=rate=0") as server:
        with grpcclient.InferenceServerClient(f"{server.grpc[0]}:{server.grpc[1]}") as client:
            tensor = grpcclient.InferInput("IN", [1, 2], "FP32")
            tensor.set_data_from_numpy(np.ones((1, 2), np.float32))
            client.infer("plain", [tensor])
            client.infer("plain", [tensor], headers={"traceparent": PARENT.split(" ")[1], "tracestate": "a=b"})
        spans = collector.wait_for(3)
    assert collector.tree(TRACE) == ("InferRequest", [("plain", [("compute", [])])])
    root = only(spans, "InferRequest")
    assert (root.parent, root.state) == (SPAN, "a=b")
    assert [name for name, _ in root.events] == [
        "GRPC_WAITREAD_START", "GRPC_WAITREAD_END", "INFER_RESPONSE_COMPLETE", "GRPC_SEND_START", "GRPC_SEND_END",
    ]  # fmt: skip


def test_steps_and_calls_of_models(models: Path, collector: Collector) -> None:
    step = ("plain", [("compute", [])])
    with served(models, collector, "--trace-config=rate=1") as server:
        for model, name, request_id in (("ens", "X", "e"), ("bls", "IN", "b"), ("bls", "IN", "apart")):
            assert ask(server, model, name=name, id=request_id).status == 200
        spans = collector.wait_for(6 + 10 + 3)
    found = {one.attributes.get("triton.request_id"): one.trace for one in spans if one.name in ("ens", "bls")}
    assert collector.tree(found["e"]) == ("InferRequest", [("ens", [step, step])])
    (whole,) = [collector.tree(found["b"])]
    assert whole[0] == "InferRequest" and [name for name, _ in whole[1]] == ["bls"]
    assert sorted(map(json.dumps, whole[1][0][1])) == sorted(
        map(json.dumps, [("compute", []), step, ("ens", [step, step])])
    )
    assert collector.tree(found["apart"]) == ("InferRequest", [("bls", [("compute", [])])])


def test_the_context_goes_to_models(models: Path, collector: Collector) -> None:
    with served(models, collector, "--trace-config=rate=0") as server:
        carrier, *_, valid, same = told(ask(server, "tell"))
        assert (carrier, valid, same) == (None, False, True)
        carrier, trace, span, valid, same = told(ask(server, "tell", PARENT, "tracestate: a=b"))
        spans = collector.wait_for(3)
    assert (trace, valid, same) == (TRACE, True, True)
    assert json.loads(carrier) == {"traceparent": f"00-{TRACE}-{only(spans, 'tell').id}-01", "tracestate": "a=b"}
    assert span == only(spans, "compute").id


def test_errors_are_told(models: Path, collector: Collector) -> None:
    with served(models, collector, "--trace-config=rate=1") as server:
        assert ask(server, "plain", id="fail").status == 500
        spans = collector.wait_for(3)
    assert [only(spans, name).failed for name in ("InferRequest", "plain")] == [True, True]


def test_the_settings_tell_of_the_export(models: Path, collector: Collector) -> None:
    with served(models, collector, "--trace-config=rate=5") as server:
        shown = json.loads(raw.ask(server.http, raw.get("/v2/trace/setting")).body)
    assert shown == {
        "trace_level": ["TIMESTAMPS"], "trace_rate": "5", "trace_count": "-1", "trace_mode": "opentelemetry",
        "url": collector.url, "resource": "deployment=test", "bsp_max_export_batch_size": "512",
        "bsp_schedule_delay": "20", "bsp_max_queue_size": "2048",
    }  # fmt: skip


def test_no_context_is_told_when_traces_go_to_a_file(models: Path, tmp_path: Path) -> None:
    flags = ("--trace-config=level=TIMESTAMPS", "--trace-config=rate=1", f"--trace-config=triton,file={tmp_path}/t")
    with ServerProcess(models, *flags, env={"TRACE_GATE": os.devnull}) as server:
        assert told(ask(server, "tell", PARENT))[0] is None
