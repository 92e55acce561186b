"""Shapes and sizes that overflow, wrap, vanish or lie: a request serves only where plain arithmetic says it fits."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.raw import Client, fp32, infer_json, infer_path, post, values_of
from tests.helpers.server import ServerProcess

EDGES = [
    0, 1, 2, 3, 4, 7, 8, 9, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1, 2**32, 2**32 + 1,
    2**61, 2**62, 2**63 - 2, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**64 + 1, -1, -2, -(2**31), -(2**62), -(2**63),
    -(2**63) - 1,
]  # fmt: skip
WRAPPING = [
    # Products that are 4 modulo 2**64 or 2**32, or whose bytes are 16 so.
    [2**32, 2**32, 1], [2**33, 2**31], [2**62, 4], [2**63, 2], [2**32 + 1, 2**32 - 1], [2**62 + 1, 4], [2**30 + 1, 4],
    [4611686018427387905, 4], [3037000500, 3037000500], [6148914691236517205, 3], [2**31, 2**31, 4], [-1, -4], [-2, -2],
    [-4, -1, 1], [2**64 + 4], [4, 0, 2**63 - 1], [2**63 - 1, 0], [0, 2**40, 2**40], [2**16, 2**16, 2**16, 2**16],
]  # fmt: skip


def binary(
    model: str, shape: Any, data: bytes, datatype: str = "FP32", *, size: Any = None, header: int | None = None
) -> bytes:
    parameters = {"binary_data_size": len(data) if size is None else size}
    tensor = {"name": "INPUT0", "datatype": datatype, "shape": shape, "parameters": parameters}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return post(
        infer_path(model), head + data, f"Inference-Header-Content-Length: {len(head) if header is None else header}"
    )


def listed(model: str, shape: Any, data: list[Any], datatype: str = "FP32") -> bytes:
    tensor = {"name": "INPUT0", "datatype": datatype, "shape": shape, "data": data}
    return post(infer_path(model), json.dumps({"inputs": [tensor]}).encode())


def fits(shape: list[int], elements: int, rank: int) -> bool:
    """What the model "square" or "cube" takes, without any wrapping."""
    return (
        len(shape) == rank and all(0 <= d < 2**63 for d in shape) and math.prod(shape) == elements
        and math.prod(d for d in shape if d) * 4 < 2**63
    )  # fmt: skip


def check(client: Client, model: str, shape: list[int], elements: int, rank: int) -> None:
    data = fp32([float(i) for i in range(elements)])
    for request, as_json in ((binary(model, shape, data), False), (listed(model, shape, list(range(elements))), True)):
        answer = client.ask(request)
        if fits(shape, elements, rank) and (model != "cube" or shape[1] == 4):
            # Dimensions of nothing beside a zero may still be refused as too large.
            assert answer.status == 200 or (0 in shape and max(shape) > 2**31), (shape, answer)
            if answer.status == 200 and elements:
                assert values_of(answer) == list(range(elements))
        elif as_json and answer.status == 200:
            # As in Triton, "data" is not looked at where the shape says that there is none.
            assert 0 in shape and fits(shape, 0, rank) and values_of(answer) == []
        else:
            assert answer.status in {400, 500}, (shape, elements, answer)
            assert answer.error


@pytest.mark.parametrize("shape", WRAPPING, ids=str)
def test_products_that_wrap(server: ServerProcess, shape: list[int]) -> None:
    before = server.rss()
    with Client(server.http) as client:
        for elements in (0, 1, 4, 16):
            for model, rank in (("square", 2), ("cube", 3)):
                check(client, model, shape, elements, rank)
            # With a batch dimension, and as a whole through the batch.
            answer = client.ask(binary("m", shape, fp32([1.0] * elements)))
            assert answer.status in {200, 400, 500}
            if answer.status == 200:
                assert len(shape) == 2 and math.prod(shape) == elements and 1 <= shape[0] <= 8
    assert server.rss() < before + 8 * (1 << 20)


@pytest.mark.parametrize("first", EDGES)
def test_every_pair_of_edges(server: ServerProcess, first: int) -> None:
    with Client(server.http) as client:
        for second in EDGES:
            product = first * second
            for elements in {0, 4, product if 0 <= product <= 4096 else 1}:
                check(client, "square", [first, second], elements, 2)


@given(
    shape=st.lists(st.one_of(st.sampled_from(EDGES), st.integers(-(2**70), 2**70), st.integers(0, 9)), max_size=6),
    elements=st.integers(0, 40),
)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape(server: ServerProcess, shape: list[int], elements: int) -> None:
    with Client(server.http) as client:
        check(client, "square", shape, elements, 2)
        check(client, "cube", shape, elements, 3)


@pytest.mark.parametrize("shape", [
    None, "1", 1, {}, [[1, 4]], ["1", "4"], [1.0, 4.0], [1.5, 4], [True, 4], [None, 4], [1, 1e0, 4], [1e400, 4],
    [[], 4],
])  # fmt: skip
def test_shapes_that_are_none(server: ServerProcess, shape: Any) -> None:
    with Client(server.http) as client:
        for request in (binary("square", shape, fp32([1, 2, 3, 4])), listed("square", shape, [1, 2, 3, 4])):
            assert client.ask(request).status in {400, 500}


@pytest.mark.parametrize("lie", [-16, -4, -1, 1, 3, 4, 16, 2**31, 2**32, 2**63 - 17, 2**64 - 32, 2**64 - 16])
def test_binary_size_that_lies(server: ServerProcess, lie: int) -> None:
    """The size said, the size sent and the size of the shape must be one."""
    data = fp32([1, 2, 3, 4])
    with Client(server.http) as client:
        assert client.ask(binary("square", [2, 2], data, size=16 + lie)).status in {400, 500}
        if -16 <= lie <= 16:
            sent = (data * 3)[: 16 + lie]
            assert client.ask(binary("square", [2, 2], sent, size=16)).status in {400, 500}
            assert client.ask(binary("square", [2, 2], sent)).status in {400, 500}
        assert values_of(client.ask(binary("square", [2, 2], data))) == [1, 2, 3, 4]


def test_sizes_of_several_tensors(server: ServerProcess) -> None:
    """Sizes that only add up together, wrap together, or point past the end."""

    def ask(client: Client, first: int, second: int, sent: int) -> int:
        tensors = [
            {"name": f"INPUT{i}", "datatype": "FP32", "shape": [1, 1], "parameters": {"binary_data_size": size}}
            for i, size in enumerate((first, second))
        ]
        head = json.dumps({"inputs": tensors}).encode()
        body = head + bytes(sent)
        return client.ask(post(infer_path("pair"), body, f"Inference-Header-Content-Length: {len(head)}")).status

    with Client(server.http) as client:
        assert ask(client, 4, 4, 8) == 200
        for first, second, sent in (
            (8, 0, 8), (0, 8, 8), (2, 6, 8), (4, 4, 7), (4, 4, 9), (4, 4, 0), (2**64 - 4, 12, 8), (2**63, 2**63 + 8, 8),
            (2**32 + 4, 4, 8), (4, 2**64 - 8, 8), (-4, 12, 8), (12, -4, 8), (4, 2**64 + 4, 8),
        ):  # fmt: skip
            assert ask(client, first, second, sent) in {400, 500}, (first, second, sent)


@pytest.mark.parametrize("said", [-1, -(2**31), 1, "len-1", "len+1", "all+1", 2**31 - 1])
def test_json_length_that_lies(server: ServerProcess, said: Any) -> None:
    data = fp32([1, 2, 3, 4])
    good = binary("square", [2, 2], data)
    body = len(good.partition(b"\r\n\r\n")[2])
    header = {"len-1": body - 17, "len+1": body - 15, "all+1": body + 1}.get(said, said)
    with Client(server.http) as client:
        answer = client.ask(binary("square", [2, 2], data, header=header))
        assert answer.status in {400, 500}, answer
        assert values_of(client.ask(good)) == [1, 2, 3, 4]


LIES = [
    b"", b"\x00", b"\x01\x00\x00", b"\x00\x00\x00\x00", b"\x01\x00\x00\x00", b"\x02\x00\x00\x00a",
    b"\xff\xff\xff\xff", b"\xff\xff\xff\xffab",
    b"\xfc\xff\xff\xff", b"\x00\x00\x00\x80abc", b"\xff\xff\xff\x7fabc", b"\x00\x00\x00\x00\x00",
    b"\x01\x00\x00\x00aX", b"\xf8\xff\xff\xff\x04\x00\x00\x00",
]  # fmt: skip


@pytest.mark.parametrize("lie", LIES, ids=range(len(LIES)))
@pytest.mark.parametrize("before", [0, 1, 3])
def test_string_lengths_that_lie(server: ServerProcess, lie: bytes, before: int) -> None:
    """The broken element alone, and behind good ones; only a whole number of elements that is the shape's serves."""
    good = struct.pack("<I", 2) + b"ok"
    data = good * before + lie
    whole = lie == b"\x00\x00\x00\x00"
    with Client(server.http) as client:
        for count in range(6):
            answer = client.ask(binary("text", [1, count], data, "BYTES"))
            if (whole and count == before + 1) or (lie == b"" and count == before and count):
                assert answer.status == 200, answer
            elif count == 0 and not data:
                assert answer.status in {200, 400}
            else:
                assert answer.status == 400, (count, answer)


