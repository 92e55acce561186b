"""Infer through the tritonclient clients, as cases that HTTP and gRPC, sync and aio share; last what only HTTP has.

``call`` is a fixture: it takes a method's name and its arguments and returns what the method returns.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from tests.conformance import models
from tests.conformance.client_tensors import INVALID, NOT_FOUND, Call, Given, Wanted, refused
from tests.helpers import raw

# Values that a datatype must carry unchanged; all within one row.
VALUES: dict[str, np.ndarray[Any, Any]] = {
    "BOOL": np.array([[True, False, True]]),
    "UINT8": np.array([[0, 1, 255]], np.uint8),
    "UINT16": np.array([[0, 1, 65535]], np.uint16),
    "UINT32": np.array([[0, 1, 2**32 - 1]], np.uint32),
    "UINT64": np.array([[0, 1, 2**64 - 1]], np.uint64),
    "INT8": np.array([[-128, 0, 127]], np.int8),
    "INT16": np.array([[-32768, 0, 32767]], np.int16),
    "INT32": np.array([[-(2**31), 0, 2**31 - 1]], np.int32),
    "INT64": np.array([[-(2**63), 0, 2**63 - 1]], np.int64),
    "FP16": np.array([[-0.5, 65504, 6e-8]], np.float16),
    "FP32": np.array([[-0.1, 3.4e38, 1e-45]], np.float32),
    "FP64": np.array([[-0.1, 1.7e308, 5e-324]], np.float64),
    "BF16": np.array([[-0.5, 3.0, 1.875]], np.float32),
    "BYTES": np.array([[b"", "h\u00e9llo \U0001f600".encode(), b'"\\\x00\n']], object),
}
IN_JSON = tuple(datatype for datatype in models.DATATYPES if datatype not in {"FP16", "BF16"})


def tensor(array: np.ndarray[Any, Any], datatype: str, *, binary: bool = True, name: str = "INPUT0") -> Given:
    return Given(name, datatype, array, binary)


def fp32(*values: float, binary: bool = True) -> Given:
    return tensor(np.array([values], np.float32), "FP32", binary=binary)


def same(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> bool:
    if expected.dtype == object:
        return found.shape == expected.shape and [_raw(v) for v in found.flat] == [_raw(v) for v in expected.flat]
    return found.dtype == expected.dtype and found.shape == expected.shape and found.tobytes() == expected.tobytes()


def _raw(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)


class Datatypes:
    @pytest.mark.parametrize("binary", [True, False], ids=["binary", "by-value"])
    @pytest.mark.parametrize("datatype", IN_JSON)
    def test_round_trip(self, call: Call, datatype: str, binary: bool) -> None:
        expected = VALUES[datatype]
        result = call("infer", models.of_type(datatype), [tensor(expected, datatype, binary=binary)])
        assert same(result.as_numpy("OUTPUT0"), expected)

    @pytest.mark.parametrize("datatype", ["FP16", "BF16"])
    def test_half_precision_is_binary(self, call: Call, datatype: str) -> None:
        expected = VALUES[datatype]
        result = call("infer", models.of_type(datatype), [tensor(expected, datatype)])
        assert same(result.as_numpy("OUTPUT0"), expected)

    def test_bf16_bits(self, call: Call) -> None:
        bits = np.arange(0x3F80, 0x3F80 + 8, dtype=np.uint16).view(ml_dtypes.bfloat16).astype(np.float32)[None, :]
        result = call("infer", "id_bf16", [tensor(bits, "BF16")])
        assert same(result.as_numpy("OUTPUT0"), bits)

    def test_bytes_that_are_no_text(self, call: Call) -> None:
        expected = np.array([[b"\xff\xfe\x00", bytes(range(256)), b""]], object)
        result = call("infer", "id_bytes", [tensor(expected, "BYTES")])
        assert same(result.as_numpy("OUTPUT0"), expected)

    def test_nan_and_infinity_in_binary(self, call: Call) -> None:
        expected = np.array([[np.nan, np.inf, -np.inf, -0.0]], np.float32)
        assert same(call("infer", "id_fp32", [tensor(expected, "FP32")]).as_numpy("OUTPUT0"), expected)

    @pytest.mark.parametrize("datatype", models.DATATYPES)
    def test_empty(self, call: Call, datatype: str) -> None:
        nothing = VALUES[datatype][:, :0]
        result = call("infer", models.of_type(datatype), [tensor(nothing, datatype)])
        assert result.get_output("OUTPUT0")["shape"] == [1, 0]

    @pytest.mark.parametrize("shape", [(1, 1), (8, 1), (3, 1000), (1, 150528)])
    def test_sizes(self, call: Call, shape: tuple[int, ...]) -> None:
        expected = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
        assert same(call("infer", "id_fp32", [tensor(expected, "FP32")]).as_numpy("OUTPUT0"), expected)


class Requests:
    @pytest.mark.parametrize("binary", [True, False], ids=["binary", "by-value"])
    def test_several_tensors(self, call: Call, binary: bool) -> None:
        arrays = [np.arange(8, dtype=np.int32).reshape(2, 4), np.full((2, 4), -7, np.int32)]
        inputs = [tensor(array, "INT32", binary=binary, name=f"INPUT{i}") for i, array in enumerate(arrays)]
        for outputs in (None, [Wanted("OUTPUT1"), Wanted("OUTPUT0")]):
            result = call("infer", "two", inputs, outputs=outputs)
            assert all(same(result.as_numpy(f"OUTPUT{i}"), arrays[i]) for i in range(2))

    def test_only_the_wanted_outputs(self, call: Call) -> None:
        inputs = [tensor(np.zeros((1, 4), np.int32), "INT32", name=f"INPUT{i}") for i in range(2)]
        result = call("infer", "two", inputs, outputs=[Wanted("OUTPUT1")])
        assert [output["name"] for output in result.get_response()["outputs"]] == ["OUTPUT1"]
        assert result.as_numpy("OUTPUT0") is None
        assert result.get_output("OUTPUT0") is None

    def test_request_id(self, call: Call) -> None:
        response = call("infer", "id_fp32", [fp32(1)], request_id="a/\u00e9 1").get_response()
        assert response["id"] == "a/\u00e9 1"
        assert "id" not in call("infer", "id_fp32", [fp32(1)]).get_response()

    def test_response_names_the_model(self, call: Call) -> None:
        found = call("infer", "versions", [tensor(np.ones((1, 1), np.int32), "INT32")]).get_response()
        assert (found["model_name"], found["model_version"]) == ("versions", "3")
        found = call(
            "infer", "versions", [tensor(np.ones((1, 1), np.int32), "INT32")], model_version="1"
        ).get_response()
        assert found["model_version"] == "1"

    @pytest.mark.parametrize(
        "options",
        [
            {"priority": 3},
            {"timeout": 1_000_000},
            {"sequence_id": 5, "sequence_start": True, "sequence_end": True},
            {"sequence_id": "text", "sequence_start": True},
            {"parameters": {"a": "text", "b": 7, "c": True}},
            {"headers": {"X-Any": "1"}},
            {"query_params": {"a": "b c", "list": [1, 2]}},
        ],
        ids=lambda options: next(iter(options)),
    )
    def test_options(self, call: Call, options: dict[str, Any]) -> None:
        # A copy: the HTTP client writes the length of its JSON into the headers that it is given.
        result = call("infer", "id_fp32", [fp32(1, 2)], **copy.deepcopy(options))
        assert result.as_numpy("OUTPUT0").tolist() == [[1, 2]]

    def test_optional_input(self, call: Call) -> None:
        given = [tensor(np.array([4, 5], np.int32), "INT32")]
        result = call("infer", "optional", given, outputs=[Wanted("OUTPUT0")])
        assert result.as_numpy("OUTPUT0").tolist() == [4, 5]


class Classification:
    def classes(self, call: Call, model: str, values: Sequence[Any], k: int, datatype: str = "FP32") -> list[list[str]]:
        kind = np.float32 if datatype == "FP32" else np.int32
        outputs = [Wanted("OUTPUT0", class_count=k)]
        result = call("infer", model, [tensor(np.array(values, kind), datatype)], outputs=outputs)
        assert result.get_output("OUTPUT0")["datatype"] == "BYTES"
        return [[_raw(item).decode() for item in row] for row in result.as_numpy("OUTPUT0")]

    def test_labels(self, call: Call) -> None:
        found = self.classes(call, "labelled", [[0.1, 0.5, 0.25, -1], [9, 8, 7, 10]], 2)
        assert found == [["0.500000:1:one", "0.250000:2:two"], ["10.000000:3", "9.000000:0:zero"]]

    def test_more_than_there_are(self, call: Call) -> None:
        assert len(self.classes(call, "labelled", [[1, 2, 3, 4]], 100)[0]) == 4

    def test_without_labels(self, call: Call) -> None:
        assert self.classes(call, "id_int32", [[3, -1, 7]], 2, "INT32") == [["7:2", "3:0"]]

    @pytest.mark.parametrize("datatype", ["FP16", "BF16", "BOOL", "BYTES"])
    def test_refused(self, call: Call, datatype: str) -> None:
        outputs = [Wanted("OUTPUT0", class_count=1)]
        inputs = [tensor(VALUES[datatype], datatype)]
        assert refused(call, "infer", models.of_type(datatype), inputs, outputs=outputs) == (
            INVALID, f"class result not available for output due to unsupported type '{datatype}'",
        )  # fmt: skip


class Errors:
    def test_unknown_model(self, call: Call) -> None:
        text = "Request for unknown model: 'nobody' is not found"
        assert refused(call, "infer", "nobody", [fp32(1)]) == (NOT_FOUND, text)

    def test_unknown_version(self, call: Call) -> None:
        text = "Request for unknown model: 'versions' version 7 is not found"
        assert refused(call, "infer", "versions", [fp32(1)], model_version="7") == (NOT_FOUND, text)

    def test_the_id_is_in_the_text(self, call: Call) -> None:
        inputs = [tensor(np.zeros((1, 1), np.int32), "INT32")]
        text = "[request id: r1] inference input 'INPUT0' data-type is 'INT32', but model 'id_fp32' expects 'FP32'"
        assert refused(call, "infer", "id_fp32", inputs, request_id="r1") == (INVALID, text)

    def test_unknown_output(self, call: Call) -> None:
        outputs = [Wanted("OTHER")]
        text = "unexpected inference output 'OTHER' for model 'id_fp32'"
        assert refused(call, "infer", "id_fp32", [fp32(1)], outputs=outputs) == (INVALID, text)

    def test_shared_memory_that_is_not_there(self, call: Call) -> None:
        given = Given("INPUT0", "FP32", np.zeros((1, 2), np.float32), region=("region", 8))
        status, message = refused(call, "infer", "id_fp32", [given])
        assert (status, message) == (NOT_FOUND, "Unable to find shared memory region: 'region'")

    def test_the_exception_prints_both(self, call: Call) -> None:
        with pytest.raises(InferenceServerException) as caught:
            call("infer", "nobody", [fp32(1)])
        assert caught.value.status() == NOT_FOUND
        assert str(caught.value) == f"[{caught.value.status()}] Request for unknown model: 'nobody' is not found"


class Infer(Datatypes, Requests, Classification, Errors):
    """What every protocol has."""


# ---- HTTP only


class Json:
    @pytest.mark.parametrize("binary_in", [True, False], ids=["binary-in", "json-in"])
    @pytest.mark.parametrize("datatype", IN_JSON)
    def test_output_as_json(self, call: Call, datatype: str, binary_in: bool) -> None:
        expected = VALUES[datatype]
        result = call(
            "infer", models.of_type(datatype), [tensor(expected, datatype, binary=binary_in)],
            outputs=[Wanted("OUTPUT0", binary=False)],
        )  # fmt: skip
        assert same(result.as_numpy("OUTPUT0"), expected)
        assert "data" in result.get_output("OUTPUT0")

    @pytest.mark.parametrize("datatype", ["FP16", "BF16"])
    def test_half_precision_as_json(self, call: Call, datatype: str) -> None:
        assert refused(
            call, "infer", models.of_type(datatype), [tensor(VALUES[datatype], datatype)],
            outputs=[Wanted("OUTPUT0", binary=False)],
        ) == (
            INVALID,
            f"sending {datatype} data via JSON is not supported. Please use the binary data format for output",
        )  # fmt: skip

    @pytest.mark.parametrize("datatype", ["FP32", "FP64"])
    def test_nan_and_infinity_in_json(self, call: Call, datatype: str) -> None:
        values = np.array([[np.nan, np.inf, -np.inf]], np.float32 if datatype == "FP32" else np.float64)
        found = call(
            "infer", models.of_type(datatype), [tensor(values, datatype)],
            outputs=[Wanted("OUTPUT0", binary=False)],
        ).as_numpy("OUTPUT0")  # fmt: skip
        assert math.isnan(found[0, 0])
        assert found[0, 1:].tolist() == [math.inf, -math.inf]

    def test_classes_as_json(self, call: Call) -> None:
        outputs = [Wanted("OUTPUT0", binary=False, class_count=1)]
        result = call("infer", "labelled", [tensor(np.array([[1, 2, 3, 0]], np.float32), "FP32")], outputs=outputs)
        assert result.get_output("OUTPUT0")["data"] == ["3.000000:2:two"]

    @pytest.mark.parametrize("first", [True, False])
    @pytest.mark.parametrize("second", [True, False])
    def test_mixed_encodings(self, call: Call, first: bool, second: bool) -> None:
        arrays = [np.arange(8, dtype=np.int32).reshape(2, 4), np.full((2, 4), -7, np.int32)]
        inputs = [
            tensor(arrays[0], "INT32", binary=first, name="INPUT0"),
            tensor(arrays[1], "INT32", binary=second, name="INPUT1"),
        ]
        wanted = [
            Wanted("OUTPUT1", binary=first),
            Wanted("OUTPUT0", binary=second),
        ]
        for outputs in (None, wanted):
            result = call("infer", "two", inputs, outputs=outputs)
            assert all(same(result.as_numpy(f"OUTPUT{i}"), arrays[i]) for i in range(2))

    def test_a_parameter_of_a_type_that_grpc_clients_refuse(self, call: Call) -> None:
        assert call("infer", "id_fp32", [fp32(1)], parameters={"d": 1.5}).as_numpy("OUTPUT0").tolist() == [[1]]


class Compression:
    @pytest.mark.parametrize("request_with", [None, "gzip", "deflate"])
    @pytest.mark.parametrize("response_with", [None, "gzip", "deflate"])
    @pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
    def test_both_ways(self, call: Call, request_with: str | None, response_with: str | None, binary: bool) -> None:
        expected = np.zeros((2, 500), np.float32)
        expected[1, 3] = 0.5
        result = call(
            "infer", "id_fp32", [tensor(expected, "FP32", binary=binary)],
            outputs=[Wanted("OUTPUT0", binary=binary)],
            request_compression_algorithm=request_with, response_compression_algorithm=response_with,
        )  # fmt: skip
        assert same(result.as_numpy("OUTPUT0"), expected)


class Bodies:
    """``generate_request_body`` and ``parse_response_body`` are made for sending by other means."""

    def test_request_body(self, client_class: Any, post: Callable[..., tuple[bytes, dict[str, str]]]) -> None:
        body, size = client_class.generate_request_body([fp32(1, 2, 3).http()], request_id="7")
        assert json.loads(body[:size])["id"] == "7"
        answer, headers = post("/v2/models/id_fp32/infer", body, size)
        length = int(headers["inference-header-content-length"])
        result = client_class.parse_response_body(answer, header_length=length)
        assert result.as_numpy("OUTPUT0").tolist() == [[1, 2, 3]]
        assert result.get_response()["id"] == "7"

    def test_json_only(self, client_class: Any, post: Callable[..., tuple[bytes, dict[str, str]]]) -> None:
        outputs = [Wanted("OUTPUT0", binary=False).http()]
        body, size = client_class.generate_request_body([fp32(1, binary=False).http()], outputs=outputs)
        assert size is None
        answer, headers = post("/v2/models/id_fp32/infer", body, size)
        assert "inference-header-content-length" not in headers
        assert client_class.parse_response_body(answer).as_numpy("OUTPUT0").tolist() == [[1]]


def post_raw(address: tuple[str, int], path: str, body: bytes, size: int | None) -> tuple[bytes, dict[str, str]]:
    """Post a body that a client made, past the client; ``size``: of its JSON part. Return body and headers."""
    headers = [] if size is None else [f"Inference-Header-Content-Length: {size}"]
    answer = raw.ask(address, raw.post(path, body, *headers))
    assert answer.status == 200, answer.body
    return answer.body, answer.headers


class InferHttp(Infer, Json, Compression, Bodies):
    """All of them."""
