"""What make bench makes of h2load's report and a server's counters: an error over gRPC has HTTP status 200."""

from __future__ import annotations

import numpy as np
import pytest

from bench.server import h2load, models, peers
from bench.server.grpc_cases import GRPC_CASES, PATH, PREFIX, frame
from triton_fast import protos

REPORT = """starting benchmark...
finished in 2.00s, {rate} req/s, 3.85MB/s
requests: {total} total, 232 started, {done} done, {ok} succeeded, {failed} failed, {errored} errored, 0 timeout
status codes: {http_ok} 2xx, 0 3xx, 0 4xx, {http_bad} 5xx
traffic: 33.20KB (34000) total, 4.88KB (5000) headers (space savings 50.48%), 19.53KB ({data}) data
                     min         max         mean         sd        +/- sd
time for request:       24us      2.20ms       254us        76us    90.16%
"""
GOOD = {"rate": 100, "total": 200, "done": 200, "ok": 200, "failed": 0, "errored": 0, "http_ok": 200, "http_bad": 0,
        "data": 20000}
ANSWER = bytes(100)
MLP = GRPC_CASES[0]


def reply(values: np.ndarray, name: str = "OUTPUT") -> bytes:
    message = protos.ModelInferResponse(model_name="mlp", model_version="1")
    message.outputs.add(name=name, datatype="FP32", shape=[1, len(values)])
    message.raw_output_contents.append(values.astype("<f4").tobytes())
    return frame(message.SerializeToString())


def test_report_without_errors() -> None:
    figures = h2load.parse(REPORT.format(**GOOD))
    assert figures == {"requests": 200, "bytes": 34000, "data_bytes": 20000,
                       "errors": {"failed": 0, "errored": 0, "timeout": 0, "status": 0}}
    assert h2load.unanswered(figures, ANSWER) == 0


def test_report_with_http_errors() -> None:
    bad = {"ok": 195, "failed": 5, "errored": 2, "http_ok": 194, "http_bad": 1}
    figures = h2load.parse(REPORT.format(**{**GOOD, **bad}))
    assert figures["errors"] == {"failed": 5, "errored": 2, "timeout": 0, "status": 1}


@pytest.mark.parametrize("data, count", [(20100, 0), (19999, 1), (19900, 1), (19899, 2), (0, 200)])
def test_grpc_errors_lack_bytes(data: int, count: int) -> None:
    figures = h2load.parse(REPORT.format(**{**GOOD, "data": data}))
    assert not any(figures["errors"].values())
    assert h2load.unanswered(figures, ANSWER) == count


@pytest.mark.parametrize("text", ["", "requests: 1 total", REPORT.format(**{**GOOD, "done": 0, "ok": 0})])
def test_report_without_figures(text: str) -> None:
    with pytest.raises(RuntimeError, match="h2load"):
        h2load.parse(text)


def test_counters_of_one_model() -> None:
    page = """# HELP nv_inference_request_success n
nv_inference_request_success{model="mlp",version="1"} 7.000000
nv_inference_request_success{model="mlp",version="2"} 1
nv_inference_request_success{model="mlp2",version="1"} 100
nv_inference_request_failure{model="mlp",reason="OTHER",version="1"} 2.000000
nv_inference_request_failure{model="mlp",reason="REJECTED",version="1"} 1
nv_inference_request_failure{model="mlp",reason="CANCELED",version="1"} 32
"""
    assert peers.counts(page, "mlp") == peers.Counts(success=8, failure=3)
    assert peers.counts(page, "identity") == peers.Counts(success=0, failure=0)


@pytest.mark.parametrize("case", GRPC_CASES, ids=lambda case: case.name)
def test_request(case) -> None:
    compressed, length = PREFIX.unpack_from(case.body)
    assert (compressed, length) == (False, len(case.body) - PREFIX.size)
    request = protos.ModelInferRequest.FromString(case.body[PREFIX.size :])
    assert (case.path, request.model_name) == (PATH, case.model)
    assert list(request.inputs[0].shape) == [1, models.WIDTH[case.model]]
    assert request.raw_input_contents[0] == models.sample(case.model).tobytes()


def test_answer_is_verified() -> None:
    right = models.expected("mlp")
    MLP.verify(0, {}, reply(right))
    for status, body, text in (
        (5, b"Request for unknown model", "gRPC status 5: b'Request for unknown model'"),
        (0, b"", "gRPC status 0"),
        (0, reply(right)[:-1], "gRPC status 0"),
        (0, reply(right + 1), "wrong values"),
        (0, reply(right[:8]), "with 8 values"),
        (0, reply(right, "OTHER"), "unexpected output"),
    ):
        with pytest.raises(RuntimeError, match=text):
            MLP.verify(status, {}, body)
