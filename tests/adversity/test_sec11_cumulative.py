"""Limits that hold for the whole message, not for each part of it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.helpers.raw import Client, chunked, infer_object, infer_path, post, values_of
from tests.helpers.server import Model, ServerProcess, repository

LIMIT = 1 << 20
HINT = "Use --http-max-input-size to increase the limit."


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server whose limit is 1 MiB."""
    root = repository(
        tmp_path_factory.mktemp("small"), Model("m"), Model("wide", "FP64", tensors=100, max_batch=0),
        Model("text", "BYTES"), Model("raw", "UINT8", max_batch=0), Model("bytes1", "BYTES", dims=(1,)),
    )  # fmt: skip
    with ServerProcess(root, f"--http-max-input-size={LIMIT}") as server:
        yield server


def still_serves(server: ServerProcess) -> bool:
    with Client(server.http) as client:
        return values_of(client.ask(post(infer_path("m"), json.dumps(infer_object([1])).encode()))) == [1]


def tensors(n: int, elements: int, *, one: str = "1") -> bytes:
    data = "[" + ",".join([one] * elements) + "]"
    parts = (f'{{"name":"INPUT{i}","datatype":"FP64","shape":[{elements}],"data":{data}}}' for i in range(n))
    return ('{"inputs":[' + ",".join(parts) + "]}").encode()


def test_a_hundred_inputs_each_just_below_the_limit(small: ServerProcess) -> None:
    """Two characters of JSON become eight bytes: each tensor fits the limit, all together are a hundred of it."""
    with Client(small.http) as client:
        elements = LIMIT // 8 * 99 // 100
        # Sent at once the text alone is over the limit, as it must be before anything is decoded.
        answer = client.ask(post(infer_path("wide"), tensors(40, elements)))
        assert answer.status == 400
        assert HINT in answer.error
    before = small.rss()
    with Client(small.http) as client:
        # Text within the limit, tensors over it: 4 inputs of 124 KB text each make 4 times 496 KB.
        text = tensors(4, 62_000)
        assert len(text) < LIMIT
        answer = client.ask(post(infer_path("wide"), text))
        assert answer.status == 400, answer.body[:300]
        assert HINT in answer.error
    assert small.rss() < before + 8 * LIMIT
    assert still_serves(small)


def test_one_input_over_the_limit(small: ServerProcess) -> None:
    with Client(small.http) as client:
        answer = client.ask(post(infer_path("wide"), tensors(1, 140_000)))
        assert answer.status == 400
        assert HINT in answer.error


@pytest.mark.parametrize("extra", [0, 1])
def test_the_json_text_at_the_limit(small: ServerProcess, extra: int) -> None:
    text = json.dumps(infer_object([1])).encode()
    text += b" " * (LIMIT - len(text) + extra)
    pieces = [text[i : i + 9999] for i in range(0, len(text), 9999)]
    header = f"Inference-Header-Content-Length: {len(text)}"
    for request in (
        post(infer_path("m"), text), post(infer_path("m"), text, header), chunked(infer_path("m"), pieces),
        chunked(infer_path("m"), pieces, header),
    ):  # fmt: skip
        with Client(small.http) as client:
            client.send_until_refused([request])
            answer = client.answer()
            if extra:
                assert answer.status in {400, 413}
                assert str(LIMIT) in answer.error
            else:
                assert values_of(answer) == [1]
    assert still_serves(small)


@pytest.mark.parametrize("extra", [0, 1])
def test_raw_bodies_at_the_limit(small: ServerProcess, extra: int) -> None:
    data = bytes(LIMIT + extra)
    header = "Inference-Header-Content-Length: 0"
    for request in (post(infer_path("raw"), data, header), chunked(infer_path("raw"), [data], header)):
        with Client(small.http) as client:
            client.send_until_refused([request])
            answer = client.answer()
            assert answer.status in ({400, 413} if extra else {200})


def test_json_beside_binary(small: ServerProcess) -> None:
    """Binary tensors do not count; the JSON before them and the tensors decoded from it do."""
    elements = 60_000
    listed = [{"name": f"INPUT{i}", "datatype": "FP64", "shape": [elements], "data": [1] * elements} for i in range(3)]
    binary = {"name": "INPUT3", "datatype": "FP64", "shape": [500_000], "parameters": {"binary_data_size": 4_000_000}}
    one = [
        {"name": f"INPUT{i}", "datatype": "FP64", "shape": [1], "parameters": {"binary_data_size": 8}}
        for i in range(4, 100)
    ]
    for given, status in ((listed[:1], 200), (listed, 400)):
        rest = [
            {"name": f"INPUT{i}", "datatype": "FP64", "shape": [1], "parameters": {"binary_data_size": 8}}
            for i in range(len(given), 3)
        ]
        inputs = [*given, binary, *one, *rest]
        text = json.dumps({"inputs": inputs}, separators=(",", ":")).encode()
        data = bytes(4_000_000 + 8 * (len(one) + len(rest)))
        with Client(small.http) as client:
            answer = client.ask(post(infer_path("wide"), text + data, f"Inference-Header-Content-Length: {len(text)}"))
            assert answer.status == status, answer.body[:300]
            if status == 400:
                assert HINT in answer.error
    assert still_serves(small)


def test_strings_count_with_their_lengths(small: ServerProcess) -> None:
    """An empty string is three characters of JSON and four bytes of tensor."""
    count = 300_000
    data = ",".join(['""'] * count)
    text = f'{{"inputs":[{{"name":"INPUT0","datatype":"BYTES","shape":[1,{count}],"data":[{data}]}}]}}'.encode()
    assert len(text) < LIMIT < 4 * count
    with Client(small.http) as client:
        answer = client.ask(post(infer_path("text"), text))
        assert answer.status == 400, answer.body[:200]
        assert HINT in answer.error


def test_pipelined_requests_are_not_one(small: ServerProcess) -> None:
    text = json.dumps(infer_object([1])).encode()
    request = post(infer_path("m"), text + b" " * (LIMIT - len(text)))
    with Client(small.http) as client:
        client.send(request * 5)
        for _ in range(5):
            assert values_of(client.answer()) == [1]