@pytest.mark.parametrize("count", [2**31, 2**32, 2**61, 2**62, 2**63 - 1])
def test_string_counts_that_wrap(server: ServerProcess, count: int) -> None:
    before = server.rss()
    with Client(server.http) as client:
        for request in (binary("text", [1, count], b"\x00" * 64, "BYTES"), listed("text", [1, count], ["a"], "BYTES")):
            assert client.ask(request).status in {400, 500}
    assert server.rss() < before + 8 * (1 << 20)


@pytest.mark.parametrize("length", [0, 1, 3, 5, 11, 13, 16, 24])
def test_raw_bodies_of_a_wrong_size(server: ServerProcess, length: int) -> None:
    with Client(server.http) as client:
        answer = client.ask(post(infer_path("flat"), bytes(length), "Inference-Header-Content-Length: 0"))
        assert answer.status == 400, answer
        assert answer.error


@pytest.mark.parametrize(("model", "datatype", "value", "ok"), [
    ("int8", "INT8", 2**63, None), ("int8", "INT8", -(2**63), None), ("int8", "INT8", 300, None),
    ("int64", "INT64", 2**63 - 1, True),
    ("int64", "INT64", 2**63, False), ("int64", "INT64", -(2**63), True), ("int64", "INT64", -(2**63) - 1, False),
    ("int64", "INT64", 10**40, False), ("int64", "INT64", 1.5, False), ("m", "FP32", 1e39, None),
    ("m", "FP32", 10**300, None),
    ("bool", "BOOL", 1, False), ("bool", "BOOL", True, True), ("half", "FP16", 1, False),
])  # fmt: skip
def test_numbers_that_do_not_fit(server: ServerProcess, model: str, datatype: str, value: Any, ok: bool | None) -> None:
    with Client(server.http) as client:
        answer = client.ask(listed(model, [1, 1], [value], datatype))
        assert answer.status in ({200, 400, 500} if ok is None else {200} if ok else {400, 500}), answer
        if ok:
            assert values_of(answer) == [value]
        assert values_of(client.ask(infer_json("m", [1]))) == [1]
